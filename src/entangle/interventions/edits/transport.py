"""Edits that carry one class's activations onto another's: Gaussian optimal transport, and coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.interventions.base import finite
from entangle.interventions.edit import Edit
from entangle.interventions.edits.directions import class_mask
from entangle.interventions.forms import AffineForm, Form, Function, FunctionForm
from entangle.probes import three_way

GRID = torch.logspace(-4, 0, 17, dtype=torch.float64)
# Eigenvalues below this share of the largest, times their number, are rounding in double precision.
ROUNDING = 1e-14
# A coordinate that spreads less than this share of its size never changes: in single precision that is rounding.
STILL = 1e-6


@dataclass(frozen=True, eq=False)
class GaussianTransport(Edit):
    """Optimal transport between two Gaussians: x -> x + alpha ((x - m) (A - 1) + shift), with shift = m' - m.

        A = S^-1/2 (S^1/2 S' S^1/2)^1/2 S^-1/2

    S and S' are the covariances of the class to leave and of the class to reach, m and m' their means. Of all maps that
    give the one Gaussian the other's mean and covariance it moves x least (Singh et al. 2024, arXiv 2402.09631, who
    call it MiMiC; Olkin & Pukelsheim 1982). With equal covariances it is the difference of means. `alpha` is the
    fraction of the way, along the geodesic between the two. Make one with `GaussianTransport.fit`; it is affine, so it
    can be baked.

    Attributes:
        mean: m, `[d]`.
        left: `[d, r]`, the left factor of A - 1.
        right: `[r, d]`, the right factor of A - 1.
        shift: m' - m, `[d]`.
        shrinkage: How far each class's correlations were shrunk toward none.
        site: As for `AddDirection`.
        layer: As for `AddDirection`.
        head: As for `AddDirection`.

    Example:
        >>> x, y = acts["resid_post"][:, -1], torch.as_tensor(labels)
        >>> edit = en.GaussianTransport.fit(x, labels, layer=1)  # to where texts of label 0 are
        >>> moved = edit(x[y == 1])
        >>> bool(torch.allclose(moved.mean(0), x[y == 0].mean(0), atol=1e-4))
        True
    """

    mean: Float[Tensor, " d"]
    left: Float[Tensor, "d r"]
    right: Float[Tensor, "r d"]
    shift: Float[Tensor, " d"]
    shrinkage: float = 0.0
    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """The map about the mean and the shift, alpha times."""
        form = AffineForm(self.site, self.layer, self.head, self.mean, self.left, self.right, self.shift)
        return [form.scaled(alpha)]

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "example d"],
        labels: Any,
        site: str = "resid_post",
        layer: int | None = None,
        head: int | None = None,
        *,
        toward: Any = 0,
        positive: Any = None,
        shrinkage: float | None = None,
        groups: Sequence[Any] | None = None,
        seed: int = 0,
    ) -> Self:
        """Fit on activations and labels, in double precision.

        Coordinates that never change are shifted and nothing else. Directions in which the class to leave has no
        variance at all, where there are fewer rows than coordinates and no shrinkage, are left alone.

        Args:
            x: Activations; `[example, head, d_head]` is taken as all heads side by side.
            labels: Two classes: one name, bool or whole number for each example (see `entangle.data.labels`).
            site: Where x was collected.
            layer: The layer.
            head: The head, where x is one head's.
            toward: The class to reach, as for `AddDirection.mean_difference`.
            positive: The label that is class 1, all others being class 0.
            shrinkage: From 0 (the sample's covariances) to 1 (variances alone: each coordinate by itself). By default
                the one under which held-out rows of both classes are likeliest.
            groups: One for each row; rows of a group never fall on both sides of the split that chooses the shrinkage.
            seed: Seed of that split.

        Returns:
            The fitted transport; `.shrinkage` says which one was used.

        Raises:
            EntangleError: If there are not two classes of two rows or more, or the shrinkage is not from 0 to 1.
        """
        source, target, dtype = _two_sides(x, labels, toward, positive)
        if shrinkage is None:
            shrinkage = _likeliest(finite(x, "x").double().flatten(1), labels, positive, groups, seed)
        elif not 0 <= shrinkage <= 1:
            raise EntangleError(f"shrinkage must be from 0 to 1, got {shrinkage}: leave it out to have it chosen")
        mean, shift = source.mean(0), target.mean(0) - source.mean(0)
        spread, size = (source.var(0) + target.var(0)).sqrt(), torch.maximum(source.abs().amax(0), target.abs().amax(0))
        live = spread > STILL * size
        map_ = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        if live.any():
            here = live.nonzero()[:, 0]
            covariances = [_shrunk(side[:, here], shrinkage) for side in (source, target)]
            map_[here[:, None], here] = _optimal(*covariances) - torch.eye(len(here), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(map_)
        kept = values.abs() > ROUNDING * values.abs().amax().clamp_min(1.0)
        left, right = vectors[:, kept] * values[kept], vectors[:, kept].T
        mean, left, right, shift = (each.to(dtype).contiguous() for each in (mean, left, right, shift))
        return cls(mean, left, right, shift, float(shrinkage), site, layer, head)


@dataclass(frozen=True, eq=False)
class LinearTransport(Edit):
    """Transport of each coordinate by itself (Linear-AcT): x_j -> x_j + alpha (scale_j (x_j - m_j) + m'_j - x_j).

    The scale is the least-squares fit of the sorted activations of the class to reach to those of the class to leave,
    which is the best affine map between the two in one dimension (Rodriguez et al. 2024, arXiv 2410.23054).
    `alpha` is the fraction of the way. Make one with `LinearTransport.fit`. It is affine, so it can be baked, unless it
    was fitted with `support`: then it acts on numbers in the range that was seen, and steers only.

    Attributes:
        mean: m, `[d]`: the mean of the class to leave.
        scale: `[d]`.
        shift: m' - m, `[d]`.
        low: `[d]`, the least number that is carried; `None` for no bound.
        high: `[d]`, the largest.
        site: As for `AddDirection`.
        layer: As for `AddDirection`.
        head: As for `AddDirection`.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [10.0, 4.0], [12.0, 4.0], [14.0, 4.0]])
        >>> edit = en.LinearTransport.fit(x, [1, 1, 1, 0, 0, 0])
        >>> edit(x[:3])  # 2 x + 10 in the first coordinate; the second never varies and is shifted
        tensor([[10.,  4.],
                [12.,  4.],
                [14.,  4.]])
    """

    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    shift: Float[Tensor, " d"]
    low: Float[Tensor, " d"] | None = None
    high: Float[Tensor, " d"] | None = None
    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "scale", "shift", "low", "high"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, finite(getattr(self, name), f"{name} of LinearTransport"))
        shapes = {tuple(t.shape) for t in (self.mean, self.scale, self.shift, self.low, self.high) if t is not None}
        if shapes != {(len(self.mean),)} or (self.low is None) != (self.high is None):
            raise EntangleError(
                f"LinearTransport needs mean, scale and shift [d], and low and high [d] or neither; got {shapes}: use "
                "LinearTransport.fit"
            )

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """A diagonal map about the mean and the shift, alpha times; within the range seen, where there is one."""
        changed = (self.scale != 1).nonzero()[:, 0]
        right = torch.eye(len(self.scale), dtype=self.scale.dtype)[changed]
        left = (right * (self.scale - 1)).T.contiguous()
        form = AffineForm(self.site, self.layer, self.head, self.mean, left, right, self.shift).scaled(alpha)
        return [form] if self.low is None or self.high is None else [self._within(alpha, self.low, self.high)]

    def _within(self, alpha: float, low: Tensor, high: Tensor) -> Form:
        def make(device: torch.device, dtype: torch.dtype) -> Function:
            exact = torch.promote_types(dtype, torch.float32)
            least, most, mean, scale, shift = (
                each.to(device, exact) for each in (low, high, self.mean, self.scale, self.shift)
            )

            def carry(x: Tensor) -> Tensor:
                y = x.to(exact)
                moved = y + alpha * ((scale - 1) * (y - mean) + shift)
                return torch.where((y >= least) & (y <= most), moved, y).to(dtype)

            return carry

        return FunctionForm(self.site, self.layer, self.head, make, width=len(self.scale))

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "example d"],
        labels: Any,
        site: str = "resid_post",
        layer: int | None = None,
        head: int | None = None,
        *,
        toward: Any = 0,
        positive: Any = None,
        support: bool = False,
    ) -> Self:
        """Fit on activations and labels, in double precision. Nothing is chosen, so there is nothing to hold out.

        Where the two classes have different numbers of rows, the fewer are interpolated between their order statistics.
        A coordinate that never varies in the class to leave is shifted and nothing else.

        Args:
            x: Activations; `[example, head, d_head]` is taken as all heads side by side.
            labels: As for `GaussianTransport.fit`.
            site: Where x was collected.
            layer: The layer.
            head: The head, where x is one head's.
            toward: The class to reach, as for `AddDirection.mean_difference`.
            positive: The label that is class 1, all others being class 0.
            support: Whether to carry only what lies between the least and the largest number that the class to leave
                had in that coordinate (the paper's transport support), which is no affine map.

        Returns:
            The fitted transport.

        Raises:
            EntangleError: If there are not two classes of two rows or more.
        """
        source, target, dtype = _two_sides(x, labels, toward, positive)
        n = max(len(source), len(target))
        a, b = (_sorted_as(side, n) for side in (source, target))
        mean, shift = source.mean(0), target.mean(0) - source.mean(0)
        a, b = a - a.mean(0), b - b.mean(0)
        square = a.square().sum(0)
        live = square > n * (STILL * source.abs().amax(0)).square()
        scale = torch.where(live, (a * b).sum(0) / torch.where(live, square, 1.0), 1.0)
        low, high = (source.amin(0).to(dtype), source.amax(0).to(dtype)) if support else (None, None)
        return cls(mean.to(dtype), scale.to(dtype), shift.to(dtype), low, high, site, layer, head)


def _two_sides(
    x: Any, labels: Any, toward: Any, positive: Any
) -> tuple[Float[Tensor, "example d"], Float[Tensor, "other d"], torch.dtype]:
    """The rows of the class to leave and of the class to reach, in double precision, and x's dtype."""
    x = finite(x, "x")
    target = class_mask(labels, toward, len(x), positive)
    sides = x.double().flatten(1)[~target], x.double().flatten(1)[target]
    if min(map(len, sides)) < 2:
        raise EntangleError(
            f"transport needs two rows or more of each class; got {len(sides[0])} to leave and {len(sides[1])} to "
            "reach: give more"
        )
    return *sides, x.dtype


def _sorted_as(rows: Float[Tensor, "example d"], n: int) -> Float[Tensor, "n d"]:
    """The columns sorted, as n numbers each: order statistics, or between them where there are fewer."""
    ordered = rows.sort(0).values
    if len(ordered) == n:
        return ordered
    at = ((torch.arange(n, dtype=torch.float64) + 0.5) / n * len(ordered) - 0.5).clamp(0, len(ordered) - 1)
    below = at.floor().long().clamp_max(len(ordered) - 2)
    share = (at - below)[:, None]
    between: Tensor = (1 - share) * ordered[below] + share * ordered[below + 1]
    return between


def _shrunk(rows: Float[Tensor, "example d"], shrinkage: float) -> Float[Tensor, "d d"]:
    """The covariance, its correlations shrunk toward none."""
    covariance = torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1])
    diagonal = torch.diag(covariance.diagonal())
    return (1 - shrinkage) * covariance + shrinkage * diagonal


