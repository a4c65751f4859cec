"""Intervals, tests and ranks that every reported number uses: bootstrap, Wilson, permutation, Holm, AUROC.

Resampling is a matrix product: a resample of n examples is a row of n counts, so a thousand resamples of any mean, over
any grid of cells, are one `counts @ values`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.intervals.bounded import Bounds, check_bounds, no_narrower
from entangle.metrics.intervals.estimate import (
    Estimate,
    block_sizes,
    by_group,
    check_level,
    finite,
    group_indices,
    quantile,
    shaped,
)
from entangle.metrics.intervals.p_values import holm, max_statistic_p, paired, paired_permutation_test
from entangle.metrics.intervals.rates import wilson_interval
from entangle.metrics.intervals.serial import serial_effect

__all__ = [
    "Bounds",
    "Estimate",
    "bias_corrected_interval",
    "block_sizes",
    "bootstrap_counts",
    "bootstrap_mean",
    "bootstrap_ratio",
    "finite",
    "holm",
    "max_statistic_p",
    "paired_difference",
    "paired_permutation_test",
    "wilson_interval",
]

_FEW = 30  # examples or groups below which a bootstrap alone is too narrow


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

    Example:
        >>> en.metrics.bootstrap_counts(5, 3)
        tensor([[1., 0., 0., 2., 2.],
                [0., 0., 2., 2., 1.],
                [0., 3., 0., 1., 1.]])
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
    bounds: Bounds | None = None,
) -> Estimate:
    """The mean over axis 0 with its bootstrap interval.

    Hits that are 0 or 1 have better intervals of their own (`rate_interval`, `paired_rate_interval`).

    Args:
        values: One value per example, or a grid of them; the resamples are the same for every cell.
        n_resamples: Number of resamples.
        level: Coverage of the interval, in (0, 1).
        seed: Seed of the resamples.
        groups: Draws whole groups of examples (see `bootstrap_counts`).
        method: "bca", bias-corrected and accelerated (Efron 1987; the acceleration from the jackknife), or
            "percentile". With fewer than 30 examples or groups, never narrower than Student's t over them.
        bounds: Between which numbers every value lies. Then no interval is narrower than n examples allow: a share of
            z^2 / (n + z^2) of all examples may lie at a bound and not be among these (Wilson's interval, for the rate
            of such examples). For differences, with bounds on both sides of 0, only where all are equal.

    Returns:
        Mean, low and high: floats for one value per example, else tensors shaped like a cell. Values that are all equal
        have no spread to resample: their interval reaches as far as `bounds` let it, and is infinite without.

    Raises:
        EntangleError: Fewer than two examples or groups, or values that are not finite or out of bounds.

    Example:
        >>> en.metrics.bootstrap_mean([2.0, 3.0, 5.0, 7.0, 11.0])
        Estimate(value=5.6, low=1.158, high=10.042)
        >>> en.metrics.bootstrap_mean([0.0] * 20, bounds=(0.0, 1.0))  # all equal, and still an interval
        Estimate(value=0.0, low=0.0, high=0.161)
    """
    x = finite(values, "values")
    sums, sizes = by_group(x, groups)
    check_bounds(x, bounds)
    return _interval(sums, sizes, x.shape[1:], n_resamples, level, seed, method, bounds)


def bootstrap_ratio(
    sums: Float[Tensor, "row *cell"] | ArrayLike,
    sizes: Float[Tensor, " row"] | ArrayLike,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    method: Literal["bca", "percentile"] = "bca",
    bounds: Bounds | None = None,
    serial: bool = False,
) -> Estimate:
    """The sum of sums over the sum of sizes, such as nats per token of documents, whole rows resampled.

    Args:
        sums: Sum of each row, or a grid of them.
        sizes: How much each row's sum is of, such as its tokens; rows of size 0 are left out.
        n_resamples: Number of resamples.
        level: Coverage of the interval, in (0, 1).
        seed: Seed of the resamples.
        method: As in `bootstrap_mean`.
        bounds: Between which numbers the ratio of every row lies, as in `bootstrap_mean`.
        serial: Rows stand in an order in which neighbours may be alike, such as chunks of one document: the interval is
            as wide as the number of rows that they are worth asks (`serial_effect`). For a single cell.

    Returns:
        As `bootstrap_mean`.

    Raises:
        EntangleError: Fewer than two rows, values that are not finite or out of bounds, or no sizes above 0.

    Example:
        >>> nats, tokens = [20.0, 33.0, 12.0], [10.0, 15.0, 5.0]
        >>> en.metrics.bootstrap_ratio(nats, tokens)  # nats per token
        Estimate(value=2.167, low=1.811, high=2.522)
    """
    x, n = finite(sums, "sums"), finite(sizes, "sizes")
    if n.shape != x.shape[:1] or bool((n < 0).any()):
        raise EntangleError(f"sizes must be one per row, [{len(x)}], 0 or more; got {tuple(n.shape)}")
    x, n = x[n > 0], n[n > 0]
    if len(n) < 2:
        raise EntangleError(f"an interval needs at least 2 rows of a size above 0, not {len(n)}; give more")
    cells = x.flatten(1) if x.ndim > 1 else x[:, None]
    check_bounds(cells / n[:, None], bounds)
    return _interval(cells, n, x.shape[1:], n_resamples, level, seed, method, bounds, serial=serial)


def _interval(
    sums: Float[Tensor, "row cell"],
    sizes: Float[Tensor, " row"],
    shape: tuple[int, ...],
    n_resamples: int,
    level: float,
    seed: int,
    method: str,
    bounds: Bounds | None,
    *,
    serial: bool = False,
) -> Estimate:
    check_level(level)
    if method not in ("bca", "percentile"):
        raise EntangleError(f'method must be "bca" or "percentile", not {method!r}')
    n, total = len(sizes), sizes.sum()
    mean = sums.sum(0) / total
    draws = torch.cat(
        [counts @ sums / (counts @ sizes)[:, None] for counts in _count_blocks(n, n_resamples, seed=seed)]
    )
    influence = mean - (sums.sum(0) - sums) / (total - sizes)[:, None]  # of the jackknife
    influence = influence - influence.mean(0)
    spread = influence.square().sum(0)
    if method == "percentile":
        low, high = _quantiles(draws, _tails(level).expand(2, len(mean)))
    else:
        acceleration = influence.pow(3).sum(0) / (6 * spread.clamp(min=1e-200) ** 1.5)
        low, high = _corrected_quantiles(mean, draws, level, acceleration)
    if n < _FEW:
        half = quantile(level, n - 1) * (spread * (n - 1) / n).sqrt()
        low, high = torch.minimum(low, mean - half), torch.maximum(high, mean + half)
    worth = torch.full_like(mean, float(n))
    if serial:
        effects = torch.tensor([serial_effect(column.numpy()) for column in influence.T], dtype=torch.float64)
        worth = n / effects
        freedom = (worth - 1).clamp(min=1)
        wider = effects.sqrt() * torch.tensor([quantile(level, float(df)) for df in freedom]) / quantile(level)
        wider = torch.where(effects > 1, wider, 1.0)
        low, high = mean + (low - mean) * wider, mean + (high - mean) * wider
    constant = spread.sqrt() <= 1e-12 * (sums / sizes[:, None]).abs().amax(0).clamp(min=1e-300)
    return shaped(mean, *no_narrower(mean, low, high, worth, constant, bounds, level), shape)


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

    Example:
        >>> values = torch.arange(50.0)
        >>> counts = en.metrics.bootstrap_counts(50, 1000)
        >>> draws = counts @ values / 50
        >>> estimate = en.metrics.bias_corrected_interval(values.mean(), draws)
        >>> bool(estimate.low < estimate.value < estimate.high)
        True
    """
    check_level(level)
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
    bounds: Bounds | None = None,
) -> Estimate:
    """The mean of `a - b` over examples measured under both conditions, with its bootstrap interval.

    Both conditions share their resamples, so what makes an example easy or hard cancels. Arguments as in
    `bootstrap_mean`.

    Raises:
        EntangleError: Conditions of different shapes, or anything `bootstrap_mean` refuses.

    Example:
        >>> en.metrics.paired_difference([3.0, 9.0, 6.0, 5.0], [2.0, 7.0, 5.0, 4.0])
        Estimate(value=1.25, low=0.454, high=2.046)
    """
    return bootstrap_mean(
        paired(a, b), n_resamples=n_resamples, level=level, seed=seed, groups=groups, method=method, bounds=bounds
    )


def _count_blocks(
    n: int, n_resamples: int, *, seed: int, groups: ArrayLike | None = None
) -> Iterator[Float[Tensor, "resample example"]]:
    """The rows of `bootstrap_counts` in float64, a bounded number at a time; blocking does not change them."""
    if n < 1 or n_resamples < 1:
        raise EntangleError(f"a bootstrap needs 1 example and 1 resample or more, not n={n}, n_resamples={n_resamples}")
    groups_of = group_indices(groups, n)
    n_groups = int(groups_of.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    for size in block_sizes(n_resamples, n):
        drawn = torch.randint(n_groups, (size, n_groups), generator=generator)
        counts = torch.zeros(size, n_groups, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        yield counts if groups is None else counts[:, groups_of]


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
