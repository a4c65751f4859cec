"""A constant added at a place, by the shortest way that a hook has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from entangle.errors import EntangleError
from entangle.interventions.forms import Function
from entangle.models.hooks import on_input, on_output, tell
from entangle.models.place import Place


def attach_constant(
    place: Place, constant: Float[Tensor, " d"], long_way: Function, tally: Callable[[Tensor], None] | None
) -> RemovableHandle:
    """What `attach(place, long_way)` does, for a `long_way` that adds `constant` and counts with `tally`.

    In a small model the time goes into Python, so a call of the module with its tensor first, where and as the constant
    was last needed, costs one addition; any other call goes the long way.

    Args:
        place: one whose module is called once a layer with `[batch pos size]`.
        constant: what is added.
        long_way: the same, for any call.
        tally: called with each tensor after the short way; `None` to count nothing.

    Returns:
        The hook's handle.
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

    # Written out where there is nothing to count: a function call is a third of the cost of all this.
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            x = args[0]
            if type(x) is Tensor and x.dtype is dtype and x.size(-1) == size:
                try:
                    return (x + vector, *args[1:]), kwargs
                except RuntimeError:
                    pass
        return on_input(far, place, args, kwargs)

    def before_counted(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        edited = near(args[0]) if args else None
        return on_input(far, place, args, kwargs) if edited is None else ((edited, *args[1:]), kwargs)

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        edited = near(output)
        return on_output(far, place, output) if edited is None else edited

    content = getattr(long_way, "content", None)
    if place.side == "output":
        return place.module.register_forward_hook(tell(after, content))
    hook = before if tally is None else before_counted
    return place.module.register_forward_pre_hook(tell(hook, content), with_kwargs=True)
