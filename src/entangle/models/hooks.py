"""Reading and writing a tensor inside a running model: one hook, for capture and for steering alike."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from threading import get_ident
from typing import Any

from torch import Size, Tensor, nn

from entangle.errors import EntangleError
from entangle.models.place import Place

HookFunction = Callable[[Tensor], Tensor | None]
Skip = Callable[[], bool]
# transformers records hidden states with hooks that it installs at the first request and leaves for good.
RECORDERS = "transformers.utils.output_capturing"
_KEYS = count(-1, -1)  # of our hooks among a module's; torch counts its own from 0 up


class Ours(functools.partial[Any]):
    """A hook of this library, as it lies on a module: told from others', and left behind by copies and pickles."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _none, ()


def _none() -> HookFunction:
    return nothing


def nothing(*_: Any, **__: Any) -> None:
    """What a hook of this library is in a copy of its module."""


class Handle:
    """Hooks that one owner put on modules, to be taken away with `remove()`.

    Example:
        >>> atlas, lengths = en.Atlas(model), []
        >>> handle = en.models.attach(atlas.place("z", 0), lambda z: lengths.append(z.shape[1]))
        >>> _ = model(torch.tensor([[1, 2, 3]]))
        >>> handle.remove()
        >>> _ = model(torch.tensor([[1, 2, 3, 4]]))  # no longer seen
        >>> lengths
        [3]
    """

    def __init__(self) -> None:
        self._put: list[tuple[nn.Module, int]] = []
        self._orders: dict[nn.Module, list[int]] = {}  # of hooks, before recorders were moved

    def put(
        self,
        module: nn.Module,
        function: Callable[..., Any],
        *,
        after: bool,
        first: bool = False,
        always: bool = False,
        content: Callable[[], Any] | None = None,
    ) -> None:
        """Put a function on a module, before its forward (it is called with keyword arguments too) or after it.

        The hooks by which transformers records hidden states come after it, so that they record what goes on.

        Args:
            module: The module.
            function: The hook.
            after: Whether it runs after the forward.
            first: Whether it runs before the other hooks.
            always: Whether it runs after a forward that failed too.
            content: What it says for the model's fingerprint; `None` of one that changes nothing.
        """
        hooks: Any = module._forward_hooks if after else module._forward_pre_hooks
        recorders = [key for key, hook in [*hooks.items()] if getattr(hook, "__module__", "") == RECORDERS]
        if after and recorders:
            self._orders.setdefault(module, [*hooks])
        key = next(_KEYS)
        self._put.append((module, key))  # before there is a hook, so that an interrupt in between leaves none behind
        # By hand: torch adds the hook before it says how it is called, and another thread may come in between.
        if not after:
            module._forward_pre_hooks_with_kwargs[key] = True
        elif always:
            module._forward_hooks_always_called[key] = True
        hooks[key] = tell(Ours(function), content)
        if first:
            hooks.move_to_end(key, last=False)
        for recorder in recorders:
            hooks.move_to_end(recorder)

    def remove(self) -> None:
        """Take the hooks away; more than once does no harm, and after an interrupt once more ends what was begun."""
        for module, key in self._put:
            for by_key in (
                module._forward_pre_hooks,
                module._forward_hooks,
                module._forward_pre_hooks_with_kwargs,
                module._forward_hooks_always_called,
            ):
                by_key.pop(key, None)
        for module, order in self._orders.items():
            hooks: Any = module._forward_hooks
            if not any(isinstance(hook, Ours) for hook in [*hooks.values()]):
                for key in [*order, *(key for key in [*hooks] if key not in order)]:
                    if key in hooks:
                        hooks.move_to_end(key)


def tell(hook: Any, content: Callable[[], Any] | None) -> Any:
    """The hook, which says for the model's fingerprint what it does; `None` of one that changes nothing.

    Example:
        >>> hook = en.models.tell(lambda *_: None, lambda: ("z", 0))
        >>> hook.content()
        ('z', 0)
    """
    hook.content = content
    return hook


def elsewhere() -> Skip:
    """What tells, at a later call, that it is made by another thread or asyncio task than the one that asks now.

    Example:
        >>> from threading import Thread
        >>> not_here, answers = en.models.elsewhere(), []
        >>> other = Thread(target=lambda: answers.append(not_here()))
        >>> other.start()
        >>> other.join()
        >>> not_here(), answers
        (False, [True])
    """
    thread, mine = get_ident(), task()
    if mine is None:
        return lambda: get_ident() != thread
    return lambda: get_ident() != thread or task() is not mine


def task() -> object:
    """The asyncio task that runs in this thread, if one does.

    Example:
        >>> en.models.task() is None  # no asyncio task runs here
        True
    """
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None


