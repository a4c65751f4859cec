"""How often something occurs, counted by a scorer that errs: the formula, its interval, and comparisons."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from entangle.errors import EntangleError
from entangle.metrics import (
    ErrorRates,
    clustered_rate,
    effective_number,
    prevalence,
    prevalence_difference,
    rate_interval,
    root_mean_square,
    unclipped_prevalence,
)

SURE = ErrorRates(10**7, 10**7, 10**7, 10**7)


def flags(k: int, n: int) -> np.ndarray:
    return (np.arange(n) < k).astype(float)


def lang_reiczigel(k: int, n: int, errors: ErrorRates, level: float = 0.95) -> tuple[float, float]:
    """Their closed form (2014), for one prevalence."""
    z = stats.norm.ppf((1 + level) / 2)
    m = n + z**2
    p = (k + z**2 / 2) / m
    se, sp = (errors.hits + 1) / (errors.positives + 2), (errors.rejections + 1) / (errors.negatives + 2)
    j = se + sp - 1
    pi = (p + sp - 1) / j
    of_se, of_sp = se * (1 - se) / (errors.positives + 2), sp * (1 - sp) / (errors.negatives + 2)
    shift = 2 * z**2 * (pi * of_se - (1 - pi) * of_sp)
    half = z * math.sqrt(p * (1 - p) / m + (1 - pi) ** 2 * of_sp + pi**2 * of_se) / j
    return min(1, max(0, pi + shift - half)), min(1, max(0, pi + shift + half))


@pytest.mark.parametrize(("k", "n"), [(0, 30), (7, 30), (30, 30), (120, 400)])
def test_a_perfect_scorer_leaves_the_share_and_jeffreys_interval(k: int, n: int) -> None:
    found = prevalence(flags(k, n), SURE)
    low = 0 if k == 0 else stats.beta.ppf(0.025, k + 0.5, n - k + 0.5)
    high = 1 if k == n else stats.beta.ppf(0.975, k + 0.5, n - k + 0.5)
    assert tuple(found) == pytest.approx((k / n, low, high), abs=1e-3)


def test_the_formula_undoes_the_scorers_errors() -> None:
    errors = ErrorRates(80, 100, 180, 200)
    for p in (0.0, 0.1, 0.5, 1.0):
        share = p * 0.8 + (1 - p) * 0.1
        assert unclipped_prevalence(flags(round(1000 * share), 1000), errors) == pytest.approx(p, abs=1e-9)
    # Without the correction, harmless text is a tenth harmful.
    assert flags(100, 1000).mean() == 0.1


def test_what_lies_outside_is_clipped_and_the_formulas_own_value_is_kept() -> None:
    errors = ErrorRates(80, 100, 180, 200)
    assert unclipped_prevalence(flags(2, 100), errors) < 0
    assert prevalence(flags(2, 100), errors).value == 0
    assert prevalence(flags(99, 100), errors).value == 1


@pytest.mark.parametrize(
    ("k", "n", "errors"),
    [
        (60, 200, ErrorRates(90, 100, 90, 100)),
        (40, 400, ErrorRates(170, 200, 190, 200)),
        (150, 300, ErrorRates(70, 80, 60, 80)),
    ],
)
def test_the_interval_is_near_lang_and_reiczigels(k: int, n: int, errors: ErrorRates) -> None:
    found, (low, high) = prevalence(flags(k, n), errors), lang_reiczigel(k, n, errors)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    # That of error rates known for certain is narrower: their doubt is in it.
    certain = prevalence(flags(k, n), ErrorRates(*(1000 * count for count in errors)))
    assert certain.high - certain.low < 0.95 * (found.high - found.low)


def test_samples_of_one_prompt_count_for_what_they_are_worth() -> None:
    errors = ErrorRates(90, 100, 190, 200)
    alike = np.repeat(np.arange(40) % 4 == 0, 5).astype(float)
    groups = np.repeat(np.arange(40), 5)
    wide, narrow = prevalence(alike, errors, groups=groups), prevalence(alike, errors)
    assert wide.value == narrow.value
    assert wide.high - wide.low > 1.4 * (narrow.high - narrow.low)
    assert effective_number(alike.reshape(40, 5).sum(1), np.full(40, 5.0)) == pytest.approx(40, rel=0.15)
    # And the number is that of the interval of the flagged share itself.
    assert clustered_rate([9.0, 1.0, 8.0, 2.0], [10.0] * 4).low == pytest.approx(0.101, abs=1e-3)


def test_with_one_scorer_whether_there_is_a_difference_does_not_depend_on_its_errors() -> None:
    first, second = flags(60, 200), flags(40, 200)
    p = [prevalence_difference(first, second, e).p_value for e in (SURE, ErrorRates(90, 100, 90, 100))]
    assert p[0] == pytest.approx(p[1], abs=2e-3)
    assert p[0] == pytest.approx(stats.chi2_contingency([[60, 140], [40, 160]], correction=False).pvalue, abs=5e-3)
    # With error rates of each set's own it does: here the second set's scorer is the blinder.
    other = (ErrorRates(90, 100, 90, 100), ErrorRates(60, 100, 90, 100))
    assert prevalence_difference(first, second, other).p_value > p[0]


def test_pairs_of_the_same_prompts_are_compared_more_sharply() -> None:
    rng = np.random.default_rng(0)
    prompt = rng.uniform(0, 1, 60) ** 2
    plain, steered = (rng.uniform(size=(60, 4)) < prompt[:, None] * share for share in (0.8, 0.65))
    groups = np.repeat(np.arange(60), 4)
    errors = ErrorRates(90, 100, 190, 200)
    options = {"groups": (groups, groups)}
    sides = plain.reshape(-1).astype(float), steered.reshape(-1).astype(float)
    apart = prevalence_difference(*sides, errors, **options)
    paired = prevalence_difference(*sides, errors, paired=True, **options)
    assert paired.estimate.value == apart.estimate.value
    assert paired.estimate.high - paired.estimate.low < 0.9 * (apart.estimate.high - apart.estimate.low)
    assert paired.p_value < apart.p_value
    assert (paired.p_value < 0.05) == (not paired.estimate.low <= 0 <= paired.estimate.high)


@pytest.mark.parametrize(
    ("k", "errors", "message"),
    [
        (3, ErrorRates(50, 100, 50, 100), r"sensitivity \+ specificity above 1; got 0.5 \+ 0.5"),
        (3, ErrorRates(10, 100, 10, 100), r"got 0.1 \+ 0.1: use another scorer or threshold"),
        (3, ErrorRates(0, 0, 90, 100), "texts with the concept and without it; got 0 and 100"),
    ],
)
def test_a_useless_scorer_is_refused(k: int, errors: ErrorRates, message: str) -> None:
    with pytest.raises(EntangleError, match=message):
        prevalence(flags(k, 10), errors)


def test_a_scorer_that_may_be_useless_excludes_nothing() -> None:
    found = prevalence(flags(6, 10), ErrorRates(3, 5, 3, 5))
    assert (found.low, found.high) == (0, 1)


def test_bad_flags_are_one_clear_line() -> None:
    with pytest.raises(EntangleError, match="flags that are 0 or 1; compare scores with a threshold first"):
        prevalence([0.2, 0.7], SURE)
    with pytest.raises(EntangleError, match="a flag and a label for each text, all of them 0 or 1"):
        ErrorRates.counted([0.0, 1.0], [0.0, 2.0])
    groups = [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 1, 1, 2, 2]
    with pytest.raises(EntangleError, match="paired sets need the same groups; got 4 and 3"):
        prevalence_difference([0.0, 1.0] * 4, [0.0, 1.0] * 3, SURE, groups=groups, paired=True)


def test_error_rates_are_counted() -> None:
    assert ErrorRates.counted([1, 1, 0, 0, 1], [1, 0, 1, 0, 1]) == ErrorRates(2, 3, 1, 2)


def test_without_error_a_root_mean_square_is_itself() -> None:
    found = root_mean_square(np.array([3.0, -4.0]), np.zeros((50, 2)))
    assert (found.measured, found.noise) == (math.sqrt(12.5), 0)
    assert tuple(found.corrected) == pytest.approx((math.sqrt(12.5),) * 3)


def test_errors_of_other_changes_are_refused() -> None:
    with pytest.raises(EntangleError, match=r"changes \[cell\] and draws of their errors \[draw, cell\]; got \(3,\)"):
        root_mean_square(np.zeros(3), np.zeros((10, 2)))


COVERED = [  # prevalence, sensitivity, specificity, texts, labelled positives and negatives
    (0.2, 0.9, 0.9, 200, 100, 100),
    (0.05, 0.9, 0.95, 500, 200, 200),
    (0.5, 0.8, 0.7, 300, 150, 150),
    (0.3, 0.95, 0.97, 150, 60, 60),
    (0.1, 0.7, 0.98, 400, 100, 300),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", COVERED, ids=str)
def test_nineteen_of_twenty_intervals_hold_the_prevalence(case: tuple[float, float, float, int, int, int]) -> None:
    p, se, sp, n, positives, negatives = case
    rng, covered, trials = np.random.default_rng(0), 0, 1000
    for _ in range(trials):
        k = rng.binomial(n, p * se + (1 - p) * (1 - sp))
        errors = ErrorRates(rng.binomial(positives, se), positives, rng.binomial(negatives, sp), negatives)
        found = prevalence(flags(k, n), errors)
        covered += found.low <= p <= found.high
    assert 0.93 <= covered / trials <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "least"), [((0.2, 0.9, 0.9, 40, 15, 15), 0.93), ((0.0, 0.9, 0.9, 200, 100, 100), 0.95)]
)
def test_small_samples_and_the_edge_are_held_too_often(
    case: tuple[float, float, float, int, int, int], least: float
) -> None:
    p, se, sp, n, positives, negatives = case
    rng, covered, trials = np.random.default_rng(0), 0, 1000
    for _ in range(trials):
        k = rng.binomial(n, p * se + (1 - p) * (1 - sp))
        errors = ErrorRates(rng.binomial(positives, se), positives, rng.binomial(negatives, sp), negatives)
        if errors.sensitivity + errors.specificity <= 1:
            continue
        found = prevalence(flags(k, n), errors)
        covered += found.low <= p <= found.high
    assert covered / trials >= least


@pytest.mark.slow
def test_intervals_of_groups_and_of_differences_hold_too() -> None:
    rng, covered, found_true, false, trials = np.random.default_rng(1), 0, 0, 0, 500
    groups = np.repeat(np.arange(60), 5)
    for _ in range(trials):
        rates = rng.beta(1, 4, 60)  # of each prompt; .2 on average
        true = rng.uniform(size=(2, 60, 5)) < rates[:, None]
        less = rng.uniform(size=(60, 5)) < rates[:, None] / 2
        hits = [
            np.where(each, rng.uniform(size=each.shape) < 0.85, rng.uniform(size=each.shape) < 0.08)
            for each in (*true, less)
        ]
        one, other, half = (each.reshape(-1).astype(float) for each in hits)
        errors = ErrorRates(rng.binomial(200, 0.85), 200, rng.binomial(300, 0.92), 300)
        estimate = prevalence(one, errors, groups=groups)
        covered += estimate.low <= 0.2 <= estimate.high
        options = {"groups": (groups, groups), "paired": True}
        false += prevalence_difference(one, other, errors, **options).p_value < 0.05
        change = prevalence_difference(one, half, errors, **options).estimate
        found_true += change.low <= 0.1 <= change.high
    assert 0.925 <= covered / trials <= 0.975
    assert 0.925 <= found_true / trials <= 0.975
    assert 0.02 <= false / trials <= 0.075


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.0, 0.5, 1.0, 3.0, 10.0])
def test_the_root_mean_square_of_changes_is_held(size: float) -> None:
    rng, covered, trials = np.random.default_rng(0), 0, 1000
    noise = np.linspace(0.5, 1.5, 8)
    for _ in range(trials):
        shape = rng.normal(size=8)
        true = size * shape / np.sqrt(np.mean(shape**2))
        found = root_mean_square(true + noise * rng.normal(size=8), noise * rng.normal(size=(1000, 8)))
        covered += found.corrected.low <= size <= found.corrected.high
    assert 0.925 <= covered / trials <= 0.98


def test_paired_groups_are_paired_by_name() -> None:
    rates, names = ErrorRates(45, 50, 95, 100), ["x", "y", "z", "w"]
    first, second = [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]
    found = prevalence_difference(first, second, rates, groups=(names, names), paired=True)
    turned = prevalence_difference(first, second[::-1], rates, groups=(names, names[::-1]), paired=True)
    assert found == turned
    assert found != prevalence_difference(first, second[::-1], rates, groups=(names, names), paired=True)
    with pytest.raises(EntangleError, match="paired sets need the same groups; got 4 and 4, 2 of them"):
        prevalence_difference(first, second, rates, groups=(names, ["x", "y", "z", "v"]), paired=True)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: prevalence([1.0, 0.0], ErrorRates(12, 10, 10, 10)), "error rates are counts, .* got 12 of 10"),
        (lambda: ErrorRates.counted([1, 0], ["rude", "kind"]), "labels must hold one number per example or test"),
        (lambda: root_mean_square(np.array([np.nan]), np.zeros((3, 1))), "needs finite changes and errors"),
        (lambda: rate_interval([1.0, 0.0, 1.0], groups=["a", None, "b"]), "groups are missing .* for 1 of 3"),
        (lambda: rate_interval([1.0, 0.0, 1.0], groups=["a", float("nan"), "b"]), "groups are missing .* 1 of 3"),
        (lambda: rate_interval([1.0, 0.0, 1.0], groups=[0.0, float("nan"), 1.0]), "groups are missing .* 1 of 3"),
        (lambda: rate_interval([1.0, 0.0], groups=np.array(["a", 3], dtype=object)), "groups must be of one kind"),
    ],
)
def test_what_is_no_count_is_refused_in_one_line(ask: Any, message: str) -> None:
    with pytest.raises(EntangleError, match=message) as caught:
        ask()
    assert "\n" not in str(caught.value)
