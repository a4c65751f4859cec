"""The nearest partners of every feature of a dictionary, exactly, in memory that grows linearly with its size.

Screen, then look again. The screen multiplies in bfloat16 where the hardware does so fast, every pair once, and keeps
only the largest absolute cosine of each feature with each of some 512 groups of features. How far a rounded product
can be from the true one is known, so the groups that may hold a partner are, and they alone are multiplied in full
precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.vectors import DirectionsLike, unit_vectors

_GROUPS = 512  # maxima kept of each feature: more of them leave less to look at again, and take more memory
_SMALLEST_GROUP = 16
_ROWS = 4096  # handled together where a copy of all would take memory


class Partners(NamedTuple):
    """The features most aligned with each feature, nearest first: which they are, and the signed cosine.

    Example:
        >>> partners = en.metrics.nearest_partners(torch.tensor([[1.0, 0.0], [-0.6, 0.8], [0.0, 1.0]]))
        >>> partners.feature[:, 0], partners.cosine[:, 0]
        (tensor([1, 2, 1]), tensor([-0.6000,  0.8000,  0.8000]))
    """

    cosine: Float[Tensor, "feature k"]
    feature: Int[Tensor, "feature k"]


def nearest_partners(directions: DirectionsLike, k: int = 1, *, max_bytes: int | None = None) -> Partners:
    """The `k` other features with the largest absolute cosine to each feature.

    Exact: nothing is sampled or approximated, and of partners that are equal up to rounding any may be given. Where all
    directions nearly coincide there is nothing to screen out, and it takes as long as the full product.

    Args:
        directions: `[feature, d]`, on any device; up to millions of features.
        k: Partners per feature, at most `feature - 1`.
        max_bytes: Memory for a block of cosines; by default 8 MB, which stays in a processor's cache, and 1 GB on other
            devices. Beside a few blocks it takes one and a half copies of the directions, 1 to 2 kB per feature, and
            the result.

    Returns:
        Signed cosines and indices, nearest first. Gradients flow through the cosines, with the choice of partner fixed.

    Raises:
        EntangleError: Fewer than two directions, or `k` out of range.

    Example:
        >>> cosine, feature = en.metrics.nearest_partners(torch.tensor([[1.0, 0.0], [-0.6, 0.8], [0.0, 1.0]]), k=2)
        >>> feature  # who the partners are, nearest first
        tensor([[1, 2],
                [2, 0],
                [1, 0]])
        >>> cosine
        tensor([[-0.6000,  0.0000],
                [ 0.8000, -0.6000],
                [ 0.8000,  0.0000]])
    """
    unit = unit_vectors(directions, at_least=2)
    n = len(unit)
    if not 1 <= k < n:
        raise EntangleError(f"k must be from 1 to {n - 1}, the number of other features, not {k}")
    if max_bytes is None:
        max_bytes = 1 << (23 if unit.device.type == "cpu" else 30)
    with torch.no_grad():
        feature = _search(unit, k, max_bytes)
    cosine = torch.stack([_products(unit, column) for column in feature.unbind(1)], dim=1)
    return Partners(cosine.clamp(-1, 1), feature)


def _products(unit: Float[Tensor, "feature d"], partner: Int[Tensor, " feature"]) -> Float[Tensor, " feature"]:
    """Each row with its partner; in pieces where no gradient needs them whole."""
    if unit.requires_grad:
        return (unit * unit[partner]).sum(1)
    pieces = zip(torch.split(unit, _ROWS), torch.split(partner, _ROWS), strict=True)
    return torch.cat([(u * unit[p]).sum(1) for u, p in pieces])


class _Screen(NamedTuple):
    """Largest rounded cosine of each feature with each group, and the lowest that the group of a partner can have."""

    maxima: Float[Tensor, "feature group"]
    size: int
    bar: Float[Tensor, " feature"]

    def wanted(self, rows: slice | Tensor) -> Bool[Tensor, "row group"]:
        """Which groups may hold a partner."""
        return self.maxima[rows] >= self.bar[rows, None]


def _search(unit: Float[Tensor, "feature d"], k: int, max_bytes: int) -> Int[Tensor, "feature k"]:
    n = len(unit)
    partners = torch.empty(n, k, dtype=torch.long, device=unit.device)
    size = max(_SMALLEST_GROUP, math.ceil(n / _GROUPS))
    at_once = max(1, max_bytes // (n * unit.element_size()))
    if 4 * k > n / size:  # most groups hold a partner
        for rows in torch.split(torch.arange(n, device=unit.device), at_once):
            partners[rows] = _among_all(unit, rows, k)
        return partners
    screen = _screened(unit, k, size, max_bytes)
    counts = torch.cat([screen.wanted(slice(i, i + _ROWS)).sum(1) for i in range(0, n, _ROWS)])
    order = counts.argsort(descending=True)  # features with equally many groups to look at are looked at together
    start = 0
    while start < n:
        most = int(counts[order[start]])
        if 2 * most * size > n:
            rows = order[start : start + at_once]
            partners[rows] = _among_all(unit, rows, k)
        else:
            rows = order[start : start + max(1, 4 * max_bytes // (most * size * unit.element_size()))]
            partners[rows] = _among_groups(unit, rows, k, screen.wanted(rows), size)
        start += len(rows)
    return partners


def _screened(unit: Float[Tensor, "feature d"], k: int, size: int, max_bytes: int) -> _Screen:
    dtype = _fast_dtype(unit.device)
    rounded = unit.new_zeros(_up(len(unit), size), unit.shape[1], dtype=dtype)  # fills up the last group with zeros
    lost = unit.new_empty(len(unit))
    for rows in torch.split(torch.arange(len(unit), device=unit.device), _ROWS):
        rounded[rows] = unit[rows].to(dtype)
        lost[rows] = (unit[rows] - rounded[rows]).norm(dim=1)
    maxima = _group_maxima(rounded, size, max_bytes)[: len(unit)]
    kth = torch.cat([part.float().topk(k, dim=1).values[:, -1] for part in torch.split(maxima, _ROWS)])
    # A product of unit vectors differs from that of the rounded ones by what rounding took off either, and from what is
    # stored by the rounding of d sums in float32 and of the result. The k-th best group says that k cosines reach its
    # maximum less one such error; a partner's cosine reaches that too, and its group's maximum falls short by one more.
    error = lost + (1 + lost) * lost.max() + 1.1 * unit.shape[1] * torch.finfo(torch.float32).eps
    bar = kth * (1 - 3 * torch.finfo(dtype).eps) - 2 * error  # one eps more than that, for its own rounding
    return _Screen(maxima, size, bar.to(dtype))


def _group_maxima(rounded: Float[Tensor, "padded d"], size: int, max_bytes: int) -> Float[Tensor, "padded group"]:
    """The largest absolute product of each row with each group, itself left out; every pair is multiplied once."""
    # Absolute floats are ordered as their bits read as integers, whose maxima are fast.
    bits = torch.int16 if rounded.dtype == torch.bfloat16 else torch.int32
    maxima = rounded.new_empty(len(rounded), len(rounded) // size)
    seen = maxima.view(bits)
    side = max(1, int((max_bytes / rounded.element_size()) ** 0.5) // size) * size
    buffer = rounded.new_empty(side * side)
    with _whole_sums():
        for i, rows in enumerate(torch.split(rounded, side)):
            for j, columns in enumerate(torch.split(rounded, side)[i:], start=i):
                block = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
                torch.mm(rows, columns.T, out=block)
                if i == j:
                    block.fill_diagonal_(0)
                absolute = block.view(bits).bitwise_and_(torch.iinfo(bits).max)
                _tile(seen, i, j, side, size).copy_(absolute.view(len(rows), -1, size).amax(2))
                if i != j:
                    _tile(seen, j, i, side, size).copy_(absolute.view(-1, size, len(columns)).amax(1).T)
    return maxima


def _tile(maxima: Tensor, i: int, j: int, side: int, size: int) -> Tensor:
    """Where the maxima of block (i, j) go."""
    groups = side // size
    return maxima[i * side : (i + 1) * side, j * groups : (j + 1) * groups]


def _among_all(unit: Float[Tensor, "feature d"], rows: Int[Tensor, " row"], k: int) -> Int[Tensor, "row k"]:
    cosine = (unit[rows] @ unit.T).abs_()
    cosine.scatter_(1, rows[:, None], -1)
    return cosine.topk(k, dim=1).indices


def _among_groups(
    unit: Float[Tensor, "feature d"], rows: Int[Tensor, " row"], k: int, wanted: Bool[Tensor, "row group"], size: int
) -> Int[Tensor, "row k"]:
    """The nearest partners among the members of each row's wanted groups."""
    row, group = wanted.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(rows))
    place = torch.arange(len(row), device=unit.device) - (counts.cumsum(0) - counts)[row]
    cosine = unit.new_full((len(rows), int(counts.max()), size), -1)
    groups = torch.zeros(cosine.shape[:2], dtype=torch.long, device=unit.device)
    groups[row, place] = group
    group, order = group.sort()  # each group is multiplied once, with all rows that want it
    row, place = row[order], place[order]
    ends = torch.bincount(group, minlength=wanted.shape[1]).cumsum(0).tolist()
    for number, (begin, end) in enumerate(pairwise([0, *ends])):
        if begin < end:
            members, of = unit[number * size : (number + 1) * size], slice(begin, end)
            cosine[row[of], place[of], : len(members)] = (unit[rows[row[of]]] @ members.T).abs_()
    here, slot = (groups == (rows // size)[:, None]).nonzero(as_tuple=True)
    cosine[here, slot, rows[here] % size] = -1
    best = cosine.flatten(1).topk(k, dim=1).indices
    return groups.gather(1, best // size) * size + best % size


def _up(length: int, size: int) -> int:
    return math.ceil(length / size) * size


def _fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = device.type == "cpu" and bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    return torch.bfloat16 if fast else torch.float32


@contextmanager
def _whole_sums() -> Iterator[None]:
    """Partial sums of bfloat16 products stay in float32 on CUDA too."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction
    settings.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        settings.allow_bf16_reduced_precision_reduction = before
