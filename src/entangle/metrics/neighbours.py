"""The nearest partners of every feature of a dictionary, exactly, in memory that grows linearly with its size."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.vectors import DirectionsLike, unit_vectors

_GROUP = 128  # features per group: long enough to make the groups few, short enough to search them again


class Partners(NamedTuple):
    """The features most aligned with each feature, nearest first: which they are, and the signed cosine."""

    cosine: Float[Tensor, "feature k"]
    feature: Int[Tensor, "feature k"]


def nearest_partners(directions: DirectionsLike, k: int = 1, *, max_bytes: int | None = None) -> Partners:
    """The `k` other features with the largest absolute cosine to each feature.

    Every pair is looked at once: a block of cosines serves its rows and, transposed, its columns. Of each block only
    the maxima of small groups are kept. The k nearest partners lie in the k groups with the largest maxima, so a short
    second pass over those finds them.

    Args:
        directions: `[feature, d]`, on any device; up to millions of features.
        k: Partners per feature, at most `feature - 1`.
        max_bytes: Memory for a block of cosines, beside a unit copy of the directions and the result; by default 16 MB,
            which stays in a processor's cache, and 1 GB on other devices.

    Returns:
        Signed cosines and indices, nearest first. Gradients flow through the cosines, with the choice of partner fixed.

    Raises:
        EntangleError: Fewer than two directions, or `k` out of range.
    """
    unit = unit_vectors(directions, at_least=2)
    n = len(unit)
    if not 1 <= k < n:
        raise EntangleError(f"k must be from 1 to {n - 1}, the number of other features, not {k}")
    if max_bytes is None:
        max_bytes = 1 << (24 if unit.device.type == "cpu" else 30)
    with torch.no_grad():
        feature = _within(unit, _best_groups(unit, k, max_bytes), k, max_bytes)
    cosine = torch.stack([(unit * unit[column]).sum(1) for column in feature.unbind(1)], dim=1)
    return Partners(cosine.clamp(-1, 1), feature)


class _Groups(NamedTuple):
    """The groups of `size` consecutive features in which each feature's nearest partners lie."""

    number: Int[Tensor, "feature candidate"]
    size: int


def _best_groups(unit: Float[Tensor, "feature d"], k: int, max_bytes: int) -> _Groups:
    n = len(unit)
    side = min(n, max(1, int((max_bytes / unit.element_size()) ** 0.5)))
    group = max(1, min(_GROUP, side // 16))
    side = math.ceil(side / group) * group
    buffer = unit.new_empty(side, side)
    kept = min(k, math.ceil(n / group))
    best = unit.new_full((n, kept), -2.0)
    index = torch.zeros(n, kept, dtype=torch.long, device=unit.device)

    def merge(start: int, maxima: Float[Tensor, "row group"], offset: int) -> None:
        """Keep the best groups of what rows `start...` had and of `maxima`, whose first group is number `offset`."""
        rows = slice(start, start + len(maxima))
        numbers = torch.arange(offset, offset + maxima.shape[1], device=unit.device).expand(len(maxima), -1)
        best[rows], order = torch.cat([best[rows], maxima], 1).topk(kept, dim=1)
        index[rows] = torch.cat([index[rows], numbers], 1).gather(1, order)

    for i in range(0, n, side):
        rows = unit[i : i + side]
        for j in range(i, n, side):
            columns = unit[j : j + side]
            block = buffer[: len(rows), : len(columns)]
            torch.mm(rows, columns.T, out=block).abs_()
            if i == j:
                block.fill_diagonal_(-1)
            # What fills up the last group of the last block is no feature.
            whole = buffer[: _up(len(rows), group), : _up(len(columns), group)]
            whole[len(rows) :], whole[:, len(columns) :] = -1, -1
            merge(i, whole[: len(rows)].view(len(rows), -1, group).amax(2), j // group)
            if i != j:
                merge(j, whole[:, : len(columns)].view(-1, group, len(columns)).amax(1).T, i // group)
    return _Groups(index, group)


def _within(unit: Float[Tensor, "feature d"], groups: _Groups, k: int, max_bytes: int) -> Int[Tensor, "feature k"]:
    """The nearest partners among the members of each feature's groups."""
    n, (candidates, size) = len(unit), groups
    members = torch.arange(size, device=unit.device)
    found = torch.empty(n, k, dtype=torch.long, device=unit.device)
    step = max(1, 4 * max_bytes // (candidates.shape[1] * size * unit.element_size()))
    for start in range(0, n, step):
        chunk = candidates[start : start + step]
        cosine = unit.new_full((*chunk.shape, size), -1.0)
        order = chunk.flatten().argsort()
        ends = torch.bincount(chunk.flatten()).cumsum(0).tolist()
        for number, (begin, end) in enumerate(pairwise([0, *ends])):
            if begin == end:
                continue
            places = order[begin:end]
            columns = unit[number * size : (number + 1) * size]
            rows = unit[start + places // chunk.shape[1]]
            cosine.view(-1, size)[places, : len(columns)] = (rows @ columns.T).abs_()
        features = chunk[..., None] * size + members
        cosine[features == torch.arange(start, start + len(chunk), device=unit.device)[:, None, None]] = -1
        found[start : start + step] = features.flatten(1).gather(1, cosine.flatten(1).topk(k, dim=1).indices)
    return found


def _up(length: int, group: int) -> int:
    return math.ceil(length / group) * group