def attach(
    place: Place, fn: HookFunction, *, first: bool = False, skip: Skip | None = None, handle: Handle | None = None
) -> Handle:
    """Let `fn` see, and if it returns a tensor replace, the tensor at `place` at every call of its module.

    The tensor is found whether the model passes it by position or by keyword, and returns it alone, in a tuple or in a
    HuggingFace output. Functions attached to one place run in the order they were attached, each on the result of the
    one before; hidden states that transformers records are what they made. Copies and pickles of the module do without
    them.

    Args:
        place: Where, from `Atlas.place(site, layer)`.
        fn: Called with the tensor (`[batch pos size]`; under `generate` with a cache, `pos` is 1 after the prompt), on
            the device it lives on. `None` leaves it as it is.
        first: Whether to run before the functions that are attached there already.
        skip: Asked at each call; where it says True, the call is not for `fn`. By default every call is, whichever
            thread makes it.
        handle: One to add to.

    Returns:
        A handle; `handle.remove()` takes the function away.

    Raises:
        EntangleError: When the model runs, if the module is called without a tensor of the place's size, `fn` returns
            one of another shape, or a module that is several layers is called where its turn is not known.

    Example:
        >>> place = en.Atlas(model).place("resid_post", 0)
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> before = model(ids).logits
        >>> handle = en.models.attach(place, lambda x: torch.zeros_like(x))
        >>> bool(torch.allclose(model(ids).logits, before))
        False
        >>> handle.remove()
        >>> bool(torch.allclose(model(ids).logits, before))
        True
    """
    handle = Handle() if handle is None else handle
    apply = _laid_out(place, fn, handle, skip)
    mine = _turns(place, handle, skip)

    # kwargs are missing where another thread's call meets a hook that is being put on or taken off.
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> tuple[Any, Any] | None:
        if kwargs is None or (skip is not None and skip()):
            return None
        return on_input(apply, place, args, kwargs) if mine is None or mine() else None

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if skip is not None and skip():
            return None
        return on_output(apply, place, output) if mine is None or mine() else None

    content = getattr(fn, "content", None) or (lambda: (place.site, place.layer, place.path, fn))
    hook, after_it = (before, False) if place.side == "input" else (after, True)
    handle.put(place.module, hook, after=after_it, first=first, content=content)
    return handle


def on_input(
    fn: HookFunction, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A call's arguments with `fn` done to the tensor of the place's size among them; `None` where it changes nothing.

    Raises:
        EntangleError: If there is no such tensor.

    Example:
        >>> place = en.Atlas(model).place("z", 0)
        >>> x = torch.ones(1, 2, 32)
        >>> args, kwargs = en.models.on_input(lambda z: 2 * z, place, (x,), {})
        >>> args[0].mean()
        tensor(2.)
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
        EntangleError: If there is no such tensor.

    Example:
        >>> place = en.Atlas(model).place("resid_post", 0)
        >>> x = torch.ones(1, 2, 32)
        >>> hidden, cache = en.models.on_output(lambda x: 2 * x, place, (x, None))
        >>> hidden.mean(), cache
        (tensor(2.), None)
    """
    if isinstance(output, Tensor):
        return fn(output)
    key = _tensor_key(items_of(output), place)
    new = fn(output[key])
    return None if new is None else replaced_in(output, key, new)


@contextmanager
def hooked(places_and_fns: Iterable[tuple[Place, HookFunction]], *, mine: bool = False) -> Iterator[Handle]:
    """Attach every `(place, fn)` for the length of a `with` block; whatever ends it, Ctrl-C included, removes all.

    Args:
        places_and_fns: Places and what to do there.
        mine: Whether to leave alone what other threads and asyncio tasks run meanwhile.

    Example:
        >>> place, norms = en.Atlas(model).place("resid_post", 1), []
        >>> with en.models.hooked([(place, lambda x: norms.append(x.norm(dim=-1)))]):
        ...     _ = model(torch.tensor([[1, 2, 3]]))
        ...
        >>> norms[0].shape, en.models.is_hooked(model)
        (torch.Size([1, 3]), False)
    """
    handle = Handle()
    try:
        try:
            skip = elsewhere() if mine else None
            for place, fn in places_and_fns:
                attach(place, fn, skip=skip, handle=handle)
            yield handle
        finally:
            handle.remove()
    finally:
        handle.remove()  # what an interrupt of the first left


def _laid_out(place: Place, fn: HookFunction, handle: Handle, skip: Skip | None) -> HookFunction:
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

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
            if kwargs is None or (skip is not None and skip()):
                return
            streams = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point())
            tokens[:] = [next(streams).shape[:-1]]

        def flattened(x: Tensor) -> Tensor | None:
            new = checked(x.reshape(*tokens[0], place.size))
            return None if new is None else new.reshape(x.shape)

        handle.put(place.block, note, after=False)
        return flattened
    return checked


def _turns(place: Place, handle: Handle, skip: Skip | None) -> Callable[[], bool] | None:
    """Tells at each call of a module that is several layers whether it is the one meant; `None` where every call is."""
    if place.turn is None or place.within is None:
        return None
    n_calls: int | None = None

    def restart(*_: Any, **__: Any) -> None:
        nonlocal n_calls
        n_calls = n_calls if skip is not None and skip() else 0

    def over(*_: Any) -> None:
        nonlocal n_calls
        n_calls = n_calls if skip is not None and skip() else None

    def mine() -> bool:
        nonlocal n_calls
        if n_calls is None:
            raise EntangleError(
                f"{place.path} is several layers in turn, and was called by itself, so which of them it is cannot be "
                f"told: call the {type(place.within).__name__} that runs them all, or the model"
            )
        n_calls += 1
        return n_calls - 1 == place.turn

    handle.put(place.within, restart, after=False)
    handle.put(place.within, over, after=True, always=True)
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


def items_of(output: Any) -> list[tuple[Any, Any]]:
    """What a module returned, part by part: each one's key or place, and the part."""
    if isinstance(output, Mapping):
        return list(output.items())
    if isinstance(output, Sequence):
        return list(enumerate(output))
    return []


def replaced_in(output: Any, key: Any, new: Tensor) -> Any:
    """The same with another tensor in one place; what was given stays as it was."""
    if isinstance(output, Mapping):
        return type(output)(**{**output, key: new})
    values = [new if i == key else value for i, value in enumerate(output)]
    if hasattr(output, "_fields"):
        return type(output)(*values)
    return type(output)(values)
