"""What values between known bounds allow a mean to be, however alike those are that were seen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.intervals.estimate import quantile

Bounds = tuple[float, float]
"""Between which numbers every value lies, such as (0, 1) for scores; infinite where there is no bound."""


def no_narrower(
    mean: Tensor, low: Tensor, high: Tensor, n: Tensor, constant: Tensor, bounds: Bounds | None, level: float
) -> tuple[Tensor, Tensor]:
    """Ends that leave room for what n examples may all have missed: values at the bounds, however far those are.

    Differences, whose bounds lie on both sides of zero, are nearly all small where an effect is: theirs is the room
    only where all are equal, and so is that of values without a bound.

    Example:
        >>> mean, n, constant = torch.tensor(0.0), torch.tensor(20.0), torch.tensor(True)
        >>> en.metrics.no_narrower(mean, mean, mean, n, constant, bounds=(0.0, 1.0), level=0.95)
        (tensor(0.), tensor(0.1611))
    """
    least, most = (-torch.inf, torch.inf) if bounds is None else bounds
    differences = least < 0 < most
    unseen = quantile(level) ** 2 / (n + quantile(level) ** 2)
    ends = []
    for end, bound, take in ((low, least, torch.minimum), (high, most, torch.maximum)):
        room = bound - mean
        reach = torch.where(room == 0, mean, mean + unseen * room)
        if differences or not np.isfinite(bound):
            reach = torch.where(constant, reach, end)
        ends.append(take(end, reach).clamp(least, most))
    return ends[0], ends[1]


def check_bounds(x: Tensor, bounds: Bounds | None) -> None:
    """Refuse values out of bounds, and bounds in the wrong order."""
    if bounds is not None and not (bounds[0] < bounds[1] and _within(x, bounds)):
        raise EntangleError(f"values must lie within bounds={bounds}; got {float(x.min()):g} to {float(x.max()):g}")


def _within(x: Tensor, bounds: Bounds) -> bool:
    slack = 1e-9 * max([1.0, *(abs(b) for b in bounds if np.isfinite(b))])
    return bool((x >= bounds[0] - slack).all()) and bool((x <= bounds[1] + slack).all())
