"""The one form of an edit: x -> x + (x - mean) L R + b, at a site and layer.

Every unconditional edit says itself in these terms, and both hooks (`steer`) and weights (`bake`) read nothing else, so
they cannot disagree. What has no such form (clamping to a range, conditions) is a `FunctionForm`: it steers but has no
weights.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Form(ABC):
    """Something done to the tensor at one place of a model.

    Attributes:
        site: A site name such as `"z"`, or with `layer=None` a full name such as `"blocks.3.attn.hook_z"`.
        layer: The layer, counted from 0.
        head: One head of site `z`; `None` for the whole width.
        of_layers: How many layers the model was taken to have, where `layer` is but an index into all of them; `None`
            where the layer is known by name.

    Example:
        >>> forms = en.Clamp(torch.tensor([1.0, 0.0]), high=1.0, layer=1).forms(alpha=1.0)
        >>> isinstance(forms[0], en.interventions.Form), forms[0].site, forms[0].layer
        (True, 'resid_post', 1)
    """

    site: str
    layer: int | None
    head: int | None = None
    of_layers: int | None = field(default=None, kw_only=True)

    @property
    def size(self) -> int | None:
        """The width of the tensor it acts on, where the form itself knows it."""
        return None

    @abstractmethod
    def prepare(self, device: torch.device, dtype: torch.dtype) -> Function:
        """The function of the tensor `[batch pos size]`, with everything it needs already on `device` in `dtype`."""


@dataclass(frozen=True, eq=False)
class FunctionForm(Form):
    """An edit that is no affine map.

    Attributes:
        make: Given a device and a dtype, the function of the tensor `[batch pos size]` (of one head's slice, where
            `head` is set).
        fired: After the function ran, the token positions `[batch pos]` that it changed; `None` where it changes them
            all.
        width: The width of the tensor it acts on, where it is known.
        edits: False for a form that only looks.

    Example:
        >>> def double(device, dtype):
        ...     return lambda x: 2 * x
        ...
        >>> form = en.interventions.FunctionForm("resid_post", 1, make=double)
        >>> form.prepare(torch.device("cpu"), torch.float32)(torch.ones(2))
        tensor([2., 2.])
    """

    make: Callable[[torch.device, torch.dtype], Function] = lambda device, dtype: lambda x: x
    fired: Callable[[], Tensor] | None = None
    width: int | None = None
    edits: bool = True

    @property
    def size(self) -> int | None:
        """`width`."""
        return self.width

    def prepare(self, device: torch.device, dtype: torch.dtype) -> Function:
        """What `make` gives."""
        return self.make(device, dtype)


@dataclass(frozen=True, eq=False)
class AffineForm(Form):
    """x -> x + (x - mean) left right + bias, on a row vector x of width d.

    Attributes:
        mean: What is subtracted before the low-rank map; zero where `None`.
        left: The map from d to r dimensions; `None` together with `right` for a constant shift.
        right: The map back from r to d.
        bias: The constant; zero where `None`.

    Raises:
        EntangleError: If shapes do not agree or a number is not finite.

    Example:
        >>> form = en.interventions.AffineForm("resid_post", 1, bias=torch.tensor([1.0, 0.0]))
        >>> form.scaled(3.0)(torch.tensor([[0.0, 5.0]])), form.is_constant
        (tensor([[3., 5.]]), True)
    """

    mean: Float[Tensor, " d"] | None = None
    left: Float[Tensor, "d r"] | None = None
    right: Float[Tensor, "r d"] | None = None
    bias: Float[Tensor, " d"] | None = None

    def __post_init__(self) -> None:
        if (self.left is None) != (self.right is None):
            raise EntangleError(
                "an affine form needs both of left [d, r] and right [r, d], or neither; got one: pass the other too"
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors()}
        if not shapes:
            raise EntangleError(
                "an affine form needs a bias [d] or a map left [d, r], right [r, d]; got none: pass one"
            )
        d = self.size
        rank = shapes["left"][-1] if "left" in shapes else 0
        wanted = {"mean": (d,), "left": (d, rank), "right": (rank, d), "bias": (d,)}
        for name, shape in shapes.items():
            if shape != wanted[name]:
                raise EntangleError(
                    f"{name} of an affine form of width {d} must be {list(wanted[name])}, got {list(shape)}"
                )
        for name, tensor in self._tensors():
            if not torch.isfinite(tensor).all():
                raise EntangleError(
                    f"{name} of the edit at {self.site} layer {self.layer} holds NaN or infinity: fit it on finite data"
                )

    def _tensors(self) -> Iterable[tuple[str, Tensor]]:
        named = ((name, getattr(self, name)) for name in ("mean", "left", "right", "bias"))
        return [(name, tensor) for name, tensor in named if tensor is not None]

    @property
    def size(self) -> int:
        """d, the width of the tensor it acts on."""
        return int((self.right if self.bias is None else self.bias).shape[-1])  # type: ignore[union-attr]

    @property
    def is_constant(self) -> bool:
        """Whether it adds the same vector to every x."""
        return self.left is None

    @property
    def constant(self) -> Float[Tensor, " d"]:
        """What it adds to x = 0: bias - mean left right."""
        bias = torch.zeros(self.size) if self.bias is None else self.bias
        if self.left is None or self.right is None or self.mean is None:
            return bias.to(bias if self.right is None else self.right)
        return bias - self.mean @ self.left @ self.right

    def scaled(self, alpha: float) -> AffineForm:
        """`alpha` times the displacement: x -> x + alpha (f(x) - x)."""
        scale = {name: getattr(self, name) * alpha for name in ("left", "bias") if getattr(self, name) is not None}
        return replace(self, **scale)

    def widened(self, head_size: int, n_heads: int) -> AffineForm:
        """The same edit on all heads side by side, `[n_heads * head_size]`, leaving the other heads alone."""
        if self.head is None:
            return self
        start, end = self.head * head_size, (self.head + 1) * head_size

        def widen(tensor: Tensor | None, dim: int) -> Tensor | None:
            if tensor is None:
                return None
            shape = list(tensor.shape)
            shape[dim] = n_heads * head_size
            wide = tensor.new_zeros(shape)
            wide.narrow(dim, start, end - start).copy_(tensor)
            return wide

        return AffineForm(
            self.site,
            self.layer,
            None,
            widen(self.mean, 0),
            widen(self.left, 0),
            widen(self.right, 1),
            widen(self.bias, 0),
        )

    def then(self, after: AffineForm) -> AffineForm:
        """This edit followed by `after`, as one form.

        y = x + x L1 R1 + c1 and then y + y L2 R2 + c2 is x + x [L1 | L2] [R1 + R1 L2 R2 ; R2] + (c1 + c1 L2 R2 + c2).
        """
        first, second = self.constant, after.constant
        if after.left is None or after.right is None:
            if self.left is None:
                return AffineForm(self.site, self.layer, self.head, bias=first + second)
            return replace(self, bias=second if self.bias is None else self.bias + second)
        bias = first + first @ after.left @ after.right + second
        if self.left is None or self.right is None:
            return AffineForm(self.site, self.layer, self.head, None, after.left, after.right, bias)
        left = torch.cat([self.left, after.left], dim=1)
        right = torch.cat([self.right + self.right @ after.left @ after.right, after.right])
        return AffineForm(self.site, self.layer, self.head, None, left, right, bias)

    def to(self, device: torch.device, dtype: torch.dtype) -> AffineForm:
        """The same form with its tensors on `device` in `dtype`."""
        moved: dict[str, Any] = {name: tensor.detach().to(device, dtype) for name, tensor in self._tensors()}
        return replace(self, **moved)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> Function:
        """The function of x. A map runs in single precision at least: 1 - u u^T in half leaves much of u behind."""
        if self.is_constant:
            vector = self.constant.detach().to(device, dtype)
            return lambda x: x + vector
        form = self.to(device, torch.promote_types(dtype, torch.float32))
        return form.__call__ if dtype == torch.promote_types(dtype, torch.float32) else lambda x: form(x).to(dtype)

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The edited x, in the precision of the form's own tensors."""
        y = x
        if self.left is not None and self.right is not None:
            centred = x if self.mean is None else x - self.mean
            y = x + (centred.to(self.left.dtype) @ self.left) @ self.right
        return y if self.bias is None else y + self.bias


