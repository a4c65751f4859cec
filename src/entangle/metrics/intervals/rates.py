"""Intervals of rates, which hold where every example agrees, and where examples come in groups.

A rate of 0 or 1 has no spread that a bootstrap could resample, so its interval comes from the binomial: Wilson's score
interval, with as many examples as the groups are worth (Franco, Little, Louis & Slud 2019, "Comparative study of
confidence intervals for proportions in complex sample surveys").
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.intervals.estimate import Estimate, by_group, check_level, finite, is_one_of, quantile, shaped

_DOUBT = 0.3  # groups that disagree count against so many, in which all examples go together


def wilson_interval(successes: ArrayLike, n: ArrayLike, *, level: float = 0.95) -> Estimate:
    """The share `successes / n` with Wilson's score interval (Wilson 1927), which holds at small n and near 0 and 1.

    Args:
        successes: Number of successes, a number or an array.
        n: Number of trials, broadcast against `successes`.
        level: Coverage of the interval, in (0, 1).

    Returns:
        Share, low and high: floats for two numbers, else float64 tensors.

    Raises:
        EntangleError: No trials, or successes outside [0, n].

    Example:
        >>> en.metrics.wilson_interval(0, 20)
        Estimate(value=0.0, low=0.0, high=0.161)
    """
    check_level(level)
    k, trials = (torch.tensor(v, dtype=torch.float64) for v in np.broadcast_arrays(successes, n))
    if not bool(((trials > 0) & (k >= 0) & (k <= trials)).all()):
        raise EntangleError(f"a rate needs n > 0 and successes in [0, n]; got successes={successes!r}, n={n!r}")
    return shaped(k / trials, *_wilson(k / trials, trials, quantile(level)), k.shape)


def rate_interval(
    hits: Float[Tensor, "example *cell"] | ArrayLike, *, groups: ArrayLike | None = None, level: float = 0.95
) -> Estimate:
    """The share of hits with Wilson's interval; with groups, Wilson's for as many examples as they are worth.

    The design effect of the groups is the variance of the share between groups over that of independent examples; it
    is never taken below 1, and where no groups disagree it is that of groups whose examples all go together. Degrees
    of freedom are those of the groups, so that with few of them the interval is wide.

    Args:
        hits: 0 or 1 for each example, or a grid of them.
        groups: A group for each example (prompt, document, author...).
        level: Coverage of the interval, in (0, 1).

    Returns:
        Share, low and high: floats for one value per example, else tensors shaped like a cell. Never of no width.

    Raises:
        EntangleError: Values other than 0 and 1, or fewer than two groups.

    Example:
        >>> en.metrics.rate_interval([0.0] * 20)  # no hit among twenty: up to a sixth
        Estimate(value=0.0, low=0.0, high=0.161)
        >>> en.metrics.rate_interval([0.0, 1.0] * 10, groups=[0] * 5 + [1] * 5 + [2] * 5 + [3] * 5)
        Estimate(value=0.5, low=0.187, high=0.813)
    """
    x = finite(hits, "hits")
    if not is_one_of(x, 0, 1):
        raise EntangleError("a rate is of hits that are 0 or 1; give other values to bootstrap_mean")
    if groups is None:
        sums, n = x.sum(0), torch.tensor(float(len(x)), dtype=torch.float64)
        check_level(level)
        return shaped(sums / n, *_wilson(sums / n, n, quantile(level)), x.shape[1:])
    sums, sizes = by_group(x, groups)
    estimate = clustered_rate(sums, sizes, level=level)
    value, low, high = (torch.as_tensor(part) for part in estimate)
    return shaped(value, low, high, x.shape[1:])


def clustered_rate(
    hits: Float[Tensor, "group *cell"] | ArrayLike, sizes: Float[Tensor, " group"] | ArrayLike, *, level: float = 0.95
) -> Estimate:
    """As `rate_interval` with groups, from the number of hits in each group.

    Args:
        hits: How many examples of each group are hits, or a grid of such numbers.
        sizes: How many examples each group has.
        level: Coverage of the interval, in (0, 1).

    Raises:
        EntangleError: Fewer than two groups with examples, or more hits than examples.

    Example:
        >>> en.metrics.clustered_rate([9.0, 1.0, 8.0, 2.0], [10.0, 10.0, 10.0, 10.0])
        Estimate(value=0.5, low=0.101, high=0.899)
    """
    check_level(level)
    x, m = finite(hits, "hits"), finite(sizes, "sizes")
    cells, m, p = _groups(x.flatten(1) if x.ndim > 1 else x[:, None], m)
    n, z = _worth(m, _effect(cells, m, p), level)
    return shaped(p, *_wilson(p, n, z), x.shape[1:])


def effective_number(
    hits: Float[Tensor, " group"] | ArrayLike, sizes: Float[Tensor, " group"] | ArrayLike, *, level: float = 0.95
) -> float:
    """How many independent examples groups of them are worth, for the rate of hits in them all.

    Args:
        hits: How many examples of each group are hits.
        sizes: How many examples each group has.
        level: Coverage of the interval that the number is for: few groups count for less.

    Raises:
        EntangleError: As `clustered_rate`.

    Example:
        >>> en.metrics.effective_number([9.0, 1.0, 8.0, 2.0], [10.0, 10.0, 10.0, 10.0]) < 4
        True
    """
    check_level(level)
    cells, m, p = _groups(finite(hits, "hits")[:, None], finite(sizes, "sizes"))
    n, _ = _worth(m, _effect(cells, m, p), level)
    return float(n)


def paired_rate_interval(
    difference: Float[Tensor, "example *cell"] | ArrayLike, *, groups: ArrayLike | None = None, level: float = 0.95
) -> Estimate:
    """The difference of two rates of the same examples, with Bonett & Price's interval (2012).

    A Wald interval after one more example has been counted for each side: it holds where no example differs, or all
    do. Groups count as in `rate_interval`.

    Args:
        difference: Hit of one condition minus hit of the other for each example: -1, 0 or 1; or a grid of them.
        groups: A group for each example.
        level: Coverage of the interval, in (0, 1).

    Returns:
        Mean, low and high, within [-1, 1]: floats for one value per example, else tensors shaped like a cell.

    Raises:
        EntangleError: Other values, or fewer than two examples or groups.

    Example:
        >>> en.metrics.paired_rate_interval([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, -1.0, 1.0])
        Estimate(value=0.375, low=-0.184, high=0.784)
    """
    check_level(level)
    x = finite(difference, "difference")
    if not is_one_of(x, -1, 0, 1):
        raise EntangleError("a difference of two hits is -1, 0 or 1; give other values to bootstrap_mean")
    sums, m = by_group(x, groups)
    cells = x.flatten(1) if x.ndim > 1 else x[:, None]
    more, less = ((cells == sign).double().mean(0) for sign in (1, -1))
    mean = more - less
    n, z = m.sum(), quantile(level)
    if len(m) < len(x):
        disagree = (by_group(cells.abs(), groups)[0] > 0).sum(0)
        effect = _design_effect(sums - mean * m[:, None], m, more + less - mean**2, disagree)
        n, z = _worth(m, effect, level)
    one, other = (more * n + 1) / (n + 2), (less * n + 1) / (n + 2)
    half = z * ((one + other - (one - other) ** 2) / (n + 2)).sqrt()
    low, high = ((one - other + side * half).clamp(-1, 1) for side in (-1, 1))
    return shaped(mean, torch.minimum(low, mean), torch.maximum(high, mean), x.shape[1:])


def _groups(
    cells: Float[Tensor, "group cell"], sizes: Float[Tensor, " group"]
) -> tuple[Float[Tensor, "group cell"], Float[Tensor, " group"], Float[Tensor, " cell"]]:
    """Hits and sizes of the groups that have examples, and the rate."""
    cells, m = cells[sizes > 0], sizes[sizes > 0]
    if len(m) < 2 or bool(((cells < 0) | (cells > m[:, None] + 1e-9)).any()):
        raise EntangleError(f"a rate over groups needs two groups and hits from 0 to their sizes; got {len(m)} groups")
    return cells, m, cells.sum(0) / m.sum()


def _effect(
    cells: Float[Tensor, "group cell"], sizes: Float[Tensor, " group"], rate: Float[Tensor, " cell"]
) -> Float[Tensor, " cell"]:
    """The design effect of a rate over groups."""
    disagree = torch.minimum((cells > 0).sum(0), (cells < sizes[:, None]).sum(0))
    return _design_effect(cells - rate * sizes[:, None], sizes, rate * (1 - rate), disagree)


def _design_effect(
    deviations: Float[Tensor, "group cell"],
    sizes: Float[Tensor, " group"],
    variance: Float[Tensor, " cell"],
    disagree: Tensor,
) -> Float[Tensor, " cell"]:
    """How many times the groups widen the variance of a mean (Kish 1965), from 1 to that of examples all alike."""
    n_groups, n = len(sizes), sizes.sum()
    worst = sizes.square().sum() / n
    between = deviations.square().sum(0) / n * n_groups / (n_groups - 1)
    effect = torch.where(variance > 0, between / torch.where(variance > 0, variance, 1), worst).clamp(min=1)
    trust = disagree / (disagree + _DOUBT)
    return trust * effect + (1 - trust) * worst


def _worth(sizes: Float[Tensor, " group"], effect: Tensor, level: float) -> tuple[Tensor, float]:
    """How many independent examples the groups are worth, and the critical value for so many groups.

    Korn & Graubard (1998) shrink the number by (z / t)^2 and keep z: the same width, which stays within [0, 1].
    """
    z, t = quantile(level), quantile(level, len(sizes) - 1)
    return sizes.sum() / effect * (z / t) ** 2, z


def _wilson(p: Tensor, n: Tensor, z: float) -> tuple[Tensor, Tensor]:
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)).sqrt()
    low = torch.where(p <= 0, torch.zeros_like(p), centre - half)
    high = torch.where(p >= 1, torch.ones_like(p), centre + half)
    return low, high
