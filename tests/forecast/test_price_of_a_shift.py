"""A price says how sure it is: of its mean, of what will be paid on other texts, and of where its quadratic ends."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import entangle as en
from entangle.forecast import ShiftMetric
from entangle.forecast.departure import departures
from entangle.forecast.rows import rows_of
from entangle.forecast.scores import row_scores
from entangle.forecast.span import Span

WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"),
    *("a", "cat", "sat", "on", "the", "mat", "and", "looked", "at", "the", "moon"),
)
TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 3 + i % 5]) for i in range(12)]


def planted(prices: torch.Tensor, draws: int, seed: int, departed: torch.Tensor | None = None) -> ShiftMetric:
    """A metric of one dimension whose texts of ten tokens each cost these prices per token at alpha = 1."""
    generator = torch.Generator().manual_seed(seed)
    n = len(prices)
    scores = torch.randn(n, draws, 1, generator=generator, dtype=torch.float64) * (20 * prices).sqrt()[:, None, None]
    read = torch.ones(1, 0) if departed is None else departed[None]
    return ShiftMetric(
        keys=(("resid_post", 0),),
        sizes=(1,),
        scores=scores,
        observed=torch.zeros(n, 1),
        means=torch.zeros(n, 1),
        local_scores=scores[:, :, None],
        local_activations=torch.zeros(n, 1, 1),
        counted=torch.full((n,), 10),
        shifted=torch.full((n,), 10),
        squares=torch.ones(n, 1),
        heads={},
        settings={"tokens": "all"},
        departures=read,
        departure_prices=torch.full_like(read, 0.4),
        read_ids=torch.zeros(0, 0, dtype=torch.long),
        read_flags=torch.zeros(0, 0, 2, dtype=torch.bool),
        digests=tuple(map(str, range(n))),
    )


EDIT = en.AddDirection(torch.ones(1), "resid_post", 0)


def test_the_interval_of_what_is_paid_holds_other_texts_and_that_of_the_mean_does_not() -> None:
    paid, mean = 0, 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(1000 + seed)
        prices = (0.6 * torch.randn(100, generator=generator, dtype=torch.float64)).exp() * 0.05
        price = planted(prices[:60], 4, seed).price(EDIT, read_on=40, n_resamples=100)
        measured = float(prices[60:].mean())
        paid += price.paid_low <= measured <= price.paid_high
        mean += price.low <= measured <= price.high
    assert 90 <= paid <= 98
    assert mean < 86


def test_more_texts_read_leave_less_doubt() -> None:
    metric = planted(torch.linspace(0.01, 0.2, 50, dtype=torch.float64), 4, 0)
    few, many = (metric.price(EDIT, read_on=n, n_resamples=50) for n in (5, 500))
    assert few.paid_low < many.paid_low < many.value < many.paid_high < few.paid_high
    assert (few.low, few.high) == (many.low, many.high)


def test_a_price_holds_as_far_as_other_directions_of_its_place_did() -> None:
    prices = torch.full((20,), 0.1, dtype=torch.float64)
    metric = planted(prices, 200, 0, departed=torch.tensor([1.3, 0.7]))
    unit = metric.price(EDIT, n_resamples=50).value
    off = {nats: metric.price(EDIT, (nats / unit) ** 0.5, n_resamples=50).off for nats in (0.05, 0.1, 0.4)}
    assert off[0.4] == pytest.approx(0.3)
    assert off[0.1] == pytest.approx(0.15)  # half the strength: half a departure of the third order
    assert metric.price(EDIT, (0.05 / unit) ** 0.5, n_resamples=50).holds
    assert not metric.price(EDIT, (0.2 / unit) ** 0.5, n_resamples=50).holds
    beyond = metric.price(EDIT, (0.5 / unit) ** 0.5, n_resamples=50)
    assert math.isinf(beyond.off)
    assert not beyond.holds
    assert beyond.paid_high == math.inf
    straight = planted(prices, 200, 0, departed=torch.tensor([1.0, 1.01]))
    assert straight.price(EDIT, (0.35 / unit) ** 0.5, n_resamples=50).holds


def test_what_is_read_departs_from_the_quadratic_where_shifts_are_long_and_not_where_they_are_short(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama")
    span = Span.of(model, "resid_post", [0])
    rows, _ = rows_of(model, tiny_tokenizer, TEXTS, None, "all", None)
    told = dict(row_scores(model, tiny_tokenizer, rows, span, draws=8, progress=False))
    scores, means = (torch.stack([getattr(told[i], name) for i in range(len(rows))]) for name in ("drawn", "mean"))
    counted = torch.tensor([row.n_counted for row in rows])
    off = {}
    for scale in (1.0, 10.0):  # scores ten times too large ask for shifts ten times as short
        ratios, prices = departures(
            model, tiny_tokenizer, rows, span, means, scores * scale, counted, directions=3, seed=0
        )
        off[scale] = (ratios - 1).abs().mean().item()
        assert (prices > 0).all()
    assert off[10.0] < 0.05
    assert off[1.0] > 3 * off[10.0]
