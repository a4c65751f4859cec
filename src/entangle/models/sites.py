"""Which tensors of one block are the sites: told by their values and by what depends on what, never by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from entangle.models.heads import Projection, find_projection, is_linear, outermost_adapter
from entangle.models.trace import Call, Trace

SITES = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")
Side = Literal["input", "output"]
Layout = Literal["batch pos", "pos batch", "batch*pos"]


@dataclass(frozen=True)
class Found:
    """A site of one block: the input or output of the module at `path`, `size` numbers per token.

    Attributes:
        path: Name of the module in the model.
        side: Its input or its output.
        size: Last dimension of the tensor.
        layout: Its other dimensions.
        turn: For a module that runs several times in a forward, which of its calls this is.
        within: Then, name of the innermost module one call of which makes them all.
        n_heads: Of `z`.
        note: How `z` differs from what the attention kernel returned.
        followed: Of `attn_out` and `mlp_out`: name of the norm or scale that makes something else of it before it is
            added to the residual stream, if there is one.
        bypassed: Of `resid_mid`: whether the residual stream goes round its module, as where a norm begins the MLP's
            branch, and not through it, as where blocks end their branches in norms (BERT).
    """

    path: str
    side: Side
    size: int
    layout: Layout = "batch pos"
    turn: int | None = None
    within: str = ""
    n_heads: int | None = None
    note: str = ""
    followed: str = ""
    bypassed: bool = True


@dataclass(frozen=True)
class Missing:
    """Why a block does not have a site, or why it could not be confirmed."""

    reason: str


def find_sites(trace: Trace, block: Call) -> dict[str, Found | Missing]:
    """Every site of the block whose call is given, each found and confirmed or missing with a reason.

    - `resid_pre`, `resid_post`: what goes into the block and what comes out, of one shape.
    - `z`, `attn_out`: input and output of the attention's output projection (see `find_projection`).
    - `resid_mid`: a module's input that is `resid_pre` plus (a multiple of) what came out of the attention.
    - `mlp_out`: what, added to the residual after attention, gives the output of the block.
    - `mlp_post`: the input of the one linear module whose output is `mlp_out`.
    """
    return _Block(trace, block).sites()


class _Block:
    """One call of a block, its residual stream, and the calls within it."""

    def __init__(self, trace: Trace, block: Call) -> None:
        self.trace = trace
        self.block = block
        self.calls = trace.within(block)
        self.passed: list[Tensor] = []  # what the module that receives resid_mid makes of it
        outputs = block.outputs[:1]
        self.stream = next(((x.detach(), y) for x in block.inputs for y in outputs if x.shape == y.shape), None)

    def sites(self) -> dict[str, Found | Missing]:
        projection = find_projection(self.trace.kernels_within(self.block), self.calls, self.block)
        if any(self.block.start < time < self.block.end for time in self.trace.fused):
            projection = (
                "attention and its output projection run as one function (torch's multi_head_attention_forward)"
            )
        sites: dict[str, Found | Missing] = {}
        if isinstance(projection, str):
            unknown = Missing(f"where attention ends is unknown, since z is: {projection}")
            sites |= {"z": Missing(projection), "attn_out": unknown, "resid_mid": unknown}
        else:
            call = projection.call
            sites["z"] = self._place(call, "input", call.inputs[0], projection)
            sites["attn_out"] = self._branch(call)
        if self.stream is None or self._layout(self.stream[0]) is None:
            shapes = [tuple(x.shape) for x in self.block.inputs[:1] + self.block.outputs[:1]]
            reason = f"the block does not take and return [batch pos size], but {' and '.join(map(str, shapes))}"
            streams = ("resid_pre", "resid_mid", "mlp_post", "mlp_out", "resid_post")
            return {**dict.fromkeys(streams, Missing(reason)), **sites}
        pre, post = self.stream
        sites["resid_pre"] = self._place(self.block, "input", pre)
        sites["resid_post"] = self._place(self.block, "output", post)
        if isinstance(projection, str):
            sites["mlp_out"], sites["mlp_post"], _ = self._mlp(self.calls, [pre], post)
            return sites
        call = projection.call
        middle, bases = self._middle(call, pre)
        after = call.end if isinstance(middle, Found) else self.block.start
        rest = [
            c for c in self.calls if c.start > after and c is not call and not call.inside(c) and not c.inside(call)
        ]
        sites["mlp_out"], sites["mlp_post"], base = self._mlp(rest, bases, post)
        if isinstance(middle, Found) and middle.bypassed and base is not None:
            middle = replace(middle, bypassed=not any(base is y for y in self.passed))
        sites["resid_mid"] = middle
        return sites

    def _middle(self, projection: Call, pre: Tensor) -> tuple[Found | Missing, list[Tensor]]:
        """`resid_mid`, and the tensors that the MLP's output may have been added to, the likeliest first."""
        middle: Found | Missing | None = None
        bases: list[Tensor] = []
        current, since = [pre], projection.start
        for call in self.calls:
            if call.start < projection.end:
                continue
            for x in call.inputs:
                total = _like(x, pre)
                parts = [c for c in self.calls if c.end < call.start and (c.start >= since or projection.inside(c))]
                base = total if total is None else _base(total, [y for c in parts for y in c.outputs], current)
                if total is None or base is None:
                    continue
                made = [y for y in (_like(y, pre) for y in call.outputs) if y is not None]
                if middle is None:
                    middle, self.passed = self._place(call, "input", x), made
                elif isinstance(middle, Found) and any(base is y for y in self.passed):
                    middle = replace(middle, bypassed=False)
                # What comes next, a decoder's cross-attention or the MLP, adds to this sum or to the norm of it.
                current = [total, *made]
                bases, since = [*current, *bases], call.start
                break
        if middle is not None:
            return middle, bases
        reason = (
            "no module receives the residual between attention and MLP: "
            "the two run in parallel, or the sum is not a module's input"
        )
        attention = [c for c in self.calls if c is projection or projection.inside(c) or c.start > projection.end]
        sums = (_like(y, pre) for c in attention for y in c.outputs)
        return Missing(reason), [*(pre + y for y in sums if y is not None), pre]

    def _mlp(
        self, calls: list[Call], bases: list[Tensor], post: Tensor
    ) -> tuple[Found | Missing, Found | Missing, Tensor | None]:
        """`mlp_out` and `mlp_post`, among the calls that may be the MLP's, and what it is added to."""
        # A block that ends in a norm returns norm(base + mlp): look at what went into the norm as well.
        last = next((c for c in reversed(calls) if any(_same(y, post) for y in c.outputs)), None)
        inner = [] if last is None else [x for x in (_like(x, post) for x in last.inputs) if x is not None]
        for target in [post, *inner]:
            for base in bases:
                for call in calls:
                    if call.outputs and _explains(call.outputs[0], target, base):
                        source = _linear_source(call, calls)
                        if source is not None:
                            return self._branch(source), self._neurons(source, calls), base
        missing = Missing("no module's output, added to the residual, gives the output of the block")
        return missing, Missing("without mlp_out, the MLP's down projection is unknown"), None

    def _neurons(self, mlp: Call, calls: list[Call]) -> Found | Missing:
        for call in calls:
            inside = call is mlp or call.inside(mlp)
            if inside and is_linear(call.module) and call.inputs and _same(call.outputs[0], mlp.outputs[0]):
                return self._place(outermost_adapter(call), "input", call.inputs[0])
        return Missing("no single down projection gives the MLP's output: a mixture of experts, or a sum of several")

    def _branch(self, call: Call) -> Found | Missing:
        """The output of a branch, and what changes it on its way to the residual stream."""
        site, y = self._place(call, "output", call.outputs[0]), call.outputs[0]
        after = (c for c in self.calls if c.start > call.end and c.inputs and c.outputs and _same(c.inputs[0], y))
        norm = next((c for c in after if not _has_matrices(c.module) and not _same(c.outputs[0], y)), None)
        return replace(site, followed=norm.path) if isinstance(site, Found) and norm is not None else site

    def _place(self, call: Call, side: Side, x: Tensor, projection: Projection | None = None) -> Found | Missing:
        layout = self._layout(x)
        if layout is None:
            return Missing(f"the {side} of {call.path} is {tuple(x.shape)}, which is not [batch pos size]")
        turns = [other for other in self.trace.calls if other.module is call.module]
        turn = turns.index(call) if len(turns) > 1 else None
        heads = (None, "") if projection is None else (projection.n_heads, projection.note)
        within = "" if turn is None else _around(turns)
        return Found(call.path, side, x.shape[-1], layout, turn, within, *heads)

    def _layout(self, x: Tensor) -> Layout | None:
        batch = self.trace.batch
        if x.ndim == 3 and x.shape[0] == batch:
            return "batch pos"
        if x.ndim == 3 and x.shape[1] == batch:
            return "pos batch"
        if x.ndim == 2 and self.stream is not None and x.shape[0] == self.stream[0].shape[:-1].numel():
            return "batch*pos"
        return None


