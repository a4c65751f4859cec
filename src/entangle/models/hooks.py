"""Reading and writing a tensor inside a running model: one hook, for capture and for steering alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Size, Tensor, nn
from torch.utils.hooks import RemovableHandle

from entangle.errors import EntangleError
from entangle.models.place import Place

HookFunction = Callable[[Tensor], Tensor | None]


class Handle:
    """What `attach` did, to be undone with `remove()`."""

    def __init__(self, *handles: RemovableHandle) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Take the function away; more than once does no harm."""
        for handle in self._handles:
            handle.remove()


def attach(place: Place, fn: HookFunction, *, first: bool = False) -> Handle:
    """Let `fn` see, and if it returns a tensor replace, the tensor at `place` at every call of its module.

    The tensor is found whether the model passes it by position or by keyword, and returns it alone, in a tuple or in a
    HuggingFace output. Functions attached to one place run in the order they were attached, each on the result of the
    one before.

    Args:
        place: where, from `Atlas.place(site, layer)`.
        fn: called with the tensor (`[batch pos size]`; under `generate` with a cache, `pos` is 1 after the prompt), on
            the device it lives on. `None` leaves it as it is.
        first: whether to run before the functions that are attached there already.

    Returns:
        A handle; `handle.remove()` takes the function away.

    Raises:
        EntangleError: when the model runs, if the module is called without a tensor of the place's size, or `fn`
            returns one of another shape.
    """
    handles: list[RemovableHandle] = []
    apply = _laid_out(place, fn, handles)
    mine = _turns(place, handles)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        return on_input(apply, place, args, kwargs) if mine is None or mine() else None

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return on_output(apply, place, output) if mine is None or mine() else None

    content = getattr(fn, "content", None) or (lambda: (place.site, place.layer, place.path, fn))
    if place.side == "input":
        handles.append(place.module.register_forward_pre_hook(tell(before, content), with_kwargs=True, prepend=first))
    else:
        handles.append(place.module.register_forward_hook(tell(after, content), prepend=first))
    return Handle(*handles)


def tell(hook: Any, content: Callable[[], Any] | None) -> Any:
    """The hook, which says for the model's fingerprint what it does; `None` of one that changes nothing."""
    hook.content = content
    return hook


def on_input(
    fn: HookFunction, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A call's arguments with `fn` done to the tensor of the place's size among them; `None` where it changes nothing.

    Raises:
        EntangleError: if there is no such tensor.
    """
    if args and _is_it(args[0], place):
        new = fn(args[0])
        return None if new is None else ((new, *args[1:]), kwargs)
    key = _tensor_key([*enumerate(args), *kwargs.items()], place)
    new = fn(args[key] if isinstance(key, int) else kwargs[key])
    if new is None:
        return None
    if isinstance(key, int):
        return (*args[:key], new, *args[key + 1 :]), kwargs
    return args, {**kwargs, key: new}


def on_output(fn: HookFunction, place: Place, output: Any) -> Any:
    """A module's output with `fn` done to the tensor of the place's size in it; `None` where it changes nothing.

    Raises:
        EntangleError: if there is no such tensor.
    """
    if isinstance(output, Tensor):
        return fn(output)
    key = _tensor_key(_items(output), place)
    new = fn(output[key])
    return None if new is None else _replaced(output, key, new)


@contextmanager
def hooked(places_and_fns: Iterable[tuple[Place, HookFunction]]) -> Iterator[list[Handle]]:
    """Attach every `(place, fn)` for the length of a `with` block; whatever ends it, Ctrl-C included, removes all."""
    handles: list[Handle] = []
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


def _laid_out(place: Place, fn: HookFunction, handles: list[RemovableHandle]) -> HookFunction:
    """`fn` on `[batch pos size]`, whatever the layout of the tensor at the place."""

    def checked(x: Tensor) -> Tensor | None:
        new = fn(x)
        if new is not None and new.shape != x.shape:
            raise EntangleError(
                f"a function attached to {place.site} in layer {place.layer} must return a tensor of shape "
                f"{tuple(x.shape)}, but returned {tuple(new.shape)}"
            )
        return new

    if place.layout == "pos batch":

        def transposed(x: Tensor) -> Tensor | None:
            new = checked(x.transpose(0, 1))
            return None if new is None else new.transpose(0, 1)

        return transposed
    if place.layout == "batch*pos" and place.block is not None:
        tokens: list[Size] = []

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            streams = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point())
            tokens[:] = [next(streams).shape[:-1]]

        def flattened(x: Tensor) -> Tensor | None:
            new = checked(x.reshape(*tokens[0], place.size))
            return None if new is None else new.reshape(x.shape)

        handles.append(place.block.register_forward_pre_hook(tell(note, None), with_kwargs=True))
        return flattened
    return checked


def _turns(place: Place, handles: list[RemovableHandle]) -> Callable[[], bool] | None:
    """Tells at each call of a module that is several layers whether it is the one meant; `None` where every call is."""
    if place.turn is None or place.root is None:
        return None
    n_calls = 0

    def restart(*_: Any) -> None:
        nonlocal n_calls
        n_calls = 0

    def mine() -> bool:
        nonlocal n_calls
        n_calls += 1
        return n_calls - 1 == place.turn

    handles.append(place.root.register_forward_pre_hook(tell(restart, None)))
    return mine


def _is_it(value: Any, place: Place) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[-1] == place.size and value.is_floating_point()


def _tensor_key(items: Sequence[tuple[Any, Any]], place: Place) -> Any:
    for key, value in items:
        if _is_it(value, place):
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
