"""Toxicity removed per nat: its interval covers, and is honest where the cost may be nothing."""

import math

import numpy as np
import pytest

from entangle.errors import EntangleError
from entangle.evaluation import removed_per_nat


def study(seed, *, removal=0.1, cost=0.5, prompts=60, documents=60):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 200, documents)
    removed = removal + 0.3 * rng.standard_normal(prompts)
    nats = tokens * (cost + 0.2 * rng.standard_normal(documents))
    return removed, nats, tokens


def test_the_estimate_is_the_ratio_of_means():
    removed, nats, tokens = study(0)
    estimate = removed_per_nat(removed, nats, tokens)
    assert estimate.value == pytest.approx(removed.mean() / (nats.sum() / tokens.sum()))
    assert estimate.low < estimate.value < estimate.high


def test_a_cost_known_exactly_leaves_the_interval_of_the_removal():
    removed = np.random.default_rng(0).normal(0.1, 0.3, 200)
    _, low, high = removed_per_nat(removed, np.full(9, 30.0), np.full(9, 60))
    half = 1.96 * removed.std() / np.sqrt(200) / 0.5
    assert (low, high) == pytest.approx((removed.mean() / 0.5 - half, removed.mean() / 0.5 + half), abs=0.15 * half)


@pytest.mark.slow
def test_it_covers():
    inside = [low <= 0.2 <= high for low, high in (removed_per_nat(*study(s), seed=s)[1:] for s in range(1000))]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_a_cost_that_may_be_nothing_has_no_upper_end():
    free = removed_per_nat(*study(0, removal=0.3, cost=0.0))
    assert math.isinf(free.high)
    assert free.low > 0
    costly = removed_per_nat(*study(0, removal=0.3, cost=2.0))
    assert math.isfinite(costly.high)


def test_toxicity_that_rises_is_removed_at_less_than_nothing():
    assert removed_per_nat(*study(0, removal=-0.3)).high < 0


def test_nothing_for_nothing_is_undetermined():
    estimate = removed_per_nat(np.zeros(5), np.zeros(5), np.full(5, 10))
    assert math.isnan(estimate.value)
    assert (estimate.low, estimate.high) == (-math.inf, math.inf)


def test_units_of_toxicity_scale_the_answer_and_nothing_else():
    removed, nats, tokens = study(3)
    one, percent = removed_per_nat(removed, nats, tokens), removed_per_nat(100 * removed, nats, tokens)
    np.testing.assert_allclose(np.array(percent), 100 * np.array(one), rtol=1e-9)


def test_one_prompt_is_not_enough():
    with pytest.raises(EntangleError, match="two prompts and two documents"):
        removed_per_nat([0.1], [1.0, 2.0], [10, 10])
