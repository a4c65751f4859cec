"""A probe forward: a few tokens through the model while every module call and attention kernel is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SOFTMAXES: set[Callable[..., Any]] = {torch.softmax, F.softmax, Tensor.softmax}
# What may happen to attention weights between the softmax and the values.
PASSES: set[Callable[..., Any]] = {
    F.dropout, torch.dropout, Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.half, Tensor.bfloat16,
    Tensor.view, Tensor.reshape, Tensor.masked_fill, torch.masked_fill, Tensor.mul, torch.mul, Tensor.__mul__,
    Tensor.contiguous, Tensor.clone, Tensor.__getitem__, Tensor.nan_to_num, torch.nan_to_num, Tensor.unsqueeze,
    Tensor.squeeze,
}  # fmt: skip
PRODUCTS: set[Callable[..., Any]] = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}


@dataclass
class Call:
    """One call of one module: when it ran, and the floating-point tensors that went in and came out.

    Attributes:
        entry: Of a module in a list, the inputs as nodes of the autograd graph that all of its work passes through.
    """

    path: str
    module: nn.Module
    start: int
    parent: Call | None
    inputs: list[Tensor]
    outputs: list[Tensor] = field(default_factory=list)
    end: int = -1
    entry: list[Tensor] = field(default_factory=list)

    def inside(self, other: Call) -> bool:
        """Whether this call happened during `other`."""
        return other.start < self.start and self.end <= other.end


@dataclass
class Kernel:
    """What one attention kernel returned, made a leaf of the autograd graph so that whatever uses it can be told.

    Attributes:
        time: When it ran.
        output: The leaf.
        source: The same numbers, as the graph before the kernel gives them.
    """

    time: int
    output: Tensor
    source: Tensor


@dataclass
class Trace:
    """All module calls in the order they began, and all attention kernels.

    Attributes:
        batch: Number of examples that were run.
        fused: When `multi_head_attention_forward` ran, which is kernel and output projection in one.
    """

    batch: int
    calls: list[Call] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    fused: list[int] = field(default_factory=list)

    def within(self, call: Call) -> list[Call]:
        """The calls made during `call`, in the order they began."""
        return [other for other in self.calls if other.inside(call)]

    def kernels_within(self, call: Call) -> list[Kernel]:
        """The attention kernels that ran during `call`."""
        return [kernel for kernel in self.kernels if call.start < kernel.time < call.end]


class _Clock:
    def __init__(self) -> None:
        self.now = 0

    def tick(self) -> int:
        self.now += 1
        return self.now


class _KernelWatch(TorchFunctionMode):
    """Recognises attention as it runs: `scaled_dot_product_attention`, or a softmax whose result multiplies values."""

    def __init__(self, trace: Trace, clock: _Clock) -> None:
        super().__init__()
        self.trace = trace
        self.clock = clock
        self.weights: dict[int, Tensor] = {}  # by id; the tensors are kept, so that no id is used again

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return self._kernel(out)
        if func is F.multi_head_attention_forward:
            self.trace.fused.append(self.clock.tick())
        if func in SOFTMAXES or (func in PASSES and self._is_weights(args[0]) and isinstance(out, Tensor)):
            self.weights[id(out)] = out
        elif (func in PRODUCTS and self._is_weights(args[0])) or (
            func is torch.einsum and any(self._is_weights(arg) for arg in args[1:])
        ):
            return self._kernel(out)
        return out

    def _is_weights(self, x: Any) -> bool:
        return isinstance(x, Tensor) and self.weights.get(id(x)) is x

    def _kernel(self, out: Tensor) -> Tensor:
        leaf = out.detach().clone().requires_grad_()
        self.trace.kernels.append(Kernel(self.clock.tick(), leaf, out))
        return leaf.clone()  # not the leaf itself: a model may write into it


# Modules whose dropout is off, and for whom. No lock guards it, which an interrupt could leave closed.
_EVALUATING: WeakKeyDictionary[nn.Module, set[object]] = WeakKeyDictionary()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off for the length of the block; each module's own training flag comes back when the last block that
    asked, in whatever thread, has ended.

    Example:
        >>> layer = torch.nn.Dropout(0.5).train()
        >>> with en.models.evaluating(layer):
        ...     layer(torch.ones(3))
        ...
        tensor([1., 1., 1.])
        >>> layer.training
        True
    """
    me, mine = object(), [module for module in model.modules() if module.training or module in _EVALUATING]
    try:
        try:
            for module in mine:
                _EVALUATING.setdefault(module, set()).add(me)
                module.training = False
            yield
        finally:
            _train_again(mine, me)
    finally:
        _train_again(mine, me)  # what an interrupt left


