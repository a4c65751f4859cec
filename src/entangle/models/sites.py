"""Which tensors of one block are the sites: told by their values and by what depends on what, never by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from entangle.models.trace import Call, Kernel, Trace

SITES = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")
Side = Literal["input", "output"]


@dataclass(frozen=True)
class Found:
    """A site of one block: the input or output of the module at `path`, `size` numbers a token."""

    path: str
    side: Side
    size: int
    n_heads: int | None = None
    d_head: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Missing:
    """Why a block does not have a site, or why it could not be confirmed."""

    reason: str


def find_sites(trace: Trace, block: Call) -> dict[str, Found | Missing]:
    """Every site of the block whose call is given, each found and confirmed or missing with a reason.

    - `resid_pre`, `resid_post`: what goes into the block and what comes out, of one shape.
    - `z`: the input of the first linear module that depends on what the attention kernel returned: equal to it value
      for value, or a function of it that keeps positions apart, and heads (a gate) or not (a norm over all heads); the
      note says which.
    - `resid_mid`: a module's input that is `resid_pre` plus (a multiple of) what came out of the attention.
    - `mlp_out`: what, added to the residual after attention, gives the output of the block.
    - `mlp_post`: the input of the one linear module whose output is `mlp_out`.
    """
    stream = _residual_stream(block)
    if stream is None:
        reason = "the block does not take and return one tensor of the same shape"
        return {site: Missing(reason) for site in SITES}
    pre, post = stream
    size = pre.shape[-1]
    calls = trace.within(block)
    found: dict[str, Found | Missing] = {
        "resid_pre": Found(block.path, "input", size),
        "resid_post": Found(block.path, "output", size),
    }

    projection, z = _find_z(trace.kernels_within(block), calls)
    found["z"] = z
    if projection is None:
        found["attn_out"] = Missing("without z, the attention's output projection is unknown")
        found["resid_mid"] = Missing("without the attention's output projection, where attention ends is unknown")
        found["mlp_out"], found["mlp_post"] = _find_mlp(calls, [pre], post, after=block.start)
        return found
    found["attn_out"] = Found(projection.path, "output", projection.outputs[0].shape[-1])

    middle, after_attention = _find_middle(calls, projection, pre)
    found["resid_mid"] = middle
    start = projection.end if isinstance(middle, Found) else block.start
    rest = [call for call in calls if not _contains(call, projection) and call is not projection]
    found["mlp_out"], found["mlp_post"] = _find_mlp(rest, after_attention, post, after=start)
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one linear map: `nn.Linear`, a quantised or adapted stand-in for it, or GPT-2's `Conv1D`."""
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    return isinstance(getattr(module, "in_features", None), int) and isinstance(
        getattr(module, "out_features", None), int
    )


def _residual_stream(block: Call) -> tuple[Tensor, Tensor] | None:
    for x in block.inputs:
        for y in block.outputs[:1]:
            if x.shape == y.shape and x.ndim >= 2:
                return x.detach(), y
    return None


