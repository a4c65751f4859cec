"""Intervals, tests and ranks that every reported number uses: bootstrap, Wilson, permutation, Holm, AUROC.

Resampling is a matrix product: a resample of n examples is a row of n counts, so a thousand resamples of any mean, over
any grid of cells, are one `counts @ values`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from entangle.errors import EntangleError

_BLOCK = 1 << 23  # elements of one block of counts: 64 MB in float64


class Estimate(NamedTuple):
    """A value and the interval around it: three floats, or three tensors of one shape."""

    value: float | Tensor
    low: float | Tensor
    high: float | Tensor


def bootstrap_counts(
    n: int, n_resamples: int, *, seed: int = 0, groups: ArrayLike | None = None
) -> Float[Tensor, "resample example"]:
    """How often each of `n` examples occurs in each resample (Efron 1979), as float32 counts.

    `counts @ values / counts.sum(1, keepdim=True)` is then the mean of every resample.

    Args:
        n: Number of examples.
        n_resamples: Number of resamples.
        seed: Seed; the same seed gives the same resamples, so that two statistics can be paired.
        groups: A group for each example (prompt, document, author...): whole groups are drawn, and every example of a
            group has its group's count. Without it, every example is a group of its own.

    Returns:
        Counts; without groups each row sums to `n`.

    Raises:
        EntangleError: Fewer than one example or resample, or groups of another length.
    """
    return torch.cat([block.float() for block in _count_blocks(n, n_resamples, seed=seed, groups=groups)])


def bootstrap_mean(
    values: Float[Tensor, "example *cell"] | ArrayLike,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    groups: ArrayLike | None = None,
    method: Literal["bca", "percentile"] = "bca",
) -> Estimate:
    """The mean over axis 0 with its bootstrap interval.

    Args:
        values: One value per example, or a grid of them; the resamples are the same for every cell.
        n_resamples: Number of resamples.
        level: Coverage of the interval, in (0, 1).
        seed: Seed of the resamples.
        groups: Draws whole groups of examples (see `bootstrap_counts`).
        method: "bca", bias-corrected and accelerated (Efron 1987; the acceleration from the jackknife), or
            "percentile".

    Returns:
        Mean, low and high: floats for one value per example, else tensors shaped like a cell. Values that are all equal
        have an interval of no width: with a handful of examples, that says little.

    Raises:
        EntangleError: Fewer than two examples or groups, or values that are not finite.
    """
    x, groups_of = finite(values, "values"), _group_indices(groups, len(torch.as_tensor(values)))
    _check_level(level)
    if method not in ("bca", "percentile"):
        raise EntangleError(f'method must be "bca" or "percentile", not {method!r}')
    n_groups = int(groups_of.max()) + 1
    if n_groups < 2:
        raise EntangleError(f"an interval needs at least 2 examples (or groups), not {n_groups}; give more")

    cells = x.flatten(1) if x.ndim > 1 else x[:, None]
    sums = torch.zeros(n_groups, cells.shape[1], dtype=torch.float64).index_add_(0, groups_of, cells)
    sizes = torch.bincount(groups_of, minlength=n_groups).double()
    mean = sums.sum(0) / sizes.sum()
    draws = torch.cat(
        [counts @ sums / (counts @ sizes)[:, None] for counts in _count_blocks(n_groups, n_resamples, seed=seed)]
    )
    if method == "percentile":
        low, high = _quantiles(draws, _tails(level).expand(2, len(mean)))
    else:
        influence = mean - (sums.sum(0) - sums) / (sizes.sum() - sizes)[:, None]
        influence = influence - influence.mean(0)
        acceleration = (influence**3).sum(0) / (6 * (influence**2).sum(0).clamp(min=1e-200) ** 1.5)
        low, high = _corrected_quantiles(mean, draws, level, acceleration)
    if x.ndim == 1:
        return Estimate(mean.item(), low.item(), high.item())
    return Estimate(*(t.reshape(x.shape[1:]) for t in (mean, low, high)))


def bias_corrected_interval(
    value: Float[Tensor, "*cell"], draws: Float[Tensor, "resample *cell"], *, level: float = 0.95
) -> Estimate:
    """The interval of any statistic from its bootstrap draws, corrected for their bias (Efron 1981, the BC method).

    Where the draws lie to one side of the value, as those of a maximum do, the interval moves to the other. It does not
    change under monotone transformations of the statistic.

    Args:
        value: The statistic on all examples.
        draws: The statistic on each resample.
        level: Coverage, in (0, 1).

    Returns:
        Tensors shaped like `value`.
    """
    _check_level(level)
    flat = value.reshape(-1).double(), draws.reshape(len(draws), -1).double()
    low, high = _corrected_quantiles(*flat, level, acceleration=0)
    return Estimate(value, low.reshape(value.shape), high.reshape(value.shape))


def paired_difference(
    a: Float[Tensor, "example *cell"] | ArrayLike,
    b: Float[Tensor, "example *cell"] | ArrayLike,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    groups: ArrayLike | None = None,
    method: Literal["bca", "percentile"] = "bca",
) -> Estimate:
    """The mean of `a - b` over examples measured under both conditions, with its bootstrap interval.

    Both conditions share their resamples, so what makes an example easy or hard cancels. Arguments as in
    `bootstrap_mean`.

    Raises:
        EntangleError: Conditions of different shapes, or anything `bootstrap_mean` refuses.
    """
    return bootstrap_mean(_paired(a, b), n_resamples=n_resamples, level=level, seed=seed, groups=groups, method=method)


def paired_permutation_test(
    a: Float[Tensor, " example"] | ArrayLike,
    b: Float[Tensor, " example"] | ArrayLike,
    *,
    n_permutations: int = 10_000,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> float:
    """Two-sided p-value of the mean of `a - b` when the two conditions of an example may be swapped (sign flips).

    Args:
        a: One value per example under the first condition.
        b: The same examples under the second condition.
        n_permutations: Number of random swaps; the p-value is at least `1 / (n_permutations + 1)`.
        seed: Seed of the swaps.
        groups: Swaps whole groups of examples together.

    Returns:
        `(1 + number of swaps at least as extreme) / (1 + n_permutations)` (Phipson & Smyth 2010), never 0.
    """
    difference = _paired(a, b)
    if difference.ndim != 1:
        raise EntangleError(f"a paired test takes one value per example, not shape {tuple(difference.shape)}")
    groups_of = _group_indices(groups, len(difference))
    sums = torch.zeros(int(groups_of.max()) + 1, dtype=torch.float64).index_add_(0, groups_of, difference)
    # The slack counts a swap that gives the same sum in another order of addition as a tie.
    threshold = sums.sum().abs() - 1e-12 * sums.abs().sum()
    generator = torch.Generator().manual_seed(seed)
    extreme = 0
    for size in block_sizes(n_permutations, len(sums)):
        signs = torch.randint(2, (size, len(sums)), generator=generator).double().mul_(2).sub_(1)
        extreme += int(((signs @ sums).abs() >= threshold).sum())
    return (1 + extreme) / (1 + n_permutations)


def wilson_interval(successes: ArrayLike, n: ArrayLike, *, level: float = 0.95) -> Estimate:
    """The share `successes / n` with Wilson's score interval (Wilson 1927), which holds at small n and near 0 and 1.

    Args:
        successes: Number of successes, a number or an array.
        n: Number of trials, broadcast against `successes`.
        level: Coverage, in (0, 1).

    Returns:
        Share, low and high: floats for two numbers, else float64 tensors.

    Raises:
        EntangleError: No trials, or successes outside [0, n].
    """
    _check_level(level)
    k, trials = (torch.tensor(v, dtype=torch.float64) for v in np.broadcast_arrays(successes, n))
    if not bool(((trials > 0) & (k >= 0) & (k <= trials)).all()):
        raise EntangleError(f"a rate needs n > 0 and successes in [0, n]; got successes={successes!r}, n={n!r}")
    z = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))
    p = k / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * (p * (1 - p) / trials + z**2 / (4 * trials**2)).sqrt()
    low = torch.where(k == 0, torch.zeros_like(p), centre - half)
    high = torch.where(k == trials, torch.ones_like(p), centre + half)
    return Estimate(p.item(), low.item(), high.item()) if p.ndim == 0 else Estimate(p, low, high)


def holm(p_values: Float[Tensor, "*test"] | ArrayLike) -> Float[Tensor, "*test"]:
    """P-values adjusted for multiple tests by Holm's step-down (Holm 1979): valid under any dependence.

    Args:
        p_values: Any shape; all of them are one family.

    Returns:
        Adjusted p-values of the same shape, in float64.
    """
    p = finite(p_values, "p_values")
    if bool(((p < 0) | (p > 1)).any()):
        raise EntangleError("p_values must lie in [0, 1]")
    ordered, order = p.flatten().sort()
    steps = torch.arange(len(ordered), 0, -1, dtype=torch.float64)
    adjusted = (ordered * steps).cummax(0).values.clamp(max=1)
    return torch.empty_like(adjusted).scatter_(0, order, adjusted).reshape(p.shape)


def max_statistic_p(
    observed: Float[Tensor, "*cell"] | ArrayLike, null: Float[Tensor, "permutation *cell"] | ArrayLike
) -> Float[Tensor, "*cell"]:
    """P-values over a grid against the null of the grid's maximum (Westfall & Young 1993, single step).

    Corrects for looking at every cell, and loses nothing to how strongly the cells move together.

    Args:
        observed: The statistic of each cell; large is extreme.
        null: The same statistic under each permutation.

    Returns:
        Adjusted p-values shaped like `observed`, in float64, at least `1 / (permutations + 1)`.
    """
    x, draws = finite(observed, "observed"), finite(null, "null")
    if draws.shape[1:] != x.shape or len(draws) == 0:
        raise EntangleError(
            f"null must be [permutation, *{tuple(x.shape)}] like observed, with a permutation or more; "
            f"got {tuple(draws.shape)}"
        )
    maxima = draws.reshape(len(draws), -1).amax(1).sort().values
    reached = len(maxima) - torch.searchsorted(maxima, x.contiguous(), side="left")
    return (1 + reached).double() / (1 + len(maxima))


def _count_blocks(
    n: int, n_resamples: int, *, seed: int, groups: ArrayLike | None = None
) -> Iterator[Float[Tensor, "resample example"]]:
    """The rows of `bootstrap_counts` in float64, a bounded number at a time; blocking does not change them."""
    if n < 1 or n_resamples < 1:
        raise EntangleError(f"a bootstrap needs 1 example and 1 resample or more, not n={n}, n_resamples={n_resamples}")
    groups_of = _group_indices(groups, n)
    n_groups = int(groups_of.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    for size in block_sizes(n_resamples, n):
        drawn = torch.randint(n_groups, (size, n_groups), generator=generator)
        counts = torch.zeros(size, n_groups, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        yield counts if groups is None else counts[:, groups_of]


def block_sizes(rows: int, row_length: int) -> list[int]:
    """How many rows of this length to take at once, until all are taken, within a bounded memory."""
    block = max(1, _BLOCK // row_length)
    return [min(block, rows - start) for start in range(0, rows, block)]


def _group_indices(groups: ArrayLike | None, n: int) -> Int[Tensor, " example"]:
    """Groups of any sortable kind as 0, 1, 2..."""
    if groups is None:
        return torch.arange(n)
    names = np.asarray(groups)
    if names.shape != (n,):
        raise EntangleError(f"groups must name a group for each of {n} examples, not have shape {names.shape}")
    return torch.from_numpy(np.unique(names, return_inverse=True)[1].reshape(-1))


def _tails(level: float) -> Float[Tensor, "2 1"]:
    return torch.tensor([[(1 - level) / 2], [(1 + level) / 2]], dtype=torch.float64)


def _corrected_quantiles(
    value: Float[Tensor, " cell"],
    draws: Float[Tensor, "resample cell"],
    level: float,
    acceleration: Float[Tensor, " cell"] | float,
) -> Float[Tensor, "2 cell"]:
    """Quantiles corrected for the bootstrap's bias, and for how its spread changes with the value (acceleration)."""
    share_below = ((draws < value).double().mean(0) + (draws <= value).double().mean(0)) / 2
    limit = 0.5 / len(draws)  # a finite correction where every draw lies on one side
    bias = torch.special.ndtri(share_below.clamp(limit, 1 - limit))
    shifted = bias + torch.special.ndtri(_tails(level))
    return _quantiles(draws, torch.special.ndtr(bias + shifted / (1 - acceleration * shifted)))


