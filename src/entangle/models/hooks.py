"""Reading and writing a tensor inside a running model: one hook, for capture and for steering alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from entangle.errors import EntangleError

if TYPE_CHECKING:
    from entangle.models.atlas import Place

HookFunction = Callable[[Tensor], Tensor | None]


def attach(place: Place, fn: HookFunction) -> RemovableHandle:
    """Let `fn` see, and if it returns a tensor replace, the tensor at `place` at every call of its module.

    The tensor is found whether the model passes it by position or by keyword, and returns it alone, in a tuple or in a
    HuggingFace output. Functions attached to one place run in the order they were attached, each on the result of the
    one before.

    Args:
        place: where, from `Atlas.place(site, layer)`.
        fn: called with the tensor (`[batch pos size]`; under `generate` with a cache, `pos` is 1 after the prompt), on
            the device it lives on. `None` leaves it as it is.

    Returns:
        A handle; `handle.remove()` takes the hook away.

    Raises:
        EntangleError: when the model runs, if the module is called without a tensor of the place's size, or `fn`
            returns one of another shape.
    """
    if place.side == "input":

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
            key = _tensor_key([*enumerate(args), *kwargs.items()], place)
            x = args[key] if isinstance(key, int) else kwargs[key]
            new = _call(fn, x, place)
            if new is None:
                return None
            if isinstance(key, int):
                return (*args[:key], new, *args[key + 1 :]), kwargs
            return args, {**kwargs, key: new}

        return place.module.register_forward_pre_hook(before, with_kwargs=True)

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return _call(fn, output, place)
        key = _tensor_key(_items(output), place)
        new = _call(fn, output[key], place)
        return None if new is None else _replaced(output, key, new)

    return place.module.register_forward_hook(after)


@contextmanager
def hooked(places_and_fns: Iterable[tuple[Place, HookFunction]]) -> Iterator[list[RemovableHandle]]:
    """Attach every `(place, fn)` for the length of a `with` block; whatever ends it, Ctrl-C included, removes all."""
    handles: list[RemovableHandle] = []
    try:
        for place, fn in places_and_fns:
            handles.append(attach(place, fn))
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def refuse_compiled(model: nn.Module) -> None:
    """Raise an `EntangleError` if the model, or a part of it, is `torch.compile`d: hooks added later would not run."""
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            part = f"its part {name}" if name else "the model"
            raise EntangleError(
                f"hooks need an uncompiled model, but {part} is torch.compile'd and would ignore them: pass the "
                "original model "
                "(compiled._orig_mod), or bake the edit into the weights first and compile the result"
            )


def _call(fn: HookFunction, x: Tensor, place: Place) -> Tensor | None:
    new = fn(x)
    if new is not None and new.shape != x.shape:
        raise EntangleError(
            f"a function attached to {place.site} in layer {place.layer} must return a tensor of shape "
            f"{tuple(x.shape)}, "
            f"but returned {tuple(new.shape)}"
        )
    return new


def _tensor_key(items: Sequence[tuple[Any, Any]], place: Place) -> Any:
    for key, value in items:
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim and value.shape[-1] == place.size:
            return key
    shapes = [tuple(value.shape) for _, value in items if isinstance(value, Tensor)]
    raise EntangleError(
        f"{place.site} in layer {place.layer} is the {place.side} of {place.path} with last dimension {place.size}, "
        "but the module was "
        f"run with tensors of shape {shapes}: build the Atlas on the model as it runs now"
    )


def _items(output: Any) -> list[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        return list(output.items())
    if isinstance(output, Sequence):
        return list(enumerate(output))
    return []


def _replaced(output: Any, key: Any, new: Tensor) -> Any:
    if isinstance(output, Mapping):
        return type(output)(**{**output, key: new})
    values = [new if i == key else value for i, value in enumerate(output)]
    if hasattr(output, "_fields"):
        return type(output)(*values)
    return type(output)(values)
