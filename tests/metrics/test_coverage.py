"""Intervals hold the truth as often as they say where they used not to: at the edges, in groups, in order, in ratios.

Studies are the cells of one call wherever a function takes a grid. Nominal is 95 %; near 0 and 1 counts are few and
discrete, so that there, and with a handful of groups, intervals hold more. Each has a control beside it: what would be
reported without the rule fails the same test.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from entangle.metrics import (
    Estimate,
    auroc_interval,
    bootstrap_mean,
    bootstrap_ratio,
    clustered_rate,
    fieller_of_sums,
    paired_rate_interval,
    rate_interval,
)
from entangle.metrics.intervals.serial import serial_effect

Array = NDArray[np.float64]


def coverage(estimate: Estimate, truth: float) -> float:
    low, high = (torch.as_tensor(end) for end in (estimate.low, estimate.high))
    return float(((low <= truth) & (truth <= high)).double().mean())


def resampled(values: Array, n: int = 400) -> Estimate:
    """The control: the percentile bootstrap of a mean over axis 0, which resamples what spread there is."""
    counts = np.random.default_rng(0).multinomial(len(values), np.full(len(values), 1 / len(values)), n)
    draws = counts @ values / len(values)
    low, high = (torch.tensor(end) for end in np.quantile(draws, [0.025, 0.975], axis=0))
    return Estimate(torch.tensor(values.mean(0)), low, high)


def grouped_hits(mean: float, alike: float, sizes: NDArray[np.int64], studies: int, seed: int = 0) -> Array:
    """Hits of each group [group, study]; `alike` is the correlation of two examples of one group."""
    rng = np.random.default_rng(seed)
    shape = (len(sizes), studies)
    strength = (1 - alike) / alike if alike else np.inf
    p = rng.beta(mean * strength, (1 - mean) * strength, shape) if alike else np.full(shape, mean)
    return rng.binomial(sizes[:, None], p).astype(np.float64)


def ranked(n: tuple[int, int], area: float, spread: float, studies: int, seed: int = 0) -> tuple[Array, Array]:
    """Binormal scores [example, study] of a known area, the positives' `spread` times the negatives', and labels."""
    rng = np.random.default_rng(seed)
    shift = np.hypot(1, spread) * stats.norm.ppf(area)
    scores = np.concatenate([rng.normal(shift, spread, (n[0], studies)), rng.normal(size=(n[1], studies))])
    return scores, np.repeat([1, 0], n)


# What is exact.


def test_rates_without_groups_are_wilsons_and_singletons_are_no_groups():
    hits = np.array([1.0] * 37 + [0.0] * 3)
    theirs = stats.binomtest(37, 40).proportion_ci(method="wilson")
    assert tuple(rate_interval(hits)) == pytest.approx((37 / 40, theirs.low, theirs.high))
    grid = rate_interval(np.stack([hits, 1 - hits], 1))
    assert grid.low.tolist() == pytest.approx([theirs.low, 1 - theirs.high])
    groups = rate_interval(hits, groups=np.arange(40))
    assert groups.low < theirs.low < theirs.high < groups.high  # Student's t instead of the normal, no more
    assert groups.high - groups.low < 1.05 * (theirs.high - theirs.low)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_that_all_examples_share_have_an_interval_as_wide_as_their_groups_allow(rate):
    alone = rate_interval(np.full(40, rate))
    together = rate_interval(np.full(40, rate), groups=np.arange(40) // 4)
    assert 0 < alone.high - alone.low < together.high - together.low
    assert tuple(together) == pytest.approx(tuple(clustered_rate(np.full(10, 4 * rate), np.full(10, 4))))
    more = rate_interval(np.full(10_000, rate), groups=np.arange(10_000) // 4)
    assert more.high - more.low < 0.01


def test_a_paired_difference_is_bonett_and_prices():
    difference = np.array([1.0] * 9 + [-1.0] * 3 + [0.0] * 28)
    one, other = 10 / 42, 4 / 42
    half = stats.norm.ppf(0.975) * np.sqrt((one + other - (one - other) ** 2) / 42)
    assert tuple(paired_rate_interval(difference)) == pytest.approx((0.15, one - other - half, one - other + half))
    none = paired_rate_interval(np.zeros(40))
    assert none.low == -none.high < 0
    assert paired_rate_interval(np.ones(40)).high == 1


def test_an_area_of_one_has_a_lower_end_and_an_area_of_a_half_has_delongs_interval():
    scores, labels = np.r_[np.arange(10) + 5.0, np.arange(12) - 20.0], np.repeat([1, 0], [10, 12])
    value, low, high = auroc_interval(scores, labels)
    assert (value, high) == (1, 1)
    assert 0.7 < low < 0.95
    flipped = auroc_interval(-scores, labels)
    assert tuple(flipped) == pytest.approx((0, 0, 1 - low))
    many, y = ranked((400, 400), 0.6, 1.0, 1)
    ours = auroc_interval(many[:, 0], y)
    positive, negative = many[y == 1, 0], many[y == 0, 0]
    above = (positive[:, None] > negative).astype(float)
    spread = np.sqrt(above.mean(1).var(ddof=1) / 400 + above.mean(0).var(ddof=1) / 400)  # DeLong's, from all pairs
    assert ours.high - ours.low == pytest.approx(2 * stats.norm.ppf(0.975) * spread, rel=0.01)


def test_areas_know_groups_and_classes():
    scores, labels = ranked((60, 60), 0.8, 1.0, 3)
    alone = auroc_interval(scores, labels)
    copied = auroc_interval(scores.repeat(5, 0), labels.repeat(5), groups=np.arange(120).repeat(5))
    assert copied.value.tolist() == pytest.approx(alone.value.tolist())
    assert (copied.high - copied.low).tolist() == pytest.approx((alone.high - alone.low).tolist(), rel=0.1)
    blind = auroc_interval(scores.repeat(5, 0), labels.repeat(5))
    assert ((blind.high - blind.low) < 0.6 * (copied.high - copied.low)).all()
    three = torch.randn(90, 2, 3, generator=torch.Generator().manual_seed(0))
    estimate = auroc_interval(three, np.arange(90) % 3, n_classes=3)
    assert estimate.low.shape == (2,)
    assert bool((estimate.low < estimate.value).all() and (estimate.value < estimate.high).all())


def test_neighbours_that_are_alike_are_worth_fewer_rows():
    rng = np.random.default_rng(0)
    independent = [serial_effect(rng.normal(size=300)) for _ in range(50)]
    assert np.median(independent) < 1.2
    tenfold = [serial_effect(rng.normal(size=60).repeat(10)) for _ in range(50)]
    assert np.median(tenfold) == pytest.approx(10, rel=0.2)
    assert serial_effect(np.tile([1.0, -1.0], 50)) == 1  # rows that alternate earn nothing
    assert serial_effect(np.zeros(9)) == 1


def test_fiellers_interval_of_paired_rows_is_the_quadratics():
    rng = np.random.default_rng(0)
    x = rng.normal(2, 1, 40)
    y = 0.5 * x + rng.normal(0.2, 1, 40)
    t = stats.t.ppf(0.975, 39)
    (vx, c), (_, vy) = np.cov(x, y) / 40
    a, b, k = x.mean() ** 2 - t**2 * vx, x.mean() * y.mean() - t**2 * c, y.mean() ** 2 - t**2 * vy
    roots = (b + np.array([-1, 1]) * np.sqrt(b**2 - a * k)) / a
    assert tuple(fieller_of_sums(y, x)) == pytest.approx((y.mean() / x.mean(), *roots), rel=1e-5)
    assert tuple(fieller_of_sums(-y, -x)) == pytest.approx(tuple(fieller_of_sums(y, x)))


def test_a_ratio_says_where_it_is_unbounded():
    rng = np.random.default_rng(1)
    costs, sizes = rng.normal(0, 1, 50), np.ones(50)
    half_line = fieller_of_sums(rng.normal(3, 1, 50), costs, sizes)
    assert half_line.high == np.inf
    assert np.isfinite(half_line.low)
    line = fieller_of_sums(rng.normal(0, 1, 50), costs, sizes)
    assert (line.low, line.high) == (-np.inf, np.inf)
    constant = fieller_of_sums(np.zeros(50), rng.normal(3, 1, 50), sizes)
    assert (constant.low, constant.high) == (-np.inf, np.inf)
    bounded = fieller_of_sums(np.zeros(50), rng.normal(3, 1, 50), sizes, bounds=(-1, 1))
    assert bounded.low < 0 < bounded.high
    assert bounded.is_bounded


# Coverage, a few studies each; many below.


def test_good_probes_areas_and_rates_are_held_where_the_bootstrap_collapses():
    scores, labels = ranked((20, 20), 0.99, 1.0, 400)
    assert coverage(auroc_interval(scores, labels), 0.99) > 0.93
    hits = (np.random.default_rng(0).random((40, 2000)) < 0.993).astype(float)
    assert coverage(rate_interval(hits), 0.993) > 0.93
    assert coverage(resampled(hits), 0.993) < 0.5
    flips = np.random.default_rng(1).choice([-1.0, 0, 1], (40, 2000), p=[0.01, 0.98, 0.01])
    assert coverage(paired_rate_interval(flips), 0.0) > 0.93
    several = grouped_hits(0.001, 0.0, np.full(100, 4), 2000)
    assert coverage(clustered_rate(several, np.full(100, 4)), 0.001) > 0.93
    assert coverage(resampled(several / 4), 0.001) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "area", "spread"),
    [
        ((20, 20), 0.7, 1), ((20, 20), 0.95, 1), ((20, 20), 0.99, 1), ((50, 50), 0.99, 1), ((100, 100), 0.99, 1),
        ((10, 90), 0.95, 1), ((90, 10), 0.95, 1), ((300, 300), 0.99, 1), ((100, 100), 0.9, 2.5), ((30, 30), 0.97, 0.4),
        ((200, 200), 0.6, 1), ((8, 8), 0.9, 1),
    ],
)  # fmt: skip
def test_areas(n, area, spread):
    """Between .93 and .97, and up to .99 where the smaller class has less than three pairs in the wrong order."""
    scores, labels = ranked(n, area, spread, 4000)
    crowded = 2 * (1 - area) * min(n) < 3
    assert 0.93 <= coverage(auroc_interval(scores, labels), area) <= (0.99 if crowded else 0.975)


@pytest.mark.slow
def test_areas_of_examples_in_groups():
    rng = np.random.default_rng(0)
    n_groups, held, blind = 30, [], []
    groups, labels = np.arange(n_groups).repeat(6), np.arange(n_groups).repeat(6) % 2
    for _ in range(25):
        shared = rng.normal(0, 0.8, (n_groups, 40)).repeat(6, 0)
        scores = shared + rng.normal(0, 0.6, (len(groups), 40)) + 1.5 * labels[:, None]
        area = stats.norm.cdf(1.5 / np.sqrt(2))
        held.append(coverage(auroc_interval(scores, labels, groups=groups), area))
        blind.append(coverage(auroc_interval(scores, labels), area))
    assert 0.93 <= np.mean(held) <= 0.98
    assert np.mean(blind) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "mean", "alike"),
    [
        ((100, 4, 4), 0.02, 0.3), ((100, 4, 4), 0.3, 0.5), ((20, 5, 5), 0.3, 0.3), ((20, 1, 20), 0.3, 0.3),
        ((20, 1, 20), 0.95, 0.3), ((10, 10, 10), 0.5, 0.2), ((6, 10, 10), 0.5, 0.2), ((40, 1, 40), 0.05, 0.1),
        ((200, 1, 6), 0.01, 0.5), ((300, 8, 8), 0.2, 0.05), ((50, 4, 4), 0.005, 0.9),
    ],
)  # fmt: skip
def test_rates_of_examples_in_groups(sizes, mean, alike):
    """Between .93 and .98; up to .99 with fewer than ten hits or misses expected, or fewer than ten groups."""
    n_groups, least, most = sizes
    m = np.random.default_rng(1).integers(least, most + 1, n_groups)
    hits = grouped_hits(mean, alike, m, 4000)
    rare = m.sum() * min(mean, 1 - mean) < 15 or n_groups < 12
    assert 0.93 <= coverage(clustered_rate(hits, m), mean) <= (0.99 if rare else 0.98)
    if alike >= 0.3 and mean > 0.1:
        alone = rate_interval(np.repeat([1.0, 0.0], [300, 700]))
        assert float(alone.high) - float(alone.low) > 0  # Wilson's, and its control:
        as_if = stats.norm.ppf(0.975) * np.sqrt(mean * (1 - mean) / m.sum())
        assert np.mean(np.abs(hits.sum(0) / m.sum() - mean) <= as_if) < 0.93


@pytest.mark.slow
@pytest.mark.parametrize("shares", [(0.01, 0.01), (0.1, 0.05), (0.3, 0.3), (0.0, 0.02)])
@pytest.mark.parametrize("n", [40, 300])
def test_differences_of_paired_rates(n, shares):
    p = [shares[1], 1 - sum(shares), shares[0]]
    rng = np.random.default_rng(0)
    difference = rng.choice([-1.0, 0, 1], (n, 4000), p=p)
    held = coverage(paired_rate_interval(difference), shares[0] - shares[1])
    assert 0.93 <= held <= (0.97 if n * sum(shares) > 10 else 1)
    copies = paired_rate_interval(difference[:, :500].repeat(4, 0), groups=np.arange(n).repeat(4))
    assert coverage(copies, shares[0] - shares[1]) >= 0.93
    if shares[0] == 0 and n == 40:  # half of these studies see no difference at all
        assert coverage(resampled(difference), shares[0] - shares[1]) < 0.93


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_means_of_few_groups(n):
    """Student's t over the groups; of skewed values fewer than twenty hold it in .87 and up."""
    rng = np.random.default_rng(0)
    normal, skewed = rng.normal(size=(n, 4000)), rng.exponential(size=(n, 4000))
    assert 0.94 <= coverage(bootstrap_mean(normal, n_resamples=1000), 0.0) <= 0.97
    assert coverage(bootstrap_mean(skewed, n_resamples=1000), 1.0) >= (0.87 if n < 20 else 0.91)
    assert coverage(resampled(normal), 0.0) < 0.93


