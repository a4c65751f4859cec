"""Whose calls an edit is for: those of the thread or asyncio task that opened its block, the first time they run.

Hooks lie on a module, and every call of it meets them, whoever makes it. A call of another thread or task is left alone
if that one has a block of its own open on the model (an empty one will do: `steer(model, [])`), and refused if not:
nobody can tell whether its result was to be edited. What gradient checkpointing runs again in backward is left alone
too; `recompute` gives it the edits that were there the first time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from threading import get_ident, local
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils import checkpoint

from entangle.errors import EntangleError
from entangle.models.hooks import Skip, task


class Block(Protocol):
    """An open steer block, as others see it."""

    @property
    def model(self) -> nn.Module:
        """The model it was opened on."""

    @property
    def elsewhere(self) -> Skip:
        """Tells whether a call comes from another thread or task than the one that opened it."""

    def __hash__(self) -> int:
        """By identity."""


class _Running(local):
    """What a thread is doing with functions under gradient checkpointing."""

    first = 0  # how many it runs for the first time, one within the other


OPEN: WeakKeyDictionary[Block, None] = WeakKeyDictionary()  # in the order they were opened
RUNNING = _Running()


def open_here(model: nn.Module) -> list[Block]:
    """The blocks that this thread and task has open on a model, on a part of it or on what it is a part of."""
    return [block for block in [*OPEN] if not block.elsewhere() and _overlap(block.model, model)]


def skipping(block: Block) -> Skip:
    """What a block's hooks ask at each call; it says True where the call is not the block's.

    Raises:
        EntangleError: (what it returns does) where nobody can tell, or where a result could not be computed again.
    """

    thread, model, grad = get_ident() if task() is None else 0, block.model, torch.is_grad_enabled

    def skip() -> bool:
        if get_ident() == thread and not grad() and not model.training:
            return False
        if torch._C._current_graph_task_id() != -1 and _checkpointed():  # in backward
            return True
        if block.elsewhere():
            if open_here(block.model):
                return True
            raise EntangleError(
                f"{type(block.model).__name__} runs in a thread or task other than the one whose steer block is open "
                "on it, and its edits act in that one alone: open the block where the model runs, or steer(model, []) "
                "for the plain model (DataParallel, which runs copies in threads, cannot be steered)"
            )
        if not RUNNING.first and (torch.is_grad_enabled() or block.model.training) and _checkpointed():
            raise EntangleError(
                f"gradient checkpointing runs parts of {type(block.model).__name__} again in backward, where the edits "
                "of this steer block would be missing: call model.gradient_checkpointing_enable() before the block is "
                "opened, and do not wrap the model in torch.utils.checkpoint yourself"
            )
        return False

    return skip


def _checkpointed() -> bool:
    """Whether torch's gradient checkpointing is among the callers."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
    return False


def _overlap(a: nn.Module, b: nn.Module) -> bool:
    return a is b or any(module is b for module in a.modules()) or any(module is a for module in b.modules())


def replaced(root: nn.Module, paths: Iterable[str]) -> Callable[[], None]:
    """What refuses, when called later, a model in which a module that is edited was replaced after the edit was put on.

    Args:
        root: The model.
        paths: The edited modules by their names in it.
    """
    links: dict[tuple[int, str], tuple[dict[str, nn.Module | None], str, nn.Module, str]] = {}
    for path in paths:
        parent = root
        for part in path.split(".") if path else ():
            child = parent._modules.get(part)
            if child is None:
                break
            links[id(parent), part] = parent._modules, part, child, path
            parent = child

    def check() -> None:
        for children, part, child, path in links.values():
            if children.get(part) is not child:
                raise EntangleError(
                    f"{path} is edited, but {part} in its path was replaced after the steer block was opened, so the "
                    "edit would be missing: close the block, and open another on the model as it is now"
                )

    return check
