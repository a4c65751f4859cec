"""How well scores rank one class above the other."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.statistics import block_sizes, finite


def auroc(
    scores: Float[Tensor, "example *cell"] | ArrayLike,
    labels: Shaped[Tensor, " example"] | ArrayLike,
    weights: Float[Tensor, "resample example"] | None = None,
) -> Float[Tensor, "*cell"] | Float[Tensor, "resample *cell"]:
    """Area under the ROC curve of every cell: the chance that a positive scores above a negative, ties counting half.

    Args:
        scores: One score per example, or a grid of them.
        labels: 1 or True for positives, 0 or False for negatives.
        weights: Weights of the examples for each resample, as `bootstrap_counts` gives them.

    Returns:
        float64, shaped like a cell, with a leading resample axis when there are weights. A resample that drew only one
        class is NaN.

    Raises:
        EntangleError: One class only, labels other than 0 and 1, or scores that are not finite.

    Example:
        >>> en.metrics.auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        tensor(0.7500, dtype=torch.float64)
    """
    x, y = finite(scores, "scores"), torch.as_tensor(np.asarray(labels) if not isinstance(labels, Tensor) else labels)
    if y.shape != x.shape[:1]:
        raise EntangleError(f"labels must be one per example, [{len(x)}], not {tuple(y.shape)}")
    positive = y == 1
    if not bool((positive | (y == 0)).all()) or bool(positive.all()) or not bool(positive.any()):
        raise EntangleError(f"AUROC needs labels of both classes, 0 and 1; got {np.unique(y.cpu()).tolist()[:5]}")
    cells = x.reshape(len(x), -1)
    if weights is None:
        columns = cells.split_with_sizes(block_sizes(cells.shape[1], len(cells)), dim=1)
        return torch.cat([_rank_auroc(block, positive) for block in columns]).reshape(x.shape[1:])
    if weights.shape[1:] != x.shape[:1]:
        raise EntangleError(f"weights must be [resample, {len(x)}], not {tuple(weights.shape)}")
    areas = [
        torch.stack([_weighted_auroc(cell, positive, by_example) for cell in cells.unbind(1)], dim=1)
        for block in weights.split_with_sizes(block_sizes(len(weights), 8 * len(cells)))
        for by_example in [block.T.contiguous()]
    ]
    return torch.cat(areas).reshape(len(weights), *x.shape[1:])


def _rank_auroc(scores: Float[Tensor, "example cell"], positive: Tensor) -> Float[Tensor, " cell"]:
    """Mann & Whitney's U over the number of pairs, from midranks."""
    n, n_positive = len(scores), int(positive.sum())
    ordered, order = scores.sort(dim=0)
    place = torch.arange(n)[:, None]
    edge = torch.ones(1, scores.shape[1], dtype=torch.bool)
    changes = ordered[1:] != ordered[:-1]
    first = torch.where(torch.cat([edge, changes]), place, 0).cummax(0).values
    last = torch.where(torch.cat([changes, edge]), place, n - 1).flip(0).cummin(0).values.flip(0)
    midranks = (first + last).double() / 2 + 1
    u = (midranks * positive[order]).sum(0) - n_positive * (n_positive + 1) / 2
    return u / (n_positive * (n - n_positive))


def _weighted_auroc(
    scores: Float[Tensor, " example"], positive: Tensor, weights: Float[Tensor, "example resample"]
) -> Float[Tensor, " resample"]:
    """Every positive meets the negatives below it whole, and those that tie with it half."""
    ordered, order = scores[~positive].sort()
    negatives, positives = weights[~positive][order], weights[positive]
    mass = torch.cat([torch.zeros_like(negatives[:1]), negatives.cumsum(0)])
    below, up_to = (mass[torch.searchsorted(ordered, scores[positive], right=ties)] for ties in (False, True))
    met = torch.einsum("pr,pr->r", positives, below + up_to).double() / 2
    area: Tensor = met / (positives.sum(0).double() * mass[-1])
    return area
