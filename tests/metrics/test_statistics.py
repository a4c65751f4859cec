"""Intervals cover what they say; tests and ranks agree with scipy and scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from entangle.errors import EntangleError
from entangle.metrics.intervals import estimate
from entangle.metrics.intervals.ranking import auroc
from entangle.metrics.statistics import (
    Estimate,
    bootstrap_counts,
    bootstrap_mean,
    bootstrap_ratio,
    holm,
    max_statistic_p,
    paired_difference,
    paired_permutation_test,
    wilson_interval,
)


def coverage(level: float, method: str, n: int, trials: int = 400) -> float:
    """Share of skewed samples whose interval holds the true mean."""
    samples = torch.from_numpy(np.random.default_rng(0).exponential(size=(n, trials)))
    _, low, high = bootstrap_mean(samples, n_resamples=1000, level=level, method=method)
    return float(((low <= 1) & (high >= 1)).double().mean())


def test_counts_are_multinomial_and_seeded():
    counts = bootstrap_counts(50, 4000, seed=1)
    assert counts.shape == (4000, 50)
    assert (counts.sum(1) == 50).all()
    assert abs(float(counts.var()) - (1 - 1 / 50)) < 0.02
    assert torch.equal(counts, bootstrap_counts(50, 4000, seed=1))
    assert not torch.equal(counts, bootstrap_counts(50, 4000, seed=2))


def test_counts_do_not_depend_on_blocks(monkeypatch):
    whole = bootstrap_counts(30, 100, seed=3)
    monkeypatch.setattr(estimate, "_BLOCK", 30 * 7)
    assert torch.equal(whole, bootstrap_counts(30, 100, seed=3))


def test_groups_are_drawn_whole():
    groups = ["b", "a", "b", "c", "c", "c"]
    counts = bootstrap_counts(6, 500, groups=groups)
    assert torch.equal(counts[:, 0], counts[:, 2])
    assert torch.equal(counts[:, 3], counts[:, 5])
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()
    assert not torch.equal(counts[:, 0], counts[:, 1])


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_interval_covers_the_mean(method):
    assert abs(coverage(0.9, method, n=60) - 0.9) < 0.05


def test_interval_of_another_level_does_not_cover_as_much():
    assert coverage(0.5, "bca", n=60) < 0.6


@pytest.mark.parametrize(("method", "name"), [("bca", "BCa"), ("percentile", "percentile")])
def test_agrees_with_scipy_bootstrap(method, name):
    values = np.random.default_rng(0).lognormal(sigma=1.0, size=40)
    ours = bootstrap_mean(values, n_resamples=40_000, method=method)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=40_000, method=name, rng=1, batch=2000).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.02 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.02 * width)


def test_grid_equals_cell_by_cell():
    values = torch.randn(30, 2, 3, generator=torch.Generator().manual_seed(0)).exp()
    grid = bootstrap_mean(values, n_resamples=200)
    for i, j in itertools.product(range(2), range(3)):
        alone = bootstrap_mean(values[:, i, j], n_resamples=200)
        assert [float(t[i, j]) for t in grid] == pytest.approx(list(alone))


def test_grouped_interval_is_wider_where_groups_agree():
    level_of_group = np.random.default_rng(0).normal(size=20)
    values, groups = level_of_group.repeat(25), np.arange(20).repeat(25)
    naive, grouped = bootstrap_mean(values), bootstrap_mean(values, groups=groups)
    alone = bootstrap_mean(level_of_group)
    assert grouped.high - grouped.low > 3 * (naive.high - naive.low)
    assert list(grouped) == pytest.approx(list(alone))


def test_pairing_removes_what_the_conditions_share():
    rng = np.random.default_rng(0)
    shared, noise = rng.normal(size=200) * 10, rng.normal(size=(2, 200))
    paired = paired_difference(shared + noise[0] + 1, shared + noise[1])
    shuffled = paired_difference(shared + noise[0] + 1, rng.permutation(shared + noise[1]))
    assert 0 < paired.low < 1 < paired.high
    assert shuffled.high - shuffled.low > 5 * (paired.high - paired.low)


def test_values_that_are_all_equal_say_nothing_of_their_spread():
    assert tuple(bootstrap_mean([0.1] * 10)) == (pytest.approx(0.1), -np.inf, np.inf)
    grid = bootstrap_mean(np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0]]))
    assert grid.low.isinf().tolist() == [True, False]


def test_between_bounds_they_leave_room_for_what_so_few_may_have_missed():
    value, low, high = bootstrap_mean([1.0] * 40, bounds=(0, 1))
    wilson = wilson_interval(40, 40)
    assert (value, low, high) == pytest.approx((1, wilson.low, 1))
    middle = bootstrap_mean([0.5] * 40, bounds=(0, 1))
    assert (middle.low, middle.high) == pytest.approx((0.5 * wilson.low, 1 - 0.5 * wilson.low))
    one_sided = bootstrap_mean([0.0] * 40, bounds=(0, np.inf))
    assert (one_sided.low, one_sided.high) == (0, np.inf)
    spread = np.random.default_rng(0).random(400)
    assert tuple(bootstrap_mean(spread, bounds=(0, 1))) == tuple(bootstrap_mean(spread))
    with pytest.raises(EntangleError, match="within bounds"):
        bootstrap_mean([0.5, 1.5], bounds=(0, 1))


def test_few_examples_are_never_narrower_than_students_t():
    values = np.random.default_rng(0).normal(size=6)
    low, high = stats.t.interval(0.95, 5, loc=values.mean(), scale=stats.sem(values))
    few = bootstrap_mean(values)
    assert few.low <= low + 1e-9
    assert few.high >= high - 1e-9
    groups = bootstrap_mean(values.repeat(50), groups=np.arange(6).repeat(50))
    assert tuple(groups) == pytest.approx(tuple(few))


def test_the_ratio_of_sums_is_the_mean_of_their_parts():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 50)
    parts = rng.normal(4, 1, sizes.sum())
    rows = np.repeat(np.arange(50), sizes)
    sums = np.bincount(rows, parts)
    expected = bootstrap_mean(parts, groups=rows)
    assert tuple(bootstrap_ratio(sums, sizes)) == pytest.approx(tuple(expected))
    nothing = bootstrap_ratio(np.append(sums, 0), np.append(sizes, 0))
    assert tuple(nothing) == tuple(bootstrap_ratio(sums, sizes))
    with pytest.raises(EntangleError, match="at least 2 rows"):
        bootstrap_ratio([1.0, 0.0], [3, 0])


def test_an_estimate_is_three_columns_and_back():
    estimate = Estimate(0.5, 0.25, 0.75)
    columns = estimate.columns("toxicity")
    assert columns == {"toxicity": 0.5, "toxicity_low": 0.25, "toxicity_high": 0.75}
    assert Estimate.of(columns, "toxicity") == estimate
    assert Estimate.of(pd.DataFrame([columns, columns]).iloc[1], "toxicity") == estimate
    assert estimate.is_bounded
    assert not Estimate(0.5, float("-inf"), 1.0).is_bounded
    with pytest.raises(EntangleError, match="no cost_low"):
        Estimate.of({"cost": 1.0, "cost_high": 2.0}, "cost")


def test_paired_test_equals_the_exact_one():
    a, b = [1.1, 0.4, 2.3, 0.9, 1.7, 0.2, 1.0], [0.3, 0.5, 1.1, 0.8, 0.2, 0.6, 0.1]
    exact = stats.permutation_test(
        (np.array(a), np.array(b)), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert paired_permutation_test(a, b) == pytest.approx(exact)  # 128 ways, each taken once
    assert paired_permutation_test(a, b, n_permutations=127) == pytest.approx(exact, abs=0.08)  # drawn
    assert paired_permutation_test(a, a) == 1
    assert paired_permutation_test(range(1, 101), [0] * 100, n_permutations=99) == pytest.approx(0.01)


def test_paired_test_is_uniform_under_the_null():
    rng = np.random.default_rng(0)
    p = [paired_permutation_test(*rng.normal(size=(2, 15)), n_permutations=199, seed=i) for i in range(200)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (1, 30), (17, 40), (600, 1000)])
def test_wilson_agrees_with_scipy(k, n):
    theirs = stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
    assert list(wilson_interval(k, n, level=0.9)) == pytest.approx([k / n, theirs.low, theirs.high], abs=1e-12)


def test_wilson_takes_arrays():
    grid = wilson_interval([[1, 2], [3, 4]], 9)
    assert grid.low.shape == (2, 2)
    assert float(grid.low[1, 0]) == pytest.approx(wilson_interval(3, 9).low)


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03, 0.005]).tolist() == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([[0.5, 0.9]]).tolist() == [[1.0, 1.0]]


def test_max_statistic_by_hand_and_no_stricter_than_needed():
    null = torch.tensor([[0.0, 3.0], [1.0, 0.0], [2.0, 2.0]])
    assert max_statistic_p(torch.tensor([2.0, 3.5]), null).tolist() == [0.75, 0.25]
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, 40))
    rejected = [(max_statistic_p(draws[i], draws[500:]) <= 0.05).any() for i in range(500)]
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.025)
    uncorrected = [((draws[500:] >= draws[i]).mean(0) <= 0.05).any() for i in range(500)]
    assert np.mean(uncorrected) > 0.5


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_auroc_agrees_with_sklearn(decimals):
    rng = np.random.default_rng(decimals)
    scores, labels = rng.normal(size=(80, 3, 2)).round(decimals), rng.integers(0, 2, 80)
    ours = auroc(scores, labels)
    theirs = [roc_auc_score(labels, column) for column in scores.reshape(80, 6).T]
    assert ours.flatten().tolist() == pytest.approx(theirs)
    assert auroc(-scores, labels).flatten().tolist() == pytest.approx([1 - a for a in theirs])


@pytest.mark.parametrize("decimals", [0, 8])
def test_weighted_auroc_agrees_with_sklearn(decimals, monkeypatch):
    monkeypatch.setattr(estimate, "_BLOCK", 60 * 8 * 4)
    rng = np.random.default_rng(decimals)
    scores, labels = rng.normal(size=(60, 2)).round(decimals), rng.integers(0, 2, 60)
    weights = bootstrap_counts(60, 9)
    ours = auroc(scores, labels, weights)
    assert ours.shape == (9, 2)
    for r, cell in itertools.product(range(9), range(2)):
        theirs = roc_auc_score(labels, scores[:, cell], sample_weight=weights[r].numpy())
        assert float(ours[r, cell]) == pytest.approx(theirs)


def test_auroc_of_a_resample_with_one_class_is_nan():
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    result = auroc(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 0, 1]), weights)
    assert result[0].isnan()
    assert result[1] == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=25))
def test_auroc_is_the_share_of_ordered_pairs(rows):
    scores, labels = [s for s, _ in rows], [y for _, y in rows]
    if len(set(labels)) == 1:
        with pytest.raises(EntangleError, match="both classes"):
            auroc(scores, labels)
        return
    pairs = [(p > q) + 0.5 * (p == q) for p, y in rows if y for q, z in rows if not z]
    assert float(auroc(scores, labels)) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean([1.0]), "at least 2"),
        (lambda: bootstrap_mean([1.0, 2.0], groups=[0, 0]), "at least 2"),
        (lambda: bootstrap_mean([1.0, float("nan")]), "1 of 2 values"),
        (lambda: bootstrap_mean([]), "shape"),
        (lambda: bootstrap_mean([1.0, 2.0], level=95), "level"),
        (lambda: bootstrap_mean([1.0, 2.0], method="normal"), "method"),
        (lambda: bootstrap_mean([1.0, 2.0], groups=[1]), "each of 2"),
        (lambda: bootstrap_counts(0, 5), "n=0"),
        (lambda: bootstrap_counts(5, 0), "n_resamples=0"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "one shape"),
        (lambda: paired_permutation_test([[1.0]], [[2.0]]), "one value per example"),
        (lambda: wilson_interval(3, 2), "successes"),
        (lambda: wilson_interval(0, 0), "n > 0"),
        (lambda: holm([0.5, 1.5]), "0, 1"),
        (lambda: max_statistic_p([1.0, 2.0], [[1.0]]), "permutation"),
        (lambda: auroc([0.1, 0.2], [0, 2]), "0 and 1"),
        (lambda: auroc([0.1, 0.2], [0, 1, 1]), "one per example"),
        (lambda: auroc([0.1, 0.2], [0, 1], torch.ones(3, 3)), "resample"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(EntangleError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
