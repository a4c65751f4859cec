"""The price of an edit from a metric's scores, text by text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.forecast.samples import Samples
from entangle.forecast.span import Key, displacement, slices
from entangle.interventions import AffineForm
from entangle.metrics import bootstrap_counts

REACH = 0.5
"""A shift longer than this share of the activations' own root mean square is further than a quadratic sees."""
FURTHEST = 0.4
"""Nats per token beyond which it does not hold either."""


class Price(NamedTuple):
    """What an edit is foretold to cost, per predicted token, with an interval over texts.

    Attributes:
        value: KL(plain || edited), in nats per token.
        low: Lower end of the interval.
        high: Upper end.
        ce: Change of cross-entropy on the metric's own texts, in nats per token.
        length: Length of the edit's shift, in root mean squares of the activations it shifts; at several places the
            largest.
        holds: Whether the edit is small enough for a second-order forecast; measure it where it is not.

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
    ce: float
    length: float
    holds: bool


def priced(metric: Samples, maps: Mapping[Key, AffineForm], *, n_resamples: int, level: float, seed: int) -> Price:
    """What affine maps at some places cost; see `ShiftMetric.price`."""
    costs, gains = text_costs(metric, maps)
    tokens = metric.counted.double()
    value = float(costs.sum() / tokens.sum())
    counts = bootstrap_counts(len(tokens), n_resamples, seed=seed).double()
    draws = (counts @ costs) / (counts @ tokens)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(draws, ends).tolist()
    length = _length(metric, maps)
    ce = value - float(gains.sum() / tokens.sum())
    return Price(value, min(low, value), max(high, value), ce, length, length <= REACH and value <= FURTHEST)


def text_costs(
    metric: Samples, maps: Mapping[Key, AffineForm]
) -> tuple[Float[Tensor, " text"], Float[Tensor, " text"]]:
    """KL of each text, and what its own log-probability gains to first order, both summed over its tokens."""
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
    costs = along.square().mean(1) + local.square().mean((1, 2)) * metric.shifted.double()
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
