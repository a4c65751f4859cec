"""`z` in one block: the linear module that receives the attention's result, and how that is split into heads."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from entangle.models.trace import Call, Kernel

PRODUCT = re.compile("mm|Mm|MatMul|Linear|Convolution")  # in the names of autograd's nodes


@dataclass(frozen=True)
class Projection:
    """The attention's output projection as the probe ran it, the heads of its input, and how that was made."""

    call: Call
    n_heads: int
    note: str


def find_projection(kernels: list[Kernel], calls: list[Call], block: Call) -> Projection | str:
    """The linear module that receives what the block's first attention over tokens returned, or why none is known.

    Its input must equal the kernel's result value for value, or be made from it without a matrix product and position
    by position: head by head (a gate), or over all heads at once (a norm). Values alone would accept what other modules
    receive as well, so two things are asked besides: the kernel's result at one token must depend on what the block
    received at others (a softmax that weighs layers or experts mixes no tokens), and no other linear module may receive
    the same.
    """
    if not kernels:
        return "no attention kernel ran in this block: a recurrent, convolutional or other kind of layer"
    linear = [call for call in calls if is_linear(call.module) and call.inputs]
    for number, kernel in enumerate(kernels):
        # The first that uses it: what comes later in the block may depend on it through the residual stream.
        uses = (call for call in linear if call.start > kernel.time)
        call = next((call for call in uses if _gradient(call.inputs[0].sum(), kernel) is not None), None)
        if call is None:
            return "the attention's result reaches no linear module, so there is no output projection to hook"
        z = call.inputs[0]
        if not mixes_tokens(kernel, kernels[:number], z, block):
            continue
        heads = heads_of(kernel, z)
        if heads is None:
            return "what the output projection receives is not the attention's result, head by head"
        projection = outermost_adapter(call)
        rivals = [other for other in linear if _receives(other, z) and not _one_map(other, projection)]
        if rivals:
            paths = ", ".join([projection.path, *(other.path for other in rivals)])
            return f"the attention's result goes into several linear modules ({paths}), and any may be the projection"
        others = f"{_ordinal(number)} of {len(kernels)} attention kernels of the block" if len(kernels) > 1 else ""
        return Projection(projection, heads[0], "; ".join(filter(None, [heads[1], others])))
    return "no attention kernel ran in this block that mixes tokens: what ran weighs parts of each token alone"


def _ordinal(number: int) -> str:
    return "the first" if number == 0 else f"number {number + 1}"


def _receives(call: Call, z: Tensor) -> bool:
    x = call.inputs[0]
    return x.shape[-1] == z.shape[-1] and x.numel() == z.numel() and torch.equal(x.reshape(-1), z.reshape(-1))


def _one_map(call: Call, projection: Call) -> bool:
    """Whether a call is a part of the projection's: an adapter's, or the linear map that it wraps."""
    return call is projection or call.inside(projection) or call.module is projection.module


def mixes_tokens(kernel: Kernel, earlier: Sequence[Kernel], z: Tensor, block: Call) -> bool:
    """Whether a kernel's result at one token depends on what the block received at another.

    Where the graph does not reach that far (some quantised layers have no gradient) nothing speaks against it.

    Args:
        kernel: The kernel.
        earlier: The kernels of the block before it, which mix none: the graph begins anew at each.
        z: What its result becomes, `[... d]`, which says how the result is laid out.
        block: The block's call.
    """
    alone = False
    if not kernel.source.requires_grad:
        return True
    streams = [(entry, entry) for entry in block.entry if entry.ndim > 1]
    streams += [(leaf.output, laid_out) for leaf in earlier for _, laid_out in streams[:1]]
    for source, reference in streams:
        for layout in _layouts(kernel.source, z):
            tokens = layout(kernel.source).flatten(0, 1).flatten(1)
            if not any(reference.shape[:n].numel() == len(tokens) for n in range(1, reference.ndim)):
                continue
            for token in reversed(range(len(tokens))):  # the last sees the others also where attention is causal
                gradient = _gradient_of(tokens[token].sum(), source)
                if gradient is None:
                    break
                by_token = [gradient] if source is reference else [lay(gradient) for lay in _layouts(source, reference)]
                reached = [int((by.reshape(len(tokens), -1) != 0).any(-1).sum()) for by in by_token]
                if max(reached, default=0) > 1:
                    return True
                alone |= 1 in reached
    return not alone


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one linear map: `nn.Linear`, a quantised or adapted stand-in for it, or GPT-2's `Conv1D`."""
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    return isinstance(getattr(module, "in_features", None), int) and isinstance(
        getattr(module, "out_features", None), int
    )


