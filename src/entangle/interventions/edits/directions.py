"""Edits with a closed form: add, ablate, set, scale, any affine map; and clamping to a range, which steers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.data import read_labels
from entangle.errors import EntangleError
from entangle.interventions.base import finite, finite_vector, unit
from entangle.interventions.edit import Edit
from entangle.interventions.forms import AffineForm, Form, Function, FunctionForm


@dataclass(frozen=True, eq=False)
class AddDirection(Edit):
    """Activation addition: x -> x + alpha v (Turner et al. 2023, arXiv 2308.10248).

    Attributes:
        vector: v `[d]`, added as it is: its length counts.
        site: A site name, or a full name such as `"blocks.3.hook_resid_post"` together with `layer=None`.
        layer: The layer, counted from 0.
        head: One head of site `z`; `None` for the whole width.

    Example:
        >>> edit = en.AddDirection(torch.tensor([0.0, 1.0]), layer=1)
        >>> edit(torch.tensor([[3.0, 4.0]]), alpha=2.0)
        tensor([[3., 6.]])
    """

    vector: Float[Tensor, " d"]
    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", finite_vector(self.vector, "the vector of AddDirection"))

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """The vector, alpha times."""
        return [AffineForm(self.site, self.layer, self.head, bias=alpha * self.vector)]

    @classmethod
    def from_pairs(
        cls,
        toward: Float[Tensor, "pair d"],
        away: Float[Tensor, "pair d"],
        site: str,
        layer: int | None = None,
        head: int | None = None,
    ) -> Self:
        """Contrastive activation addition: the mean difference over pairs (Rimsky et al. 2024, arXiv 2312.06681).

        Args:
            toward: Activations of the side to steer toward.
            away: Activations of the other side, row for row.
            site: Where they were collected.
            layer: The layer.
            head: The head, at site `z`.

        Returns:
            The edit that adds mean(toward - away).

        Raises:
            EntangleError: If the two have different shapes.
        """
        if toward.shape != away.shape:
            raise EntangleError(
                f"pairs need two tensors of one shape, got {list(toward.shape)} and {list(away.shape)}: pair the rows"
            )
        return cls((toward - away).flatten(1).mean(0), site, layer, head)

    @classmethod
    def mean_difference(
        cls,
        x: Float[Tensor, "example d"],
        labels: Any,
        site: str,
        layer: int | None = None,
        head: int | None = None,
        *,
        toward: Any = 0,
        positive: Any = None,
    ) -> Self:
        """The difference of class means, toward class `toward`.

        Args:
            x: activations.
            labels: Two classes: one name, bool or whole number for each example (see `entangle.data.labels`).
            site: Where they were collected.
            layer: The layer.
            head: The head, at site `z`.
            toward: The class whose mean alpha = 1 moves the other class's mean to: one of the labels; or 0 for the
                class that is not the positive one, and 1 for that, where no label is called so.
            positive: The label that is class 1, all others being class 0.

        Returns:
            The edit that adds mean(x of `toward`) - mean(x of the other class).

        Raises:
            EntangleError: If there are not two classes, or `toward` is none of them.
        """
        target = class_mask(labels, toward, len(x), positive)
        x = finite(x, "x").flatten(1)
        return cls(x[target].mean(0) - x[~target].mean(0), site, layer, head)


@dataclass(frozen=True, eq=False)
class Ablate(Edit):
    """Directional ablation: x -> x - alpha (x - mean) Q Q^T, with Q an orthonormal basis of the directions' span.

    At alpha = 1 nothing of the directions is left (mean ablation, or zero ablation where `mean` is `None`); Arditi et
    al. 2024, arXiv 2406.11717, eq. 4.

    Attributes:
        directions: `[d]` or `[k, d]`, of any length and angle.
        site: As for `AddDirection`.
        layer: As for `AddDirection`.
        head: As for `AddDirection`.
        mean: `[d]`, what the component is set to; 0 where `None`.

    Example:
        >>> edit = en.Ablate(torch.tensor([1.0, 0.0]))
        >>> edit(torch.tensor([[3.0, 4.0]]))
        tensor([[0., 4.]])
    """

    directions: Float[Tensor, "k d"]
    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None
    mean: Float[Tensor, " d"] | None = None

    def __post_init__(self) -> None:
        directions = finite(self.directions, "the directions of Ablate")
        object.__setattr__(self, "directions", directions if directions.ndim == 2 else directions[None])
        if self.mean is not None:
            object.__setattr__(self, "mean", finite_vector(self.mean, "the mean of Ablate"))

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """Minus alpha Q Q^T about the mean."""
        basis = span(self.directions)
        return [AffineForm(self.site, self.layer, self.head, self.mean, -alpha * basis, basis.T)]


@dataclass(frozen=True, eq=False)
class Scale(Edit):
    """Scale the component along a direction: x -> x + alpha (factor - 1) ((x - mean) . u) u.

    Attributes:
        direction: `[d]`, of any length.
        factor: 1 leaves x, 0 ablates, -1 reflects.
        site: As for `AddDirection`.
        layer: As for `AddDirection`.
        head: As for `AddDirection`.
        mean: `[d]`, the point that scaling leaves where it is; 0 where `None`.

    Example:
        >>> edit = en.Scale(torch.tensor([1.0, 0.0]), factor=0.5)
        >>> edit(torch.tensor([[3.0, 4.0]]))
        tensor([[1.5000, 4.0000]])
    """

    direction: Float[Tensor, " d"]
    factor: float
    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None
    mean: Float[Tensor, " d"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "direction", unit(finite_vector(self.direction, "direction"), "the direction of Scale")
        )
        if self.mean is not None:
            object.__setattr__(self, "mean", finite_vector(self.mean, "the mean of Scale"))

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """alpha (factor - 1) u u^T about the mean."""
        column = self.direction[:, None]
        return [AffineForm(self.site, self.layer, self.head, self.mean, alpha * (self.factor - 1) * column, column.T)]


@dataclass(frozen=True, eq=False)
class Set(Edit):
    """Set the component along a direction: x -> x + alpha (value - x . u) u.

    Attributes:
        direction: `[d]`, of any length; u is it at length 1.
        value: The component after the edit, in the activations' units.
        site: As for `AddDirection`.
        layer: As for `AddDirection`.
        head: As for `AddDirection`.

    Example:
        >>> edit = en.Set(torch.tensor([1.0, 0.0]), value=7.0)
        >>> edit(torch.tensor([[3.0, 4.0]]))
        tensor([[7., 4.]])
    """

    direction: Float[Tensor, " d"]
    value: float
    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "direction", unit(finite_vector(self.direction, "direction"), "the direction of Set"))

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """-alpha u u^T and the constant alpha value u."""
        column = self.direction[:, None]
        bias = alpha * self.value * self.direction
        return [AffineForm(self.site, self.layer, self.head, None, -alpha * column, column.T, bias)]


@dataclass(frozen=True, eq=False)
class Clamp(Edit):
    """Keep the component along a direction between `low` and `high`: x -> x + alpha (clip(x . u, low, high) - x . u) u.

    Not affine: it steers but has no weights. `low == high` is `Set`, which has.

    Attributes:
        direction: `[d]`, of any length; u is it at length 1.
        low: The least component, in the activations' units; `None` for no bound.
        high: The largest component; `None` for no bound.
        site: As for `AddDirection`.
        layer: As for `AddDirection`.
        head: As for `AddDirection`.

    Example:
        >>> edit = en.Clamp(torch.tensor([1.0, 0.0]), high=1.0)
        >>> edit(torch.tensor([[3.0, 4.0], [-3.0, 4.0]]))
        tensor([[ 1.,  4.],
                [-3.,  4.]])
    """

    direction: Float[Tensor, " d"]
    low: float | None = None
    high: float | None = None
    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "direction", unit(finite_vector(self.direction, "direction"), "the direction of Clamp")
        )
        if self.low is None and self.high is None:
            raise EntangleError("Clamp needs a low or a high bound; got neither: pass low=..., high=... or both")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise EntangleError(f"Clamp needs low <= high, got low={self.low} and high={self.high}: swap them")

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """The clip of the component, which is no affine map."""

        def make(device: torch.device, dtype: torch.dtype) -> Function:
            u = self.direction.to(device, torch.promote_types(dtype, torch.float32))

            def clamp(x: Tensor) -> Tensor:
                component = x.to(u.dtype) @ u
                move = alpha * (component.clamp(self.low, self.high) - component)
                return x + (move[..., None] * u).to(dtype)

            return clamp

        return [FunctionForm(self.site, self.layer, self.head, make, width=len(self.direction))]


@dataclass(frozen=True, eq=False)
class Affine(Edit):
    """Any affine map of low rank: x -> x + alpha ((x - mean) left right + bias).

    Attributes:
        site: As for `AddDirection`.
        layer: As for `AddDirection`.
        head: As for `AddDirection`.
        mean: `[d]` or `None`.
        left: `[d, r]` or `None`.
        right: `[r, d]` or `None`.
        bias: `[d]` or `None`.

    Example:
        >>> edit = en.Affine(left=torch.tensor([[1.0], [0.0]]), right=torch.tensor([[0.0, 1.0]]))
        >>> edit(torch.tensor([[3.0, 4.0]]))  # the first coordinate is added to the second
        tensor([[3., 7.]])
    """

    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None
    mean: Float[Tensor, " d"] | None = None
    left: Float[Tensor, "d r"] | None = None
    right: Float[Tensor, "r d"] | None = None
    bias: Float[Tensor, " d"] | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "left", "right", "bias"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, finite(getattr(self, name), name))
        self.forms()

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """The map and the constant, each alpha times."""
        form = AffineForm(self.site, self.layer, self.head, self.mean, self.left, self.right, self.bias)
        return [form.scaled(alpha)]


@dataclass(frozen=True, eq=False)
class Compose(Edit):
    """Several edits as one: at each place in the order given, each on the result of the one before.

    Attributes:
        edits: The edits.

    Example:
        >>> first = torch.tensor([1.0, 0.0])
        >>> edit = en.Compose([en.AddDirection(first), en.Scale(first, factor=2.0)])
        >>> edit(torch.tensor([[3.0, 4.0]]))
        tensor([[8., 4.]])
    """

    edits: Sequence[Edit]

    def __post_init__(self) -> None:
        if not self.edits:
            raise EntangleError("Compose needs at least one edit, got none")

    @property
    def strongest(self) -> float:
        """The least of theirs."""
        return min(edit.strongest for edit in self.edits)

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """Every edit's forms, in order."""
        return [form for edit in self.edits for form in edit.forms(alpha)]


def span(directions: Float[Tensor, "k d"]) -> Float[Tensor, "d rank"]:
    """An orthonormal basis of the rows' span, worked out in double precision.

    Raises:
        EntangleError: If every row is zero.
    """
    _, s, vh = torch.linalg.svd(directions.double(), full_matrices=False)
    rank = int((s > s[0] * max(directions.shape) * torch.finfo(torch.float32).eps).sum()) if s[0] > 0 else 0
    if rank == 0:
        raise EntangleError("the directions to ablate are all zero: check the labels and the data they were fitted on")
    basis: Tensor = vh[:rank].T.to(directions.dtype)
    return basis


def class_mask(given: Any, toward: Any, n_examples: int, positive: Any = None) -> Tensor:
    """Which rows have label `toward`, after checking that there is one label per row and exactly two classes.

    Args:
        given: Labels of any kind.
        toward: As for `Labels.number_of`.
        n_examples: How many rows there are.
        positive: The label that is class 1, all others being class 0.

    Raises:
        EntangleError: If not.
    """
    labels = read_labels(given, n_examples, positive=positive, two=True)
    mask: Tensor = torch.from_numpy(labels.codes) == labels.number_of(toward)
    return mask