def _train_again(modules: Sequence[nn.Module], me: object) -> None:
    for module in modules:
        others = _EVALUATING.get(module)
        if others is None or me not in others:
            continue
        if len(others) == 1:
            module.training = True
        others.discard(me)
        if others:
            module.training = False
        else:
            _EVALUATING.pop(module, None)


def trace(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    """Run the model once on `inputs` and record what happened; the model is left as it was."""
    batch = next((x.shape[0] for x in inputs.values() if isinstance(x, Tensor) and x.ndim), 1)
    record, clock = Trace(batch), _Clock()
    open_calls: list[Call] = []

    in_lists = {id(child) for m in model.modules() if isinstance(m, nn.ModuleList) for child in m}
    thread = get_ident()

    def enter(path: str) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
            if get_ident() != thread or kwargs is None:
                return None
            parent = open_calls[-1] if open_calls else None
            tensors = [x.clone() for x in floating_tensors([*args, *kwargs.values()])]
            call = Call(path, module, clock.tick(), parent, tensors)
            record.calls.append(call)
            open_calls.append(call)
            if id(module) not in in_lists:
                return None
            return tuple(_entered(x, call) for x in args), {key: _entered(x, call) for key, x in kwargs.items()}

        return before

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if get_ident() != thread:
            return
        call = open_calls.pop()
        call.outputs = [x.detach().clone() for x in floating_tensors(output)]
        call.end = clock.tick()

    with ExitStack() as stack:
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(enter(path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_KernelWatch(record, clock))
        model(**inputs)
    return record


def _entered(x: Any, call: Call) -> Any:
    """An argument as the module is to use it: a floating-point tensor as what follows from a node that is kept."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    node = x.clone() if x.requires_grad else x.detach().clone().requires_grad_()
    call.entry.append(node)
    return node.clone()  # not the node itself: the module may write into it


def floating_tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors in a module's arguments or result: alone, or in a tuple, list or mapping.

    Example:
        >>> [x.shape for x in en.models.floating_tensors((torch.zeros(2), None, torch.zeros(3, dtype=torch.long)))]
        [torch.Size([2])]
    """
    if isinstance(value, Tensor):
        value = [value]
    elif isinstance(value, Mapping):
        value = list(value.values())
    elif not isinstance(value, (tuple, list)):
        return []
    return [x for x in value if isinstance(x, Tensor) and x.is_floating_point()]


@contextmanager
def no_hook_left(model: nn.Module) -> Iterator[None]:
    """Take away the hooks that transformers installs for good when it is asked for hidden states.

    Example:
        >>> from entangle.models.trace import no_hook_left
        >>> before = len(model.model.layers[0]._forward_hooks)
        >>> with torch.no_grad(), no_hook_left(model):
        ...     states = model(torch.tensor([[1, 2]]), output_hidden_states=True).hidden_states
        >>> len(states), len(model.model.layers[0]._forward_hooks) == before
        (3, True)
    """
    mark = "_output_capturing_hooks_installed"
    before = {module: set(module._forward_hooks) for module in model.modules()}
    marked = {module for module in model.modules() if hasattr(module, mark)}
    try:
        yield
    finally:
        for module in model.modules():
            for key in set(module._forward_hooks) - before[module]:
                del module._forward_hooks[key]
            if hasattr(module, mark) and module not in marked:
                delattr(module, mark)
