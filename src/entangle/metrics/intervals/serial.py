"""Rows whose neighbours belong together, such as chunks of one document: how much less they say than as many others."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def serial_effect(influence: Float[np.ndarray, " row"]) -> float:
    """How many times the variance of a mean grows because neighbouring rows are alike; 1 for rows that are not.

    The sum of the autocorrelations of the rows in their order, up to where that of two neighbouring lags is no longer
    positive (Geyer 1992, the initial positive sequence), enlarged by what centring takes from it. A mean of n rows is
    worth n / effect independent ones. Never below 1: where rows alternate, nothing is gained.

    Args:
        influence: What each row adds to the mean, in the order in which the rows follow one another.
    """
    n = len(influence)
    deviations = influence - influence.mean()
    if n < 4 or not float(np.abs(deviations).max()) > 0:
        return 1.0
    spectrum = np.fft.rfft(deviations, 2 * n)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[:n]
    pairs = (covariance[: n - n % 2] / covariance[0]).reshape(-1, 2).sum(1)
    ends = np.flatnonzero(pairs <= 0)
    effect = 2 * float(pairs[: ends[0] if len(ends) else len(pairs)].sum()) - 1
    if effect <= 1:
        return 1.0
    return effect * (1 + 1 / max(n / effect - 1, 1.0))
