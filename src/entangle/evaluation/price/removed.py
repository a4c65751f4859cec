"""Toxicity removed per nat of cross-entropy, with an interval that survives a cost near zero."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from entangle.errors import EntangleError
from entangle.metrics.statistics import Estimate, bootstrap_counts


def removed_per_nat(
    removed: ArrayLike,
    nats: ArrayLike,
    tokens: ArrayLike,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The ratio of the mean toxicity removed to the mean cross-entropy paid, with its bootstrap interval.

    A ratio whose denominator may be 0 has no ordinary interval (Fieller 1954). So the interval is taken on the angle of
    the point (cost, removal) around its estimate, and then turned into slopes: where the cost may be 0 or less while
    toxicity falls, the upper end is infinite ("for free, as far as these data tell").

    Args:
        removed: Toxicity removed at each prompt: plain minus changed.
        nats: Cross-entropy added to each document: changed minus plain, summed over its tokens.
        tokens: Predicted tokens of each document.
        n_resamples: Resamples of the prompts, and independently of the documents.
        level: Coverage of the interval.
        seed: Seed of the resamples.

    Returns:
        The ratio in units of toxicity per nat, low and high; infinite or NaN (0 / 0) where the ratio is.

    Raises:
        EntangleError: Fewer than two prompts or documents.
    """
    y, x, n = (np.asarray(v, dtype=np.float64) for v in (removed, nats, tokens))
    if len(y) < 2 or len(x) < 2:
        raise EntangleError(f"an interval needs two prompts and two documents; got {len(y)} and {len(x)}")
    prompts = bootstrap_counts(len(y), n_resamples, seed=seed).double().numpy()
    documents = bootstrap_counts(len(x), n_resamples, seed=seed + 1).double().numpy()
    draws_y, draws_x = prompts @ y / len(y), (documents @ x) / (documents @ n)
    centre_y, centre_x = y.mean(), x.sum() / n.sum()
    # Each axis in units of its own spread: the angle, unlike the slope, depends on the units.
    unit_y, unit_x = (spread if spread > 0 else 1.0 for spread in (draws_y.std(), draws_x.std()))
    centre = np.arctan2(centre_y / unit_y, centre_x / unit_x)
    turn = np.arctan2(draws_y / unit_y, draws_x / unit_x) - centre
    turn = (turn + np.pi) % (2 * np.pi) - np.pi
    low, high = np.quantile(turn, [(1 - level) / 2, (1 + level) / 2])
    angles = np.array([centre, centre + low, centre + high])
    value, lowest, highest = slopes(angles) * unit_y / unit_x
    if centre_x == 0 and centre_y == 0:
        return Estimate(float("nan"), float("-inf"), float("inf"))
    return Estimate(float(value), float(lowest), float(highest))


def slopes(angle: Float[np.ndarray, " angle"]) -> Float[np.ndarray, " angle"]:
    """Slopes of angles; beyond a right angle, where the cost is no cost, infinite with the sign of the removal."""
    slopes: np.ndarray[Any, Any] = np.where(np.abs(angle) < np.pi / 2, np.tan(angle), np.copysign(np.inf, angle))
    return slopes
