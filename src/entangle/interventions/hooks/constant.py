"""A constant added at a place, by the shortest way that a hook has."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.interventions.forms import Function
from entangle.models.hooks import Handle, Skip, on_input, on_output, task
from entangle.models.place import Place


def attach_constant(
    place: Place,
    constant: Float[Tensor, " d"],
    long_way: Function,
    tally: Callable[[Tensor], None] | None,
    *,
    skip: Skip,
    handle: Handle,
) -> None:
    """What `attach` of `long_way` does, for one that adds `constant` and counts with `tally`.

    In a small model the time goes into Python, so a call of the module with its tensor first, where and as the constant
    was last needed, costs one addition; any other call goes the long way.

    Args:
        place: One whose module is called once a layer with `[batch pos size]`.
        constant: What is added.
        long_way: The same, for any call.
        tally: Called with each tensor after the short way; `None` to count nothing.
        skip: Tells at a call that it is none of the block's; see `presence`.
        handle: What to add the hook to.
    """
    size = place.size
    vector, dtype = constant, None

    def far(x: Tensor) -> Tensor:
        nonlocal vector, dtype
        with torch.inference_mode(False):  # it may be needed with gradients later
            vector, dtype = constant.detach().to(x.device, x.dtype), x.dtype
        edited = long_way(x)
        if edited.shape != x.shape:
            raise EntangleError(
                f"{place.site} in layer {place.layer} has {size} numbers a token, but {place.path} was run with a "
                f"tensor of shape {tuple(x.shape)}: build the Atlas on the model as it runs now"
            )
        return edited

    def near(x: Any) -> Tensor | None:
        if type(x) is not Tensor or x.dtype is not dtype or x.size(-1) != size:
            return None
        try:
            edited = x + vector
        except RuntimeError:  # on another device
            return None
        if tally is not None:
            tally(x)
        return edited

    # Written out where there is nothing to count: a function call is a third of the cost of all this. For the same
    # reason `skip` is asked only where it could say yes: by another thread or task, or where there may be a backward.
    thread, grad = get_ident() if task() is None else 0, torch.is_grad_enabled

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None or ((get_ident() != thread or grad() or module.training) and skip()):
            return None
        if args:
            x = args[0]
            if type(x) is Tensor and x.dtype is dtype and x.size(-1) == size:
                try:
                    return (x + vector, *args[1:]), kwargs
                except RuntimeError:
                    pass
        return on_input(far, place, args, kwargs)

    def before_counted(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None or ((get_ident() != thread or grad() or module.training) and skip()):
            return None
        edited = near(args[0]) if args else None
        return on_input(far, place, args, kwargs) if edited is None else ((edited, *args[1:]), kwargs)

    def after(module: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
        if (get_ident() != thread or grad() or module.training) and skip():
            return None
        edited = near(output)
        return on_output(far, place, output) if edited is None else edited

    content = getattr(long_way, "content", None)
    if place.side == "output":
        handle.put(place.module, after, after=True, content=content)
    else:
        handle.put(place.module, before if tally is None else before_counted, after=False, content=content)
