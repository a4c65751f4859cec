"""The root mean square of measured changes, which noise makes too large, with an interval that noise does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from entangle.errors import EntangleError
from entangle.metrics.intervals.estimate import Estimate, check_level

_STEPS = 60  # of bisection


class RootMeanSquare(NamedTuple):
    """The root mean square of several changes, as measured and without what noise adds.

    Args:
        measured: sqrt(mean d^2) of the measured changes. Of changes that are all zero it is still about `noise`.
        noise: sqrt(mean var d), what noise alone would make of no change at all.
        corrected: sqrt(max(0, measured^2 - noise^2)), whose square is unbiased but for the 0, with its interval.

    Example:
        >>> rms = en.metrics.root_mean_square(np.array([0.3, -0.4]), np.zeros((100, 2)))
        >>> round(rms.measured, 3), rms.noise
        (0.354, 0.0)
    """

    measured: float
    noise: float
    corrected: Estimate


def root_mean_square(
    changes: Float[np.ndarray, " cell"], errors: Float[np.ndarray, "draw cell"], *, level: float = 0.95
) -> RootMeanSquare:
    """The root mean square of changes that were measured with error.

    The square of a measured change is on average the square of the true one plus the variance of its error, so the
    root mean square of many small changes is mostly noise. The interval is that of the true root mean square, by
    inverting a test (Carpenter 1999): those values for which errors as drawn, added to changes of that size in the
    measured proportions, give the measured root mean square as more than a tail. Errors of equal size make it exact in
    any direction (a non-central chi-squared), and where the changes may all be noise its lower end is 0.

    Args:
        changes: The measured changes.
        errors: Draws of the errors of all of them together, each of mean 0, such as a bootstrap's means less their own.
        level: Coverage of the interval, in (0, 1).

    Returns:
        The root mean square as measured, the noise's, and the corrected one with its interval.

    Raises:
        EntangleError: No changes, some that are not finite, or errors of other ones.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> errors = 0.1 * rng.normal(size=(4000, 8))
        >>> rms = en.metrics.root_mean_square(0.1 * rng.normal(size=8), errors)  # nothing but noise
        >>> rms.measured > 0.05, rms.corrected.low
        (True, 0.0)
    """
    check_level(level)
    d, e = np.asarray(changes, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if d.ndim != 1 or not len(d) or e.ndim != 2 or e.shape[1] != len(d) or not len(e):
        raise EntangleError(
            f"a root mean square needs changes [cell] and draws of their errors [draw, cell]; got {d.shape}, {e.shape}"
        )
    if not (np.isfinite(d).all() and np.isfinite(e).all()):
        raise EntangleError("a root mean square needs finite changes and errors: leave out what was not measured")
    measured, noise = float(np.sqrt(np.mean(d**2))), float(np.sqrt(np.mean(e**2)))
    corrected = float(np.sqrt(max(0.0, measured**2 - noise**2)))
    shape = d / measured if measured else np.ones_like(d)
    # Of changes rho * shape, the square of what is measured is rho^2 + 2 rho along + length, draw by draw.
    along, length, tail = (e * shape).mean(1), (e**2).mean(1), (1 - level) / 2

    def at_least(rho: float) -> bool:
        return float(np.mean(rho**2 + 2 * rho * along + length >= measured**2)) >= tail

    def at_most(rho: float) -> bool:
        return float(np.mean(rho**2 + 2 * rho * along + length <= measured**2)) >= tail

    top = 2 * measured + 8 * noise
    low = 0.0 if at_least(0.0) else _boundary(at_least, 0.0, top)
    high = _boundary(at_most, top, 0.0) if at_most(0.0) else 0.0
    return RootMeanSquare(measured, noise, Estimate(corrected, min(low, corrected), max(high, corrected)))


def _boundary(holds: Callable[[float], bool], outside: float, inside: float) -> float:
    """Where a condition begins to hold, between a place where it does not and one where it does."""
    for _ in range(_STEPS):
        middle = (outside + inside) / 2
        outside, inside = (outside, middle) if holds(middle) else (middle, inside)
    return inside
