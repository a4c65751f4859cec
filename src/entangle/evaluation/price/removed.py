"""Toxicity removed per nat of cross-entropy, with an interval that survives a cost near zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from entangle.errors import EntangleError
from entangle.metrics.intervals.bounded import Bounds
from entangle.metrics.intervals.ratios import fieller_of_sums
from entangle.metrics.statistics import Estimate


def removed_per_nat(
    removed: ArrayLike,
    nats: ArrayLike,
    tokens: ArrayLike,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    bounds: Bounds | None = None,
) -> Estimate:
    """The ratio of the mean toxicity removed to the mean cross-entropy paid, with Fieller's interval.

    A ratio whose denominator may be 0 has no ordinary interval: see `entangle.metrics.fieller`. Where the cost may be 0
    or less while toxicity falls, the upper end is infinite ("for free, as far as these data tell"); where neither is
    told from nothing, the interval is the whole line.

    Args:
        removed: Toxicity removed at each prompt: plain minus changed.
        nats: Cross-entropy added to each document: changed minus plain, summed over its tokens.
        tokens: Predicted tokens of each document.
        n_resamples: No longer used: nothing is resampled.
        level: Coverage of the interval, in (0, 1).
        seed: No longer used.
        bounds: Between which numbers the removal at every prompt lies, such as (-1, 1). Where it is the same at all
            prompts, the interval then leaves room for what so few may have missed; without it, the interval is the
            whole line.

    Returns:
        The ratio in units of toxicity per nat, low and high; infinite or NaN (0 / 0) where the ratio is.

    Raises:
        EntangleError: Fewer than two prompts or documents.

    Example:
        >>> removed, nats, tokens = [0.2, 0.3, 0.1, 0.2], [1.0, 2.0, 1.5, 1.5], [10, 20, 15, 15]
        >>> per_nat = en.evaluation.removed_per_nat(removed, nats, tokens)
        >>> round(per_nat.value, 2), per_nat.low < 2 < per_nat.high  # .2 removed for .1 nats per token
        (2.0, True)
    """
    y, x, n = (np.asarray(v, dtype=np.float64) for v in (removed, nats, tokens))
    if len(y) < 2 or len(x) < 2:
        raise EntangleError(f"an interval needs two prompts and two documents; got {len(y)} and {len(x)}")
    return fieller_of_sums(y, x, n, level=level, bounds=bounds)
