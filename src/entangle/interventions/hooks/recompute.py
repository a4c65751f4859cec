"""Gradient checkpointing: what runs again in backward gets the edits it had the first time, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from entangle.interventions.hooks.presence import OPEN, RUNNING, Block, open_here
from entangle.models.hooks import Handle, HookFunction, attach, elsewhere
from entangle.models.place import Place

FUNCTION = "_gradient_checkpointing_func"  # where transformers keeps it, in each module that uses it


@runtime_checkable
class Repeatable(Protocol):
    """A block whose edits can be put on once more."""

    attached: Sequence[tuple[Place, HookFunction, bool]]

    def moment(self) -> Any:
        """What its edits depend on now."""

    def at(self, moment: Any) -> None:
        """Let them depend on what they did then."""


@dataclass(frozen=True, eq=False)
class Checkpointing:
    """The checkpointing function of a module, while blocks are open on its model.

    Attributes:
        original: Transformers' own.
        model: The model.
    """

    original: Callable[..., Any]
    model: nn.Module

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function under checkpointing, so that it runs again as it does now."""
        moments = [(block, block.moment()) for block in open_here(self.model) if isinstance(block, Repeatable)]
        n_runs = 0

        def same(*args: Any, **kwargs: Any) -> Any:
            nonlocal n_runs
            n_runs += 1
            if n_runs > 1:
                with _repeated(moments):
                    return function(*args, **kwargs)
            RUNNING.first += 1
            try:
                return function(*args, **kwargs)
            finally:
                RUNNING.first -= 1

        return self.original(same, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.original,)


def _itself(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@contextmanager
def _repeated(moments: Sequence[tuple[Repeatable, Any]]) -> Iterator[None]:
    """The edits of blocks as they were, open or closed by now."""
    handle, skip, before = Handle(), elsewhere(), [(block, block.moment()) for block, _ in moments]
    try:
        for block, moment in moments:
            block.at(moment)
            for place, function, first in block.attached:
                attach(place, function, first=first, skip=skip, handle=handle)
        yield
    finally:
        handle.remove()
        for block, moment in before:
            block.at(moment)


def enter(block: Block) -> None:
    """Count a block among the open ones."""
    OPEN[block] = None
    for module in block.model.modules():
        function = module.__dict__.get(FUNCTION)
        if function is not None and not isinstance(function, Checkpointing):
            module.__dict__[FUNCTION] = Checkpointing(function, block.model)


def leave(block: Block) -> None:
    """Count it no longer; with the last on a model, leave the model's modules as they were."""
    OPEN.pop(block, None)
    wrapped = [m for m in block.model.modules() if isinstance(m.__dict__.get(FUNCTION), Checkpointing)]
    in_use = {id(module) for other in [*OPEN] for module in other.model.modules()} if wrapped else set()
    for module in wrapped:
        if id(module) not in in_use:
            module.__dict__[FUNCTION] = module.__dict__[FUNCTION].original
