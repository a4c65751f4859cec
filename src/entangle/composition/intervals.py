"""Intervals and tests over seeds as well as over prompts, documents and heads."""

from __future__ import annotations

from itertools import permutations, product
from math import factorial

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from entangle.metrics.statistics import Estimate

Array = NDArray[np.float64]
MOST_PERMUTATIONS = 20_000


def crossed_mean(values: Float[np.ndarray, "seed item"], *, level: float = 0.95) -> Estimate:
    """The mean over seeds and items, with an interval for other seeds and other items.

    Every seed's model meets the same items, so the variance of the mean is
    (MS_seed + MS_item - MS_rest) / (n_seed n_item), with the mean squares of a two-way analysis of variance, and the
    degrees of freedom are Satterthwaite's (1946). With one seed it says nothing of other seeds.

    Args:
        values: one number for each model and item; paired differences for the interval of a difference.
        level: coverage.
    """
    n_seeds, n_items = values.shape
    mean = float(values.mean())
    items = n_seeds * values.mean(0).var(ddof=1)
    if n_seeds == 1:
        variance, freedom = items / n_items, n_items - 1.0
    else:
        seeds = n_items * values.mean(1).var(ddof=1)
        rest = values - values.mean(0) - values.mean(1, keepdims=True) + mean
        left = (rest**2).sum() / ((n_seeds - 1) * (n_items - 1))
        total = max(seeds + items - left, items, left)
        spread = seeds**2 / (n_seeds - 1) + items**2 / (n_items - 1) + left**2 / ((n_seeds - 1) * (n_items - 1))
        variance, freedom = total / (n_seeds * n_items), total**2 / spread if spread else 1.0
    half = float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance))
    return Estimate(mean, mean - half, mean + half)


def per_token(nats: Float[np.ndarray, "seed document"], tokens: Float[np.ndarray, " document"]) -> Array:
    """A number for each seed and document whose mean is nats a token, and whose spread is that of the ratio.

    The ratio's linearisation (Cochran 1977, section 2.11): R + (nats - R tokens) / mean tokens.
    """
    ratio = nats.sum(1, keepdims=True) / tokens.sum()
    found: Array = ratio + (nats - ratio * tokens) / tokens.mean()
    return found


def trend_test(values: Float[np.ndarray, "seed share"], shares: Array) -> float:
    """Chance of so strong a rise with the share if shares did not matter, one-sided, over seeds.

    Shares are permuted within each seed, exactly where there are few enough ways, and the statistic is the covariance
    of value and share. With s seeds and k shares no p-value is below 1 / (k!)^s.
    """
    centred = shares - shares.mean()
    observed = float((values * centred).sum())
    n_seeds, n_shares = values.shape
    if factorial(n_shares) ** n_seeds <= MOST_PERMUTATIONS:
        orders = [centred[list(order)] for order in permutations(range(n_shares))]
        drawn = [[float(row @ order) for order in orders] for row in values]
        null = np.array([sum(each) for each in product(*drawn)])
    else:
        rng = np.random.default_rng(0)
        ways = rng.permuted(np.tile(centred, (MOST_PERMUTATIONS, n_seeds, 1)), axis=2)
        null = np.append((ways * values).sum((1, 2)), observed)
    return float((null >= observed - 1e-12 * max(1.0, abs(observed))).mean())
