"""The interval of a ratio of two means, whose denominator may be zero: one Fieller for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from entangle.metrics.intervals.bounded import Bounds
from entangle.metrics.intervals.estimate import Estimate, quantile

Array = NDArray[np.float64]
HalfWidth = Callable[[Array, Array], Array]
_TURNS = 4001  # in half a turn, where the ends are looked for


def fieller(gain: float, cost: float, half_width: HalfWidth, *, units: tuple[float, float] = (1.0, 1.0)) -> Estimate:
    """Fieller's interval (1954) of gain / cost: those ratios R for which the mean of gain - R cost may be zero.

    It is taken on the angle of the point (cost, gain), so that it goes on where the cost is no cost: there an end is
    infinite, with the sign of the gain ("for free, as far as these data tell"). Where the point itself may be the
    origin, or the interval reaches round to gains of the other sign, no ratio is excluded: the whole line.

    Args:
        gain: Mean of the numerator.
        cost: Mean of the denominator.
        half_width: For arrays a and b, half the interval of the mean of a * gain - b * cost.
        units: Of gain and cost, such as their spreads, in which angles are measured; the ends hardly depend on them.

    Returns:
        The ratio, low and high: infinite where the cost is none, NaN for 0 / 0 with the whole line.

    Example:
        >>> def half_width(a, b):  # for a gain and a cost with standard errors of 0.1
        ...     return 1.96 * np.sqrt(0.1**2 * a**2 + 0.1**2 * b**2)
        ...
        >>> en.metrics.fieller(1.0, 0.5, half_width)
        Estimate(value=2.000, low=1.343, high=3.383)
        >>> en.metrics.fieller(1.0, 0.1, half_width)  # the cost may be none
        Estimate(value=10.000, low=3.280, high=inf)
    """
    if gain == cost == 0:
        return Estimate(float("nan"), float("-inf"), float("inf"))
    unit_y, unit_x = (unit or 1.0 for unit in units)
    centre = np.arctan2(gain / unit_y, cost / unit_x)
    turns = np.linspace(0, np.pi, _TURNS)
    ends = []
    for side in (-1, 1):
        # Of the points on a ray, gain cos - cost sin has the mean zero.
        sin, cos = np.sin(centre + side * turns) / unit_x, np.cos(centre + side * turns) / unit_y
        ends.append(centre + side * _first_zero(turns, half_width(cos, sin) - np.abs(cos * gain - sin * cost)))
    value, low, high = slopes(np.array([centre, *ends])) * unit_y / unit_x
    if np.isnan(ends).any() or max(np.abs(ends)) > np.pi:
        low, high = -np.inf, np.inf
    return Estimate(float(value), float(low), float(high))


def fieller_of_sums(
    gains: Float[np.ndarray, " row"],
    costs: Float[np.ndarray, " row"],
    sizes: Float[np.ndarray, " row"] | None = None,
    *,
    level: float = 0.95,
    bounds: Bounds | None = None,
) -> Estimate:
    """The ratio of two sums over the same independent rows, such as documents, or of two means of rows of their own.

    Of the same rows, it is a ratio like any other, also where both parts are below zero. Of rows of their own, costs
    below zero count as none (see `fieller`).

    Args:
        gains: Numerator of each row.
        costs: Denominator of each row. Rows of their own, such as documents beside prompts, come with `sizes`.
        sizes: How much each cost is of, such as its tokens: the denominator is then the sum of costs over the sum of
            sizes, independent of the gains, and the numerator the mean of the gains.
        level: Coverage of the interval, in (0, 1).
        bounds: Between which numbers every gain lies, for gains with rows of their own. Gains that are all equal then
            have the variance of values at the bounds which so few rows may have missed; without it, no ratio is
            excluded by them.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> costs = rng.exponential(size=200)
        >>> estimate = en.metrics.fieller_of_sums(2 * costs + rng.normal(size=200), costs)
        >>> bool(estimate.low < 2 < estimate.high)
        True
    """
    if sizes is None:
        if costs.mean() < 0:  # an ordinary ratio, whose sign is that of both parts
            gains, costs = -gains, -costs
        together = np.atleast_2d(np.cov(gains, costs)) / len(gains)
        freedom = len(gains) - 1.0

        def half(a: Array, b: Array) -> Array:
            variance = a**2 * together[0, 0] - 2 * a * b * together[0, 1] + b**2 * together[1, 1]
            return np.asarray(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(np.maximum(variance, 0)))

        spreads = np.sqrt(together.diagonal())
        return fieller(gains.mean(), costs.mean(), half, units=(spreads[0], spreads[1]))
    cost = costs.sum() / sizes.sum()
    of_gain = gains.var(ddof=1) / len(gains)
    if is_constant(gains):
        if bounds is None:
            return Estimate(float(gains.mean() / cost) if cost else float("nan"), float("-inf"), float("inf"))
        of_gain = least_variance(float(gains.mean()), len(gains), bounds, level)
    # The linearised ratio (Cochran 1977, section 2.11).
    of_cost = ((costs - cost * sizes) / sizes.mean()).var(ddof=1) / len(costs)

    def apart(a: Array, b: Array) -> Array:
        one, other = a**2 * of_gain, b**2 * of_cost
        spread = one**2 / (len(gains) - 1) + other**2 / (len(costs) - 1)
        freedom = np.where(spread > 0, (one + other) ** 2 / np.where(spread > 0, spread, 1), 1.0)  # Satterthwaite 1946
        return np.asarray(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(one + other))

    return fieller(gains.mean(), cost, apart, units=(np.sqrt(of_gain), np.sqrt(of_cost)))


def is_constant(values: Array) -> bool:
    """Whether values are all equal, but for rounding: nothing is known of their spread.

    Example:
        >>> en.metrics.is_constant(np.array([0.3, 0.1 + 0.2])), en.metrics.is_constant(np.array([0.3, 0.4]))
        (True, False)
    """
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def least_variance(mean: float, n: int, bounds: Bounds, level: float) -> float:
    """Of a mean of n equal values: what makes its interval reach as far as unseen values at a bound may.

    Example:
        >>> en.metrics.least_variance(0.0, n=20, bounds=(0.0, 1.0), level=0.95) ** 0.5
        0.082
    """
    z = quantile(level)
    return float((max(bounds[1] - mean, mean - bounds[0]) * z / (n + z**2)) ** 2)


def slopes(angle: Float[np.ndarray, " angle"]) -> Float[np.ndarray, " angle"]:
    """Slopes of angles; beyond a right angle, where the cost is no cost, infinite with the sign of the gain."""
    slopes: np.ndarray[Any, Any] = np.where(np.abs(angle) < np.pi / 2, np.tan(angle), np.copysign(np.inf, angle))
    return slopes


def _first_zero(places: Array, values: Array) -> float:
    """Where values first fall below zero, between the places by a straight line; NaN if they never do."""
    below = np.flatnonzero(values[1:] < 0)
    if not len(below):
        return float("nan")
    before, after = int(below[0]), int(below[0]) + 1
    height = max(0.0, float(values[before]))
    return float(places[before] + (places[after] - places[before]) * height / (height - values[after]))
