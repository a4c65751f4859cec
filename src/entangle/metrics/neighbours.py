"""The nearest partners of every feature of a dictionary, exactly, in memory that grows linearly with its size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.vectors import DirectionsLike, unit_vectors


class Partners(NamedTuple):
    """The features most aligned with each feature, nearest first: which they are, and the signed cosine."""

    cosine: Float[Tensor, "feature k"]
    feature: Int[Tensor, "feature k"]


def nearest_partners(directions: DirectionsLike, k: int = 1, *, max_bytes: int = 1 << 28) -> Partners:
    """The `k` other features with the largest absolute cosine to each feature.

    Every pair is looked at once: a block of cosines serves its rows and, transposed, its columns.

    Args:
        directions: `[feature, d]`, on any device; up to millions of features.
        k: Partners per feature, at most `feature - 1`.
        max_bytes: Memory for blocks of cosines, beside a unit copy of the directions and the result.

    Returns:
        Signed cosines and indices, nearest first. Gradients flow through the cosines, with the choice of partner fixed.

    Raises:
        EntangleError: Fewer than two directions, or `k` out of range.
    """
    unit = unit_vectors(directions, at_least=2)
    n = len(unit)
    if not 1 <= k < n:
        raise EntangleError(f"k must be from 1 to {n - 1}, the number of other features, not {k}")
    index = _search(unit.detach(), k, max_bytes)
    cosine = torch.stack([(unit * unit[column]).sum(1) for column in index.unbind(1)], dim=1)
    return Partners(cosine.clamp(-1, 1), index)


def _search(unit: Float[Tensor, "feature d"], k: int, max_bytes: int) -> Int[Tensor, "feature k"]:
    n = len(unit)
    size = max(1, min(n, int((max_bytes / (4 * unit.element_size())) ** 0.5)))
    best = unit.new_full((n, k), -1.0)
    index = torch.zeros(n, k, dtype=torch.long, device=unit.device)

    def merge(start: int, found: Float[Tensor, "row column"], offset: int) -> None:
        """Keep the best k of what rows `start...` had and of `found`, whose columns begin at `offset`."""
        rows = slice(start, start + len(found))
        value, column = found.topk(min(k, found.shape[1]), dim=1)
        values, columns = torch.cat([best[rows], value], 1), torch.cat([index[rows], column + offset], 1)
        best[rows], order = values.topk(k, dim=1)
        index[rows] = columns.gather(1, order)

    for i in range(0, n, size):
        for j in range(i, n, size):
            block = (unit[i : i + size] @ unit[j : j + size].T).abs_()
            if i == j:
                block.fill_diagonal_(-1)
            else:
                merge(j, block.T, i)
            merge(i, block, j)
    return index
