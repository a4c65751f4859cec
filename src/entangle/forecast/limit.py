"""The most that any constant shift can buy of a contrast, per square root of its price.

Of all shifts of one price 1/2 d' F d, the natural gradient F^-1 g gains most of the contrast g' d; a shift that costs
K nats gains at most sqrt(g' F^-1 g) sqrt(2 K). The number sqrt(g' F^-1 g) says how entangled the contrast is with
everything else that the model says: large where it is cheap to steer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from entangle.errors import EntangleError
from entangle.forecast.contrast import Contrast
from entangle.forecast.samples import Samples

FOLDS = 10


class Limit(NamedTuple):
    """A limit at one place, or at several together.

    Attributes:
        value: sqrt(g' F^-1 g), corrected for the noise of g; 0 where nothing is left after the correction.
        low: Lower end of the interval.
        high: Upper end.
        reached: What a shift chosen on half the texts buys on the other half, per square root of twice its price
            there: a lower bound that owes nothing to a formula.
        left_out: The value without each tenth of the texts, drawn with the seed: models of the same texts are compared
            tenth by tenth.

    Example:
        >>> limit = en.forecast.Limit(value=0.7, low=0.6, high=0.8, reached=0.65)
        >>> nats = 0.08  # of language, per token
        >>> round(limit.value * (2 * nats) ** 0.5, 2)  # the most nats of contrast per token that they buy
        0.28
    """

    value: float
    low: float
    high: float
    reached: float
    left_out: tuple[float, ...] = ()


def limit_of(metric: Samples, contrast: Contrast, *, level: float = 0.95, seed: int = 0) -> Limit:
    """The limit of all the metric's places together.

    Args:
        metric: The metric, of texts that are none of the contrast's.
        contrast: The contrast.
        level: Coverage of the interval: a jackknife over ten groups of all texts.
        seed: Seed of the groups and halves.

    Example:
        >>> metric = en.ShiftMetric.fit(model, tokenizer, clean[:16], samples=2, progress=False)
        >>> contrast = en.Contrast.fit(model, tokenizer, texts[0::2], texts[1::2], progress=False)
        >>> limit = en.forecast.limit_of(metric, contrast)
        >>> limit.low <= limit.value <= limit.high
        True
    """
    contrast = contrast.at(metric.keys)
    value = _squared(metric, contrast)
    generator = torch.Generator().manual_seed(seed)
    groups = [  # the metric's own first
        torch.randperm(n, generator=generator) % FOLDS
        for n in (len(metric.counted), len(contrast.toward), len(contrast.away))
    ]
    shrinkage = metric.spectrum().shrinkage
    left_out = []
    for fold in range(FOLDS):
        rest = [(group != fold).nonzero()[:, 0] for group in groups[1:]]
        left_out.append(_squared(metric.left_out(fold, FOLDS, seed), contrast.on(*rest), shrinkage))
    root = torch.tensor([max(each, 0.0) for each in left_out], dtype=torch.float64).sqrt()
    spread = float((FOLDS - 1) * root.var(correction=0)) ** 0.5
    half = float(student.ppf((1 + level) / 2, FOLDS - 1)) * spread
    middle = math.sqrt(max(value, 0.0))
    reached = _reached(metric, contrast, seed)
    return Limit(middle, max(middle - half, 0.0), middle + half, reached, tuple(root.tolist()))


def limits(metric: Samples, contrast: Contrast, *, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """The limit at each of the metric's places.

    Returns:
        Columns `site`, `layer`, `limit`, `limit_low`, `limit_high`, `reached`.

    Example:
        >>> metric = en.ShiftMetric.fit(model, tokenizer, clean[:16], samples=1, progress=False)
        >>> contrast = en.Contrast.fit(model, tokenizer, texts[0::2], texts[1::2], progress=False)
        >>> en.forecast.limits(metric, contrast)[["site", "layer"]].to_numpy().tolist()
        [['resid_post', 0], ['resid_post', 1]]
    """
    rows = []
    for site, layer in metric.keys:
        limit = limit_of(metric.at(site, [layer]), contrast, level=level, seed=seed)
        rows.append(
            {
                "site": site,
                "layer": layer,
                "limit": limit.value,
                "limit_low": limit.low,
                "limit_high": limit.high,
                "reached": limit.reached,
            }
        )
    return pd.DataFrame(rows)


def _squared(metric: Samples, contrast: Contrast, shrinkage: float | None = None) -> float:
    """g' F^-1 g without the part that noise in g adds: pairs of different texts only (a U-statistic)."""
    spectrum = metric.spectrum(shrinkage)
    toward, away = (spectrum.whiten(side) for side in contrast._influences)
    return _pairs(toward) + _pairs(away) - 2 * float(toward.mean(0) @ away.mean(0))


def _pairs(x: Float[Tensor, "text d"]) -> float:
    """Mean inner product of two different rows."""
    n = len(x)
    if n < 2:
        raise EntangleError(f"a limit needs two texts or more on each side; got {n}")
    return float((x.sum(0).square().sum() - x.square().sum()) / (n * (n - 1)))


def _reached(metric: Samples, contrast: Contrast, seed: int) -> float:
    """Cross-fitted, both ways round."""
    values = []
    metrics, contrasts = metric.halves(seed), contrast.halves(seed)
    for here, there in ((0, 1), (1, 0)):
        shift = metrics[here].spectrum().solve(contrasts[here].gradient)
        along = metrics[there].scores.double() @ shift
        price = along.square().mean(1).sum() / metrics[there].counted.double().sum()
        values.append(float(contrasts[there].gradient @ shift / price.sqrt()))
    return sum(values) / len(values)