@pytest.mark.slow
def test_means_of_scores_that_are_nearly_all_alike():
    """One score in a hundred is .9, the others are nearly nothing: what none of these shows must still be held."""
    rng = np.random.default_rng(0)
    for n in (60, 100, 300):
        scores = np.where(rng.random((n, 4000)) < 0.01, 0.9, 1e-3 * rng.random((n, 4000)))
        truth = 0.01 * 0.9 + 0.99 * 0.5e-3
        assert coverage(bootstrap_mean(scores, n_resamples=500, bounds=(0, 1)), truth) >= 0.93
        if n == 60:
            assert coverage(resampled(scores), truth) < 0.6


def chunked(rng: np.random.Generator, length: int, documents: int) -> tuple[Array, Array]:
    """Nats and sizes of chunks of 256 tokens of documents end to end, documents of different difficulty."""
    sizes = rng.integers(length // 2, length * 3 // 2, documents)
    stream = np.repeat(rng.normal(4, 0.5, documents), sizes) + rng.normal(0, 2, sizes.sum())
    n = len(stream) // 256
    return stream[: n * 256].reshape(n, 256).sum(1), np.full(n, 256.0)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "documents"), [(256, 60), (1000, 60), (4000, 20), (2000, 40)])
def test_chunks_of_one_document(length, documents):
    rng = np.random.default_rng(0)
    held, blind = [], []
    for seed in range(400):
        chunks = chunked(rng, length, documents)
        for serial, kept in ((True, held), (False, blind)):
            estimate = bootstrap_ratio(*chunks, n_resamples=300, seed=seed, serial=serial)
            kept.append(estimate.low <= 4 <= estimate.high)
    assert 0.92 <= np.mean(held) <= 0.98
    if length >= 1000:
        assert np.mean(blind) < 0.85


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "documents"), [(60, 60), (300, 200), (12, 12)])
@pytest.mark.parametrize(("removal", "errors"), [(0.0, 1.0), (0.1, 1.0), (0.1, 8.0), (0.0, 8.0)])
def test_ratios_to_a_cost_that_may_be_nothing(prompts, documents, removal, errors):
    """A cost of so many of its standard errors: slope 0 and others are held in .93 to .97."""
    rng = np.random.default_rng(0)
    cost = errors * 0.1 / np.sqrt(documents)
    held = []
    for _ in range(1000):
        sizes = rng.integers(50, 256, documents)
        gains = removal + 0.2 * rng.normal(size=prompts)
        low, high = fieller_of_sums(gains, (cost + 0.1 * rng.normal(size=documents)) * sizes, sizes)[1:]
        held.append(low <= removal / cost <= high)
    assert 0.93 <= np.mean(held) <= 0.975


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 40, 200])
def test_ratios_of_the_same_rows(n):
    rng = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        costs = rng.normal(1, 1, n)
        low, high = fieller_of_sums(0.7 * costs + rng.normal(0, 0.5, n), costs)[1:]
        held.append(low <= 0.7 <= high)
    assert 0.935 <= np.mean(held) <= 0.965
