"""Edits that keep the length of what they change: turning it toward a direction, and any other edit rescaled."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.interventions.base import finite_vector, unit
from entangle.interventions.edit import Edit
from entangle.interventions.forms import Form, Function, FunctionForm

HALF_TURN = 180.0
# What is left of a token below this share of its length is rounding, which has no direction worth following.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Rotate(Edit):
    """Turn each token toward a direction, in the plane of the two, its length kept.

        x -> |x| (cos(phi) u + sin(phi) w),    phi = max(theta - alpha degrees, 0)

    with u the unit direction, theta the angle between x and u, and w the unit part of x across u. A token stops where
    it reaches the direction. This is angular steering (Vu & Nguyen 2025, arXiv 2510.26243) in each token's own plane
    instead of one that all share, and with `slerp` spherical interpolation (Shoemake 1985). Not affine: it steers but
    has no weights.

    `alpha` is a part of `degrees`: by default 1 is half a turn, after which every token lies on the direction, and .1
    is 18 degrees. Below 0 it turns away, as far as the opposite of the direction.

    Attributes:
        direction: `[d]`, of any length.
        site: As for `AddDirection`.
        layer: As for `AddDirection`.
        head: As for `AddDirection`.
        degrees: The angle at alpha = 1, above 0 and at most 180.
        slerp: Whether alpha times degrees / 180 is a share of each token's own angle instead, so that all go as much of
            their way.

    Raises:
        EntangleError: If the direction is zero or the angle is more than half a turn, here or where alpha makes it so.

    Example:
        >>> edit = en.Rotate(torch.tensor([0.0, 1.0]), degrees=90)
        >>> edit(torch.tensor([[5.0, 0.0], [3.0, 4.0]]), alpha=1 / 3).round(decimals=3)  # 30 degrees each
        tensor([[4.3300, 2.5000],
                [0.5980, 4.9640]])
        >>> edit(torch.tensor([[5.0, 0.0]])).round(decimals=3)  # all the way
        tensor([[0., 5.]])
    """

    direction: Float[Tensor, " d"]
    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None
    degrees: float = HALF_TURN
    slerp: bool = False

    def __post_init__(self) -> None:
        vector = unit(finite_vector(self.direction, "direction"), "the direction of Rotate")
        object.__setattr__(self, "direction", vector)
        if not 0 < self.degrees <= HALF_TURN:
            raise EntangleError(
                f"Rotate needs degrees above 0 and at most half a turn, 180; got {self.degrees:g}: turn the other way "
                "with a negative alpha"
            )

    @property
    def strongest(self) -> float:
        """The alpha of half a turn."""
        return HALF_TURN / self.degrees

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """The rotation, which is no affine map: its plane is each token's own.

        Raises:
            EntangleError: If it is more than half a turn.
        """
        if abs(alpha) > self.strongest * (1 + 1e-9):
            raise EntangleError(
                f"a rotation is by half a turn at most; got alpha {alpha:g} x {self.degrees:g} degrees = "
                f"{alpha * self.degrees:g}: use an alpha from {-self.strongest:g} to {self.strongest:g}"
            )
        angle = math.radians(alpha * self.degrees)

        def make(device: torch.device, dtype: torch.dtype) -> Function:
            u = self.direction.to(device, torch.promote_types(dtype, torch.float32))
            return lambda x: turned(x.to(u.dtype), u, angle, slerp=self.slerp).to(dtype)

        return [FunctionForm(self.site, self.layer, self.head, make, width=len(self.direction))]


def turned(
    x: Float[Tensor, "*batch d"], u: Float[Tensor, " d"], angle: float, *, slerp: bool
) -> Float[Tensor, "*batch d"]:
    """x turned toward the unit vector u by an angle in radians, or by angle / pi of its own.

    On the line of u there is no plane to turn in: there x stays as it is unless the turn takes it all the way.
    """
    if angle == 0:
        return x
    along = (x @ u)[..., None]
    across = x - along * u
    length, side = (torch.linalg.vector_norm(v, dim=-1, keepdim=True) for v in (x, across))
    theta = torch.atan2(side, along)
    toward = angle > 0
    way = theta if toward else math.pi - theta
    turn = way * (abs(angle) / math.pi) if slerp else torch.full_like(way, abs(angle))
    arrived = turn >= way
    phi = torch.where(arrived, 0.0 if toward else math.pi, theta - turn if toward else theta + turn)
    beside = side > ROUNDING * length
    w = across / torch.where(beside, side, 1.0)
    result = length * (phi.cos() * u + torch.where(arrived, 0.0, phi.sin()) * w)
    return torch.where(beside | arrived, result, x)


@dataclass(frozen=True, eq=False)
class KeepNorm(Edit):
    """Any edit, its result brought back to the length that each token had: x -> |x| f(x) / |f(x)|.

    With `AddDirection` this is addition that keeps the norm, as repeng's `normalize=True` and norm-preserving steering
    have it. It wraps an edit instead of being a switch of one, since the result is no affine map whatever is wrapped:
    it steers but has no weights. At a head of site `z` the head's own length is kept.

    A token of which the edit leaves nothing, rounding apart, has no direction any more and is left as the edit made it.

    Attributes:
        edit: What to do; `alpha` is its strength.

    Example:
        >>> edit = en.KeepNorm(en.AddDirection(torch.tensor([0.0, 5.0]), layer=1))
        >>> edit(torch.tensor([[5.0, 0.0]])).round(decimals=4)
        tensor([[3.5355, 3.5355]])
    """

    edit: Edit

    @property
    def strongest(self) -> float:
        """The edit's."""
        return self.edit.strongest

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """What the edit does at each place and then the rescaling, as one."""
        forms = self.edit.forms(alpha)
        if any(isinstance(form, FunctionForm) and form.fired is not None for form in forms):
            raise EntangleError(
                "KeepNorm of an edit under a condition would rescale the tokens it leaves alone: put the condition "
                "outside, When(KeepNorm(edit), ...)"
            )
        runs = itertools.groupby(forms, key=lambda form: (form.site, form.layer, form.head))
        return [_norm_kept(list(run)) for _, run in runs]


def _norm_kept(run: list[Form]) -> Form:
    """Forms at one place, first to last, and then the length of before."""
    first = run[0]

    def make(device: torch.device, dtype: torch.dtype) -> Function:
        exact = torch.promote_types(dtype, torch.float32)
        functions = [form.prepare(device, exact) for form in run]

        def keep(x: Tensor) -> Tensor:
            before = x.to(exact)
            after = before
            for function in functions:
                after = function(after)
            lengths = (torch.linalg.vector_norm(v, dim=-1, keepdim=True) for v in (before, after))
            was, now = lengths
            return (after * torch.where(now > ROUNDING * was, was / now, 1.0)).to(dtype)

        return keep

    return FunctionForm(first.site, first.layer, first.head, make, width=first.size, of_layers=first.of_layers)
