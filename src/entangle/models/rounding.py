"""How far rounding alone moves what a model computes: Monte Carlo arithmetic (Parker, 1997) on its modules' results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def rounded_at_random(model: nn.Module, seed: int) -> Iterator[None]:
    """Move every number that a module without children returns by up to one unit in its last place, at random.

    A sum taken in another order may round to a neighbouring number as well; so what differs between two such runs is
    what no comparison in this data type can tell from an error.

    Example:
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> with en.models.rounded_at_random(model, seed=0):
        ...     other = model(ids).logits
        ...
        >>> 0 < (other - model(ids).logits).abs().max().item() < 1e-3
        True
    """
    generator = torch.Generator().manual_seed(seed)

    def moved(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        by = torch.empty(x.shape).uniform_(-1, 1, generator=generator).to(x.device)
        new = (x.float() * (1 + torch.finfo(x.dtype).eps * by)).to(x.dtype)
        return torch.where(new.isfinite(), new, x)

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return moved(output)
        return tuple(moved(x) for x in output) if type(output) is tuple else None

    with ExitStack() as stack:
        for module in model.modules():
            if not any(True for _ in module.children()):
                stack.callback(module.register_forward_hook(after).remove)
        yield
