"""What every metric of directions starts from: a `[feature, d]` matrix, its unit rows and their cosines."""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.errors import EntangleError


@runtime_checkable
class HasVectors(Protocol):
    """Anything with a `[feature, d]` matrix of directions, such as `entangle.Directions`."""

    @property
    def vectors(self) -> Tensor: ...  # noqa: D102


DirectionsLike: TypeAlias = Float[Tensor, "feature d"] | HasVectors


def as_vectors(directions: DirectionsLike, *, at_least: int = 1) -> Float[Tensor, "feature d"]:
    """The matrix behind `directions`, in float32 or float64.

    Args:
        directions: A `[feature, d]` tensor or array, or anything that has one as `.vectors`.
        at_least: How many features the caller needs.

    Raises:
        EntangleError: Another shape, too few features, or values that are not finite.

    Example:
        >>> en.metrics.as_vectors(directions).shape, en.metrics.as_vectors(np.eye(2)).dtype
        (torch.Size([3, 32]), torch.float64)
    """
    matrix = directions.vectors if isinstance(directions, HasVectors) else directions
    vectors = matrix if isinstance(matrix, Tensor) else torch.as_tensor(np.asarray(matrix))
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise EntangleError(f"directions must be [feature, d], not {tuple(vectors.shape)}")
    if len(vectors) < at_least:
        raise EntangleError(f"this needs {at_least} directions or more, not {len(vectors)}; give more concepts")
    if not vectors.is_floating_point() or vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    if not bool(vectors.isfinite().all()):
        bad = (~vectors.isfinite()).any(1).nonzero().flatten().tolist()
        raise EntangleError(f"{len(bad)} of {len(vectors)} directions hold NaN or infinity, the first at row {bad[0]}")
    return vectors


def unit_vectors(directions: DirectionsLike, *, at_least: int = 1) -> Float[Tensor, "feature d"]:
    """The rows of `directions`, each divided by its length.

    Raises:
        EntangleError: A row of zeros, which has no direction, or anything `as_vectors` refuses.

    Example:
        >>> en.metrics.unit_vectors(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """
    vectors = as_vectors(directions, at_least=at_least)
    largest = torch.maximum(vectors.amax(1, keepdim=True), -vectors.amin(1, keepdim=True))
    zero = (largest == 0).nonzero()
    if len(zero):
        raise EntangleError(f"row {int(zero[0, 0])} of the directions is all zeros and points nowhere; leave it out")
    scaled = vectors / largest  # so that squares of huge and tiny rows neither overflow nor vanish
    length = scaled.norm(dim=1, keepdim=True)
    unit: Tensor = scaled / length if scaled.requires_grad else scaled.div_(length)
    return unit


def cosines(directions: DirectionsLike) -> Float[Tensor, "feature feature"]:
    """Cosine of every pair of directions, in [-1, 1], with exactly 1 on the diagonal.

    Example:
        >>> en.metrics.cosines(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        tensor([[1.0000, 0.6000],
                [0.6000, 1.0000]])
    """
    unit = unit_vectors(directions)
    gram = (unit @ unit.T).clamp(-1, 1)
    cosine: Tensor = gram.masked_fill(torch.eye(len(unit), dtype=torch.bool, device=unit.device), 1)
    return cosine


MASSIVE = 8.0
"""How many times the median coordinate's standard deviation a massive one has."""
MASSIVE_SHARE = 0.05
"""The least share of all variance that a massive coordinate has."""


def massive_coordinates(
    x: Float[Tensor, "example d"], factor: float = MASSIVE, share: float = MASSIVE_SHARE
) -> Int[Tensor, " massive"]:
    """Coordinates that vary so much more than the others that they alone may decide every cosine.

    Pretrained transformers have a few (Sun, Chen, Kolter & Liu 2024, "Massive activations in large language models"):
    the direction of any concept is long along them, and two directions that share nothing else have a large cosine.

    Args:
        x: Activations at one place.
        factor: How many times the median of all coordinates' standard deviations is massive; above 1.
        share: The least share of the variance of all coordinates together.

    Returns:
        Their indices, ascending; none where no coordinate stands out.

    Raises:
        EntangleError: No matrix of activations, or a factor that is 1 or below.

    Example:
        >>> x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> x[:, 3] *= 300
        >>> en.metrics.massive_coordinates(x)
        tensor([3])
    """
    if x.ndim != 2 or not len(x):
        raise EntangleError(f"massive coordinates are found in activations [example, d]; got {tuple(x.shape)}")
    if not factor > 1:
        raise EntangleError(f"factor must be above 1; got {factor}: give how many times the median is massive")
    spread = x.double().std(0, correction=0)
    living = spread[spread > 0]  # a coordinate that never changes says nothing of the usual one
    if not len(living):
        return spread.nonzero()[:, 0]
    variances = spread.square()
    massive: Tensor = (spread > factor * living.median()) & (variances > share * variances.sum())
    return massive.nonzero()[:, 0]
