"""Intervals over seeds and prompts hold the truth as often as they say, and the test over seeds is exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entangle.composition.comparing.intervals import crossed_mean, crossed_ratio, per_token, trend_test
from entangle.evaluation import removed_per_nat


def crossed(rng: np.random.Generator, seeds: int, items: int, spread: tuple[float, float, float]) -> np.ndarray:
    """Random effects of seeds and of items, and a rest, around zero."""
    of_seeds, of_items, rest = spread
    return (
        of_seeds * rng.standard_normal((seeds, 1))
        + of_items * rng.standard_normal((1, items))
        + rest * rng.standard_normal((seeds, items))
    )


@pytest.mark.parametrize("spread", [(0.0, 1.0, 0.5), (0.3, 1.0, 0.5), (1.0, 0.2, 0.2)])
@pytest.mark.parametrize("seeds", [2, 4])
def test_intervals_hold_the_truth(seeds: int, spread: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(0)
    held = [low <= 0 <= high for _, low, high in (crossed_mean(crossed(rng, seeds, 40, spread)) for _ in range(1000))]
    assert np.mean(held) > 0.9


def test_prompts_alone_would_not_do() -> None:
    """The control: an interval over prompts, as if these seeds were all, misses the truth of other seeds."""
    rng = np.random.default_rng(0)
    held = [
        low <= 0 <= high
        for _, low, high in (
            crossed_mean(crossed(rng, 3, 40, (0.5, 1.0, 0.2)).mean(0, keepdims=True)) for _ in range(300)
        )
    ]
    assert np.mean(held) < 0.8


def test_one_seed_is_the_t_interval_over_items() -> None:
    from scipy import stats

    values = np.random.default_rng(0).standard_normal(30)
    low, high = stats.t.interval(0.95, 29, loc=values.mean(), scale=stats.sem(values))
    assert crossed_mean(values[None]) == pytest.approx((values.mean(), low, high))


RATIO = 0.25


def priced(rng: np.random.Generator, seeds: int, of_seeds: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """What is removed and what is paid, where seeds differ in both alike and in each."""
    both = of_seeds * rng.standard_normal((seeds, 1))
    paid = 0.4 + both + crossed(rng, seeds, 30, (of_seeds, 0.2, 0.1))
    return RATIO * 0.4 + both + crossed(rng, seeds, 40, (of_seeds, 0.1, 0.1)), paid


@pytest.mark.parametrize(
    ("seeds", "of_seeds", "n"),
    [(2, 0.0, 160), (4, 0.05, 160), pytest.param(2, 0.05, 400, marks=pytest.mark.slow)]
    + [pytest.param(seeds, of_seeds, 2000, marks=pytest.mark.slow) for seeds in (2, 4) for of_seeds in (0.0, 0.05)],
)
def test_intervals_of_a_ratio_hold_the_truth(seeds: int, of_seeds: float, n: int) -> None:
    rng = np.random.default_rng(0)
    held = [low <= RATIO <= high for _, low, high in (crossed_ratio(*priced(rng, seeds, of_seeds)) for _ in range(n))]
    assert np.mean(held) > (0.9 if seeds > 2 else 0.87)  # with two, Satterthwaite's degrees of freedom are a guess


def test_a_ratio_over_prompts_alone_would_not_do() -> None:
    """The control: the interval that takes these seeds for all there are."""
    rng, held = np.random.default_rng(0), []
    for _ in range(200):
        gains, costs = (values.mean(0) for values in priced(rng, 3, 0.05))
        _, low, high = removed_per_nat(gains, costs, np.ones(len(costs)), n_resamples=300)
        held.append(low <= RATIO <= high)
    assert np.mean(held) < 0.8


def test_a_ratio_to_a_sure_cost_is_the_interval_of_the_mean() -> None:
    gains = crossed(np.random.default_rng(0), 3, 40, (0.1, 0.3, 0.2)) + 0.3
    expected = [each / 2 for each in crossed_mean(gains)]
    assert crossed_ratio(gains, np.full((3, 9), 2.0)) == pytest.approx(expected, abs=1e-6)


def test_a_ratio_of_one_seed_is_the_bootstraps() -> None:
    gains, costs = priced(np.random.default_rng(1), 1)
    expected = removed_per_nat(gains[0], costs[0], np.ones(costs.shape[1]), n_resamples=20_000)
    assert crossed_ratio(gains, costs) == pytest.approx(expected, rel=0.1)


@given(st.integers(0, 50), st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_ratio_has_the_units_of_its_parts(seed: int, gain: float, cost: float) -> None:
    gains, costs = priced(np.random.default_rng(seed), 3)
    expected = [each * gain / cost for each in crossed_ratio(gains, costs)]
    assert crossed_ratio(gain * gains, cost * costs) == pytest.approx(expected, rel=1e-6)


def test_where_the_cost_may_be_none_there_is_no_upper_end() -> None:
    rng = np.random.default_rng(0)
    gains = 0.3 + crossed(rng, 3, 40, (0.01, 0.1, 0.1))
    value, low, high = crossed_ratio(gains, crossed(rng, 3, 30, (0.01, 0.1, 0.1)))
    assert 0 < low < value
    assert high == np.inf
    assert crossed_ratio(-gains, crossed(rng, 3, 30, (0.01, 0.1, 0.1))).low == -np.inf
    nothing = crossed_ratio(crossed(rng, 3, 40, (0.1, 0.1, 0.1)), crossed(rng, 3, 30, (0.1, 0.1, 0.1)))
    assert (nothing.low, nothing.high) == (-np.inf, np.inf)
    assert np.isnan(crossed_ratio(np.zeros((2, 3)), np.zeros((2, 3))).value)


@given(st.integers(1, 3), st.integers(2, 6), st.integers(0, 100))
def test_the_mean_of_the_linearised_ratio_is_nats_a_token(seeds: int, documents: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    nats, tokens = rng.uniform(1, 9, (seeds, documents)), rng.integers(1, 50, documents).astype(float)
    assert per_token(nats, tokens).mean(1) == pytest.approx(nats.sum(1) / tokens.sum())


def test_the_ratios_spread_is_that_of_its_bootstrap() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 200, 300).astype(float)
    nats = tokens * 4 + 0.5 * tokens * rng.standard_normal(300)
    draws = rng.integers(0, 300, (2000, 300))
    ratios = nats[draws].sum(1) / tokens[draws].sum(1)
    values = per_token(nats[None], tokens)[0]
    assert values.std(ddof=1) / np.sqrt(300) == pytest.approx(ratios.std(), rel=0.1)


def test_a_rise_in_every_seed_has_the_least_p() -> None:
    shares = np.array([0.0, 0.05, 0.1])
    rising = np.array([[0.6, 0.61, 0.65], [0.58, 0.6, 0.62]])
    assert trend_test(rising, shares) == pytest.approx(1 / 36)
    assert trend_test(-rising, shares) == 1.0
    assert trend_test(np.ones((2, 3)), shares) == 1.0


def test_p_values_of_no_trend_are_uniform_enough() -> None:
    rng = np.random.default_rng(0)
    shares = np.arange(3.0)
    p = [trend_test(rng.standard_normal((2, 3)), shares) for _ in range(500)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(3 / 36, abs=0.04)


def test_many_shares_and_seeds_are_sampled() -> None:
    shares = np.arange(6.0)
    p = trend_test(np.tile(shares, (4, 1)), shares)
    assert 0 < p < 1e-3