def _quantiles(draws: Float[Tensor, "resample cell"], ranks: Float[Tensor, "2 cell"]) -> Float[Tensor, "2 cell"]:
    """A different pair of quantiles for each cell, interpolated linearly between order statistics."""
    ordered = draws.sort(dim=0).values
    position = ranks * (len(ordered) - 1)
    lower = position.floor().long()
    upper = position.ceil().long()
    fraction = position - lower
    return ordered.gather(0, lower) * (1 - fraction) + ordered.gather(0, upper) * fraction


def _paired(a: Tensor | ArrayLike, b: Tensor | ArrayLike) -> Tensor:
    x, y = finite(a, "a"), finite(b, "b")
    if x.shape != y.shape:
        raise EntangleError(
            f"paired conditions need one shape, not {tuple(x.shape)} and {tuple(y.shape)}; "
            "measure both on the same examples"
        )
    return x - y


def finite(values: Tensor | ArrayLike | Sequence[float], what: str) -> Tensor:
    """As a float64 tensor on the CPU with at least one value, all finite."""
    x = (values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))).double()
    if x.ndim == 0 or x.numel() == 0:
        raise EntangleError(f"{what} must hold one value per example or test; got shape {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise EntangleError(f"{what} holds {int((~x.isfinite()).sum())} of {x.numel()} values that are not finite")
    return x


def _check_level(level: float) -> None:
    if not (math.isfinite(level) and 0 < level < 1):
        raise EntangleError(f"level must lie strictly between 0 and 1, such as 0.95, not {level}")