def outermost_adapter(call: Call) -> Call:
    """The adapter (such as LoRA's) that wraps the linear module and receives the same input, or the call itself."""
    while call.parent is not None and getattr(call.parent.module, "base_layer", None) is call.module:
        call = call.parent
    return call


def heads_of(kernel: Kernel, z: Tensor) -> tuple[int, str] | None:
    """The number of heads in `z`, and how it differs from what the kernel returned."""
    layouts = _layouts(kernel.output, z)
    for layout in layouts:
        heads = layout(kernel.output)
        if torch.equal(heads.flatten(2).reshape(-1), z.reshape(-1)) and z.shape[-1] == heads[0, 0].numel():
            return heads.shape[2], ""
    for layout in layouts:
        n_heads = layout(kernel.output).shape[2]
        if z.shape[-1] % n_heads == 0:
            note = _kept_apart(kernel, layout, z)
            if note is not None:
                return n_heads, note
    return None


def _layouts(x: Tensor, z: Tensor) -> list[Callable[[Tensor], Tensor]]:
    """The ways from how a kernel may have laid out its result to `[batch pos head d_head]`, given `z`."""
    n_tokens = z[..., 0].numel()
    candidates: list[Callable[[Tensor], Tensor]] = []
    if x.ndim == 4:
        candidates = [lambda x: x.transpose(1, 2), lambda x: x]
    elif x.ndim == 3 and z.ndim == 3 and x.shape[0] % z.shape[0] == 0:
        batch = z.shape[0]
        candidates = [lambda x: x.reshape(batch, -1, *x.shape[1:]).transpose(1, 2)]
    return [layout for layout in candidates if layout(x).shape[:2].numel() == n_tokens]


def _kept_apart(kernel: Kernel, layout: Callable[[Tensor], Tensor], z: Tensor) -> str | None:
    """How a head of `z` at one token depends on the kernel's result; `None` if on other tokens, or not on itself."""
    if _mixed_by_matrix(z, kernel):
        return None
    batch, pos, n_heads = layout(kernel.output).shape[:3]
    by_head = z.reshape(batch, pos, n_heads, -1)
    gradient = _gradient(by_head[0, pos - 1, n_heads - 1].square().sum(), kernel)
    if gradient is None:
        return None
    support = (layout(gradient) != 0).any(-1)
    here = support[0, pos - 1]
    if not here[n_heads - 1] or support.sum() > here.sum():
        return None
    if here.sum() == 1:
        return "gated or normed by head after attention"
    return "normed across heads after attention" if here.all() else None  # some heads only: pairs that were combined


def _mixed_by_matrix(z: Tensor, kernel: Kernel) -> bool:
    """Whether a matrix product lies on a way from the kernel's result to `z` in the autograd graph."""
    reaches: dict[Any, bool] = {}

    def depends(node: Any) -> bool:
        if node not in reaches:
            reaches[node] = getattr(node, "variable", None) is kernel.output
            reaches[node] |= any([depends(parent) for parent, _ in node.next_functions if parent is not None])
        return reaches[node]

    depends(z.grad_fn)
    return any(reached and PRODUCT.search(node.name()) for node, reached in reaches.items())


def _gradient(value: Tensor, kernel: Kernel) -> Tensor | None:
    return _gradient_of(value, kernel.output)


def _gradient_of(value: Tensor, source: Tensor) -> Tensor | None:
    if not value.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(value, source, retain_graph=True, allow_unused=True)
    return gradient
