"""Numbers of paired changes: their intervals, their errors drawn together, and two sizes beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from entangle.metrics import (
    Estimate,
    bootstrap_counts,
    bootstrap_mean,
    is_constant,
    least_variance,
    paired_permutation_test,
    paired_rate_interval,
)

Values = Float[np.ndarray, " item"]
Limits = tuple[float, float] | None


def change(difference: Values, bounds: Limits, level: float, n_resamples: int, seed: int) -> Estimate:
    """The mean change with its interval; known exactly where nothing can differ, as for a model beside itself."""
    if bounds == (-1.0, 1.0) and np.isin(difference, [-1, 0, 1]).all():
        return paired_rate_interval(difference, level=level)
    return bootstrap_mean(difference, level=level, n_resamples=n_resamples, seed=seed, bounds=bounds)


def p_value(difference: Values, seed: int) -> float:
    """Of no change: the two conditions of an item may be swapped."""
    return paired_permutation_test(difference, np.zeros_like(difference), seed=seed)


def share_beyond(value: float, drawn: Float[np.ndarray, " draw"]) -> float:
    """The share of draws, counting the value itself, that are as large or larger; NaN without draws."""
    return float((1 + np.sum(drawn >= value)) / (1 + len(drawn))) if len(drawn) else float("nan")


def errors(
    differences: Sequence[Float[np.ndarray, "item condition"]],
    items: Sequence[str],
    bounds: Sequence[Limits],
    level: float,
    n_resamples: int,
    seed: int,
) -> Float[np.ndarray, "resample condition behaviour"]:
    """Draws of the errors of mean changes; behaviours of the same items are resampled together.

    A bootstrap's spread is that of n items over n and not n - 1, which is made good. Changes that are all equal have no
    spread to resample: within bounds they get that of items which so few may have missed.
    """
    behaviours = []
    for k, (difference, key, limits) in enumerate(zip(differences, items, bounds, strict=True)):
        n = len(difference)
        counts = bootstrap_counts(n, n_resamples, seed=seed + items.index(key)).double().numpy()
        drawn = counts @ (difference - difference.mean(0)) / n * np.sqrt(n / (n - 1))
        noise = torch.randn(n_resamples, generator=torch.Generator().manual_seed(seed + 7919 * (k + 1)))
        for number, column in enumerate(difference.T):
            if is_constant(column):
                reach = 0.0 if limits is None else least_variance(float(column.mean()), n, limits, level) ** 0.5
                drawn[:, number] = reach * noise.double().numpy()
        behaviours.append(drawn)
    return np.stack(behaviours, 2)


def gap(
    differences: Sequence[Values], items: Sequence[str], level: float, n_resamples: int, seed: int
) -> tuple[Estimate, float]:
    """|mean of one| - |mean of the other| with its bootstrap interval, and the p-value of none."""
    columns = [difference[:, None] for difference in differences]
    drawn = errors(columns, items, [None, None], level, n_resamples, seed)[:, 0]
    means = np.array([difference.mean() for difference in differences])
    value = abs(means[0]) - abs(means[1])
    # The sizes move as the changes do, each in the direction that it has.
    moved = drawn @ (np.where(means < 0, -1.0, 1.0) * np.array([1.0, -1.0]))
    low, high = value - np.quantile(moved, [(1 + level) / 2, (1 - level) / 2])
    beyond = (1 + np.sum(np.abs(moved) >= abs(value))) / (1 + n_resamples)
    return Estimate(float(value), float(min(low, value)), float(max(high, value))), float(beyond)