def _around(calls: Sequence[Call]) -> str:
    """The path of the innermost call that all calls were made in."""
    around = calls[0].parent
    while around is not None and not all(call.inside(around) for call in calls):
        around = around.parent
    return "" if around is None else around.path


def _linear_source(call: Call, calls: list[Call]) -> Call | None:
    """Step back over norms, scales and dropouts to the module that holds the weight matrices."""
    while not _has_matrices(call.module):
        earlier = [c for c in calls if c.end < call.start and c.outputs and call.inputs]
        source = next((c for c in earlier if _same(c.outputs[0], call.inputs[0])), None)
        if source is None:
            return None
        call = source
    return call


def _has_matrices(module: nn.Module) -> bool:
    return any(p.ndim >= 2 for p in module.parameters()) or any(is_linear(m) for m in module.modules())


def _like(x: Tensor, reference: Tensor) -> Tensor | None:
    """`x` in the shape of `reference`, if it holds the same tokens in the same order."""
    if x.shape[-1:] != reference.shape[-1:] or x.numel() != reference.numel() or x.device != reference.device:
        return None
    return x.detach().reshape(reference.shape)


def _same(a: Tensor, b: Tensor) -> bool:
    a_like_b = _like(a, b)
    return a_like_b is not None and torch.equal(a_like_b, b.detach())


def _base(total: Tensor, parts: Sequence[Tensor], bases: Sequence[Tensor]) -> Tensor | None:
    """That of some tensors to which one of the parts was added to give `total`."""
    return next((base for y in parts for base in bases if _explains(y, total, base)), None)


def _explains(y: Tensor, total: Tensor, base: Tensor) -> bool:
    """Whether `total` is `base` plus a multiple of `y` (one for each channel), up to the rounding of the sum."""
    part, base_like = _like(y, total), _like(base, total)
    if part is None or base_like is None:
        return False
    difference, part = (total - base_like).double().flatten(0, -2), part.double().flatten(0, -2)
    power = part.square().sum(0)
    if power.sum() == 0 or not power.isfinite().all():
        return False
    scale = (difference * part).sum(0) / power.clamp(min=1e-300)  # one a channel, as a layer scale has
    summands = ((total.abs() + base_like.abs()).flatten(0, -2) + (scale * part).abs()).amax(0)
    rounding = 8 * torch.finfo(total.dtype).eps * summands
    return bool(((difference - scale * part).abs() <= rounding + 1e-30).all() and scale.abs().max() > 1e-3)
