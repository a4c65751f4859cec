"""The interval of an area under the ROC curve, which holds near 1, where good scores are, and at 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.intervals.estimate import Estimate, check_level, finite, group_indices, quantile, shaped

Array = NDArray[np.float64]
_DOUBT = 0.5  # pairs in the wrong order, over the smaller class, that weigh as much as Hanley and McNeil's model


def auroc_interval(
    scores: Float[Tensor, "example *cell"] | ArrayLike,
    labels: Int[Tensor, " example"] | ArrayLike,
    *,
    n_classes: int = 2,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Estimate:
    """AUROC with a score interval: DeLong's variance, carried to every candidate area by Hanley and McNeil's model.

    Those areas A are held for which |estimate - A| <= z sqrt(c V(A)). V is Hanley & McNeil's (1982) variance with
    Newcombe's (2006, method 5) sample sizes; c is what DeLong, DeLong & Clarke-Pearson's (1988) variance of these
    scores is to V at the estimate, or Obuchowski's (1997) where there are groups. Where nearly no pair is in the wrong
    order, DeLong's variance tells nothing, and c goes to 1, or with groups to their mean size: at an estimate of
    exactly 1 the lower end is Newcombe's, and the interval is never of no width.

    Args:
        scores: `[example, *cell]` for two classes; `[example, *cell, class]` for more, where the area is the mean of
            each class against the rest.
        labels: Class numbers.
        n_classes: How many classes there are.
        groups: A group for each example.
        level: Coverage of the interval, in (0, 1).

    Returns:
        Area, low and high: floats for one score per example, else float64 tensors shaped like a cell.

    Raises:
        EntangleError: A class without examples, labels of another length, or fewer than two groups.

    Example:
        >>> scores, labels = torch.arange(20.0), torch.arange(20) >= 10
        >>> en.metrics.auroc_interval(scores, labels)  # a perfect order of twenty is not yet an AUROC of 1
        Estimate(value=1.0, low=0.800, high=1.0)
    """
    check_level(level)
    x, y = finite(scores, "scores").numpy(), np.asarray(labels)
    if y.shape != x.shape[:1]:
        raise EntangleError(f"labels must be one per example, [{len(x)}], not {tuple(y.shape)}")
    counts = np.bincount(y.astype(np.int64), minlength=n_classes)
    if len(counts) > n_classes or counts.min() == 0:
        raise EntangleError(f"AUROC needs examples of all {n_classes} classes; got {counts.tolist()}")
    shape = x.shape[1:] if n_classes == 2 else x.shape[1:-1]
    one_against_rest = [(x, y == 1)] if n_classes == 2 else [(x[..., k], y == k) for k in range(n_classes)]
    parts = [_influence(values.reshape(len(y), -1), positive) for values, positive in one_against_rest]
    area = np.mean([part[0] for part in parts], axis=0)
    influence = np.mean([part[1] for part in parts], axis=0)

    index = group_indices(groups, len(y)).numpy()
    sizes = np.bincount(index).astype(np.float64)
    z, worst = quantile(level), 1.0
    if len(sizes) < len(y):
        if len(sizes) < 2:
            raise EntangleError("an interval needs at least 2 groups, not 1; give more")
        summed = np.zeros((len(sizes), influence.shape[1]))
        np.add.at(summed, index, influence)
        influence = summed * np.sqrt(len(sizes) / (len(sizes) - 1))
        z, worst = quantile(level, len(sizes) - 1), float((sizes**2).sum() / sizes.sum())
    positives = float(counts[1]) if n_classes == 2 else len(y) / n_classes
    spread = _spread(area, (influence**2).sum(0), positives, len(y) - positives, worst)
    low = _end(area, np.zeros_like(area), lambda a: z * np.sqrt(spread(a)))
    high = _end(area, np.ones_like(area), lambda a: z * np.sqrt(spread(a)))
    ends = torch.from_numpy(np.stack([area, low, high]))
    return shaped(ends[0], ends[1], ends[2], shape)


def _influence(scores: Array, positive: NDArray[np.bool_]) -> tuple[Array, Array]:
    """The areas of some cells, and what each example adds to them; the sum of squares is DeLong's variance."""
    m, n = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(scores, axis=0)
    above = (ranks[positive] - rankdata(scores[positive], axis=0)) / n  # share of negatives below each positive
    below = 1 - (ranks[~positive] - rankdata(scores[~positive], axis=0)) / m
    area = above.mean(0)
    influence = np.zeros_like(ranks)
    influence[positive] = (above - area) / np.sqrt(m * max(1, m - 1))
    influence[~positive] = (below - area) / np.sqrt(n * max(1, n - 1))
    return area, influence


def _spread(area: Array, variance: Array, m: float, n: float, worst: float) -> Callable[[Array], Array]:
    """The variance of an estimate, as a function of the true area."""

    def model(a: Array) -> Array:
        size = (m + n) / 2 - 1
        return a * (1 - a) * (1 + size * (1 - a) / (2 - a) + size * a / (1 + a)) / (m * n)

    wrong = 2 * np.minimum(area, 1 - area) * min(m, n) / worst
    trust = wrong / (wrong + _DOUBT)
    expected = model(area)
    has_variance = (expected > 0) & (variance > 0)
    ratio = np.where(has_variance, variance / np.where(has_variance, expected, 1), worst)
    scale = ratio**trust * worst ** (1 - trust)
    return lambda a: scale * model(a)


def _end(area: Array, limit: Array, half: Callable[[Array], Array]) -> Array:
    """The candidate furthest towards a limit from which the estimate is still likely enough, by bisection."""
    inside, outside = area.copy(), limit.copy()
    for _ in range(60):
        middle = (inside + outside) / 2
        held = np.abs(area - middle) <= half(middle)
        inside, outside = np.where(held, middle, inside), np.where(held, outside, middle)
    return np.where(np.abs(area - limit) < 1e-15, limit, (inside + outside) / 2)