def merged(forms: Sequence[Form], *, head_size: int | None, n_heads: int | None) -> list[Form]:
    """The forms at one place, in order, with every run of affine ones made one.

    Args:
        forms: What to do at one place, first to last.
        head_size: d_head at the place, `None` where it has no heads.
        n_heads: The number of heads there.

    Returns:
        As few forms with the same effect: one, unless a form that is not affine stands among them.

    Example:
        >>> edits = en.AddDirection(torch.ones(2), layer=1), en.Ablate(torch.tensor([1.0, 0.0]), layer=1)
        >>> forms = [form for edit in edits for form in edit.forms()]
        >>> len(forms), len(en.interventions.merged(forms, head_size=None, n_heads=None))
        (2, 1)
    """
    result: list[Form] = []
    for form in _constants_summed(forms, head_size, n_heads):
        if isinstance(form, AffineForm):
            wide = form if head_size is None or n_heads is None else form.widened(head_size, n_heads)
            last = result[-1] if result else None
            if isinstance(last, AffineForm):
                result[-1] = last.then(wide)
            else:
                result.append(wide)
        else:
            result.append(form)
    return result


def _constants_summed(forms: Sequence[Form], head_size: int | None, n_heads: int | None) -> Iterable[Form]:
    """The forms with every run of constants made one: an edit of thirty heads is as many of them."""
    for constant, run in itertools.groupby(forms, lambda form: isinstance(form, AffineForm) and form.is_constant):
        same = list(run)
        summands = [form for form in same if isinstance(form, AffineForm)]
        if not constant or len(summands) < 2:
            yield from same
            continue
        first = summands[0]
        size = first.size if head_size is None or n_heads is None else head_size * n_heads
        total = torch.zeros(size, dtype=functools.reduce(torch.promote_types, (s.constant.dtype for s in summands)))
        for form in summands:
            start = 0 if form.head is None or head_size is None else form.head * head_size
            total[start : start + form.size] += form.constant.to(total)
        yield AffineForm(first.site, first.layer, None, bias=total)