def _find_z(kernels: list[Kernel], calls: list[Call]) -> tuple[Call | None, Found | Missing]:
    if not kernels:
        return None, Missing("no attention kernel ran in this block: a recurrent, convolutional or other kind of layer")
    kernel = kernels[0]
    for call in calls:
        if call.start < kernel.time or not is_linear(call.module) or not call.inputs:
            continue
        if _gradient(call.inputs[0].sum(), kernel) is None:
            continue
        layout = _head_layout(kernel, call.inputs[0])
        if isinstance(layout, Missing):
            return None, layout
        n_heads, note = layout
        projection = _outermost_adapter(call)
        size = call.inputs[0].shape[-1]
        return projection, Found(projection.path, "input", size, n_heads, size // n_heads, note)
    return None, Missing("the attention's result reaches no linear module, so there is no output projection to hook")


def _head_layout(kernel: Kernel, z: Tensor) -> tuple[int, str] | Missing:
    """The number of heads in `z`, and how it differs from what the kernel returned."""
    layouts = _layouts(kernel.output, batch=z.shape[0])
    layouts = [layout for layout in layouts if layout(kernel.output).shape[:2] == z.shape[:2]]
    for layout in layouts:
        heads = layout(kernel.output)
        if torch.equal(heads.flatten(2), z):
            return heads.shape[2], ""
    for layout in layouts:
        n_heads = layout(kernel.output).shape[2]
        if z.shape[-1] % n_heads == 0:
            note = _kept_apart(kernel, layout, z.reshape(*z.shape[:-1], n_heads, -1))
            if note is not None:
                return n_heads, note
    return Missing("what the output projection receives is not the attention's result, head by head")


def _layouts(x: Tensor, *, batch: int) -> list[Callable[[Tensor], Tensor]]:
    """The ways from how a kernel may have laid out its result to `[batch pos head d_head]`."""
    if x.ndim == 4:
        return [lambda x: x.transpose(1, 2), lambda x: x]
    if x.ndim == 3 and x.shape[0] % batch == 0:
        return [lambda x: x.unflatten(0, (batch, -1)).transpose(1, 2)]
    return []


def _kept_apart(kernel: Kernel, layout: Callable[[Tensor], Tensor], z: Tensor) -> str | None:
    """How a head of `z` (`[batch pos head d_head]`) depends on the kernel's result; `None` if on other positions."""
    position, head = z.shape[1] - 1, z.shape[2] - 1
    gradient = _gradient(z[0, position, head].square().sum(), kernel)
    if gradient is None:
        return None
    support = (layout(gradient) != 0).any(-1)
    here = support[0, position].clone()
    if not here[head] or support.sum() > here.sum():
        return None
    return "gated or normed by head after attention" if here.sum() == 1 else "normed across heads after attention"


def _gradient(value: Tensor, kernel: Kernel) -> Tensor | None:
    if not value.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(value, kernel.output, retain_graph=True, allow_unused=True)
    return gradient


def _outermost_adapter(call: Call) -> Call:
    """The adapter (such as LoRA's) that wraps the linear module and receives the same input, or the call itself."""
    while call.parent is not None and getattr(call.parent.module, "base_layer", None) is call.module:
        call = call.parent
    return call


def _find_middle(calls: list[Call], projection: Call, pre: Tensor) -> tuple[Found | Missing, list[Tensor]]:
    """`resid_mid`, and the tensors that the MLP's output may have been added to."""
    contributions = [c for c in calls if c is projection or _contains(c, projection) or c.start > projection.end]
    for call in calls:
        if call.start < projection.end:
            continue
        for x in call.inputs:
            if x.shape != pre.shape:
                continue
            earlier = (c for c in contributions if c.end < call.start)
            if any(_explains(y, x.detach(), pre) for c in earlier for y in c.outputs):
                after = [x.detach(), *(y for y in call.outputs if y.shape == pre.shape)]
                return Found(call.path, "input", pre.shape[-1]), after
    reason = (
        "no module receives the residual between attention and MLP: "
        "the two run in parallel, or the sum is not a module's input"
    )
    sums = [pre + y for y in projection.outputs if y.shape == pre.shape]
    return Missing(reason), [*sums, pre]


def _find_mlp(
    calls: list[Call], bases: list[Tensor], post: Tensor, *, after: int
) -> tuple[Found | Missing, Found | Missing]:
    calls = [call for call in calls if call.start > after]
    # A block that ends in a norm returns norm(base + mlp): look at what went into the norm as well.
    last = next((call for call in reversed(calls) if any(_same(y, post) for y in call.outputs)), None)
    targets = [post] if last is None else [post, *(x.detach() for x in last.inputs if x.shape == post.shape)]
    for target in targets:
        for base in bases:
            for call in calls:
                if call.outputs and _explains(call.outputs[0], target, base):
                    source = _linear_source(call, calls)
                    if source is not None:
                        return Found(source.path, "output", post.shape[-1]), _find_neurons(source, calls)
    missing = Missing("no module's output, added to the residual, gives the output of the block")
    return missing, Missing("without mlp_out, the MLP's down projection is unknown")


def _linear_source(call: Call, calls: list[Call]) -> Call | None:
    """Step back over norms, scales and dropouts to the module that holds the linear maps."""
    while not (is_linear(call.module) or any(is_linear(m) for m in call.module.modules())):
        earlier = [c for c in calls if c.end < call.start and c.outputs and call.inputs]
        source = next((c for c in earlier if _same(c.outputs[0], call.inputs[0])), None)
        if source is None:
            return None
        call = source
    return call


def _find_neurons(mlp: Call, calls: list[Call]) -> Found | Missing:
    inner = [call for call in calls if call is mlp or call.inside(mlp)]
    for call in inner:
        if is_linear(call.module) and call.inputs and call.outputs and _same(call.outputs[0], mlp.outputs[0]):
            down = _outermost_adapter(call)
            return Found(down.path, "input", call.inputs[0].shape[-1])
    return Missing("no single down projection gives the MLP's output: a mixture of experts, or a sum of several")


def _contains(call: Call, other: Call) -> bool:
    return other.inside(call)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.detach(), b.detach())


def _explains(y: Tensor, total: Tensor, base: Tensor) -> bool:
    """Whether `total` is `base` plus a multiple of `y`, up to the rounding of the sum."""
    if y.shape != total.shape or base.shape != total.shape or base.device != total.device or y.device != total.device:
        return False
    difference, y = (total - base).double(), y.double()
    power = y.square().sum()
    if power == 0 or not torch.isfinite(power):
        return False
    scale = (difference * y).sum() / power
    tolerance = 8 * torch.finfo(total.dtype).eps * (total.abs() + base.abs() + (scale * y).abs())
    return bool(((difference - scale * y).abs() <= tolerance + 1e-30).all() and scale.abs() > 1e-3)
