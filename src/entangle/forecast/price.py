"""The price of an edit from a metric's scores, text by text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from entangle.forecast.departure import FURTHEST, Departure
from entangle.forecast.samples import Samples
from entangle.forecast.span import Key, displacement, slices
from entangle.interventions import AffineForm
from entangle.metrics import bootstrap_counts

CLOSE = 0.15
"""A price is said to hold where it is foretold to be off by no more than this share."""


class Price(NamedTuple):
    """What an edit is foretold to cost, per predicted token.

    Attributes:
        value: KL(plain || edited), in nats per token.
        low: Lower end of the interval for the mean over all texts of the metric's kind.
        high: Upper end.
        paid_low: Lower end of the interval for what will be measured on other texts of that kind, which differ too.
        paid_high: Upper end.
        ce: Change of cross-entropy on the metric's own texts, in nats per token.
        length: Length of the edit's shift, in root mean squares of the activations it shifts; at several places the
            largest.
        off: The share by which the quadratic may be off at this price. Read along the edit itself where the model was
            given: the value has it in it already. Else by readings along other directions of the same places while the
            metric was fitted, infinite beyond the prices that were read.
        holds: Whether that is 15 % or less; where it is not, give the model, or measure the price.

    Example:
        >>> metric = en.ShiftMetric.fit(model, tokenizer, clean[:16], sites="z", samples=1, progress=False)
        >>> small, large = metric.price(iti, alpha=0.1), metric.price(iti, alpha=100.0)
        >>> small.low <= small.value <= small.high
        True
        >>> small.holds, large.holds  # a large shift is to be measured, not foretold
        (True, False)
    """

    value: float
    low: float
    high: float
    paid_low: float
    paid_high: float
    ce: float
    length: float
    off: float
    holds: bool


def priced(
    metric: Samples,
    maps: Mapping[Key, AffineForm],
    departure: Departure | None = None,
    *,
    read_on: int | None,
    n_resamples: int,
    level: float,
    seed: int,
) -> Price:
    """What affine maps at some places cost; see `ShiftMetric.price`.

    Args:
        metric: The metric.
        maps: What is done at each place.
        departure: How far their own price was read to depart from the quadratic.
        read_on: As for `ShiftMetric.price`, like what follows.
        n_resamples: Resamples of the texts.
        level: Coverage of both intervals.
        seed: Seed of the resamples.
    """
    draws, gains = text_costs(metric, maps)
    costs, tokens = draws.mean(1), metric.counted.double()
    value = float(costs.sum() / tokens.sum())
    counts = bootstrap_counts(len(tokens), n_resamples, seed=seed).double()
    resampled = (counts @ costs) / (counts @ tokens)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(resampled, ends).tolist()
    if departure is None:
        ratio, off = 1.0, _off(metric, maps, value)
        doubt = off
    else:
        ratio, doubt = departure
        off = abs(ratio - 1)
    paid_low, paid_high = _paid(draws, tokens, value, read_on or len(tokens), doubt, level)
    low, corrected, high, paid_low, paid_high = (
        ratio * end for end in (min(low, value), value, max(high, value), paid_low, paid_high)
    )
    ce = corrected - float(gains.sum() / tokens.sum())
    return Price(corrected, low, high, paid_low, paid_high, ce, _length(metric, maps), off, off <= CLOSE)


def _paid(
    draws: Float[Tensor, "text draw"],
    tokens: Float[Tensor, " text"],
    value: float,
    n_read: int,
    off: float,
    level: float,
) -> tuple[float, float]:
    """The interval for the mean over other texts: the forecast's error, theirs, and the quadratic's.

    A text's cost scatters by what the text is and by which tokens were drawn; only the first is in what is measured.
    """
    n_texts, n_draws = draws.shape
    if not value > 0:
        return value, value
    if not math.isfinite(off):
        return 0.0, math.inf
    residuals = draws.mean(1) - value * tokens
    fitted = float(residuals.square().sum() / tokens.sum().square()) * n_texts / (n_texts - 1)
    drawn = 0.0
    if n_draws > 1:
        drawn = float((draws.var(1) / n_draws).sum() / tokens.sum().square())
    texts = max(fitted - drawn, 0.1 * fitted)
    spread = math.sqrt(fitted + texts * n_texts / n_read) / value
    half = float(student.ppf((1 + level) / 2, n_texts - 1)) * math.hypot(spread, off)
    return value * math.exp(-half), value * math.exp(half)


def _off(metric: Samples, maps: Mapping[Key, AffineForm], value: float) -> float:
    """Root mean square departure of the places' readings, brought to this price.

    A departure of the third order grows with the root of the price, one of the fourth with the price itself: below the
    price that was read the slower is taken, above it the faster, and nothing is said beyond the furthest.
    """
    numbers = [number for number, key in enumerate(metric.keys) if key in maps]
    ratios, read = metric.departures[numbers].flatten(), metric.departure_prices[numbers].flatten()
    if not numbers or not len(ratios) or not value > 0:
        return 0.0
    if value > FURTHEST:
        return math.inf
    share = value / read
    grown = torch.where(share <= 1, share.sqrt(), share)
    return float(((ratios - 1) * grown).square().mean().sqrt())


def text_costs(
    metric: Samples, maps: Mapping[Key, AffineForm]
) -> tuple[Float[Tensor, "text draw"], Float[Tensor, " text"]]:
    """KL of each text by each of its draws, and what its own log-probability gains, both summed over its tokens."""
    n_texts, n_draws, n_positions, _ = metric.local_scores.shape
    along = torch.zeros(n_texts, n_draws, dtype=torch.float64)
    local = torch.zeros(n_texts, n_draws, n_positions, dtype=torch.float64)
    gains = torch.zeros(n_texts, dtype=torch.float64)
    parts = dict(zip(metric.keys, slices(metric.sizes), strict=True))
    for key, form in maps.items():
        part = parts[key]
        scores = metric.scores[..., part].double()
        if form.is_constant:
            shift = form.constant.double()
            along += scores @ shift
            gains += metric.observed[:, part].double() @ shift
            continue
        mean = displacement(form, metric.means[:, part].double())
        own = displacement(form, metric.local_activations[..., part].double()) - mean[:, None]
        along += torch.einsum("tsd,td->ts", scores, mean)
        local += torch.einsum("tspd,tpd->tsp", metric.local_scores[..., part].double(), own)
        gains += (metric.observed[:, part].double() * mean).sum(-1)
    costs = along.square() + local.square().mean(2) * metric.shifted.double()[:, None]
    return costs / 2, gains


def _length(metric: Samples, maps: Mapping[Key, AffineForm]) -> float:
    lengths = []
    weights = metric.shifted.double() / metric.shifted.double().sum()
    for number, (key, part) in enumerate(zip(metric.keys, slices(metric.sizes), strict=True)):
        if key in maps:
            moved = displacement(maps[key], metric.local_activations[..., part].double()).square().sum(-1).mean()
            square = (metric.squares[:, number].double() * weights).sum() * metric.sizes[number]
            lengths.append(float((moved / square).sqrt()) if square > 0 else float("inf"))
    return max(lengths, default=0.0)