def _optimal(source: Float[Tensor, "d d"], target: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric A with A S A = S'; 1 on what S does not reach."""
    values, vectors = torch.linalg.eigh(source)
    kept = values > ROUNDING * len(values) * values[-1].clamp_min(0)
    basis, root = vectors[:, kept], values[kept].sqrt()
    inner = (basis * root).T @ target @ (basis * root)
    own, turned = torch.linalg.eigh((inner + inner.T) / 2)
    middle = (turned * own.clamp_min(0).sqrt()) @ turned.T
    within = middle / root[:, None] / root
    result: Tensor = basis @ within @ basis.T + torch.eye(len(values), dtype=values.dtype) - basis @ basis.T
    return result


def _likeliest(
    x: Float[Tensor, "example d"], labels: Any, positive: Any, groups: Sequence[Any] | None, seed: int
) -> float:
    """The shrinkage under which held-out rows of both classes are likeliest, as Gaussians."""
    reached = class_mask(labels, 1, len(x), positive)
    split = three_way(reached.long(), groups=groups, seed=seed)
    fit, held = torch.cat([split.fit, split.report]), split.select
    likelihood = torch.zeros_like(GRID)
    for side in (True, False):
        rows, others = x[fit[reached[fit] == side]], x[held[reached[held] == side]]
        if len(rows) < 3:
            raise EntangleError(
                f"a class has {len(rows)} rows to choose the shrinkage by: give more, or shrinkage=1 for each "
                "coordinate by itself"
            )
        spread = rows.std(0)
        live = spread > STILL * rows.abs().amax(0)
        scaled, judged = ((each[:, live] - rows[:, live].mean(0)) / spread[live] for each in (rows, others))
        _, singular, directions = torch.linalg.svd(scaled / (len(rows) - 1) ** 0.5, full_matrices=False)
        along = (judged @ directions.T).square()
        outside = (judged.square().sum(1) - along.sum(1)).clamp_min(0)
        for number, share in enumerate(GRID):
            own = (1 - share) * singular.square() + share
            rest = scaled.shape[1] - len(own)
            logs = own.log().sum() + rest * share.log()
            likelihood[number] -= ((along / own).sum(1) + outside / share + logs).sum() / 2
    return float(GRID[likelihood.argmax()])
