"""The analytic null is what random directions do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from entangle.errors import EntangleError
from entangle.metrics import (
    entanglement,
    random_cosine_cdf,
    random_entanglement_cdf,
    random_entanglement_draws,
    random_entanglement_mean,
    random_entanglement_quantile,
)


def gaussian_entanglement(n, d, sets, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return np.array([float(entanglement(torch.randn(n, d, generator=generator))[0]) for _ in range(sets)])


@pytest.mark.parametrize(("n", "d"), [(2, 2), (12, 4), (5, 50), (200, 20)])
def test_random_gaussians_follow_the_analytic_null(n, d):
    measured = gaussian_entanglement(n, d, 500)
    assert stats.kstest(measured, lambda t: random_entanglement_cdf(t, n, d)).pvalue > 0.01
    assert stats.kstest(measured, lambda t: random_entanglement_cdf(t, n, d + 2)).pvalue < 0.01 or d > 20
    assert measured.mean() == pytest.approx(random_entanglement_mean(n, d), abs=4 * measured.std() / 500**0.5)


def test_known_values():
    assert random_entanglement_mean(12, 4) == pytest.approx(0.843, abs=1e-3)
    assert random_entanglement_mean(1000, 2048) == pytest.approx(0.076, abs=5e-4)
    # On a circle the angle is uniform: |cos| <= t with chance 1 - 2 arccos(t) / pi.
    assert random_cosine_cdf(0.3, 2) == pytest.approx(1 - 2 * np.arccos(0.3) / np.pi)
    # On a sphere the height is uniform (Archimedes).
    assert random_cosine_cdf([0.2, 0.9], 3) == pytest.approx([0.2, 0.9])


@pytest.mark.parametrize(("n", "d"), [(2, 2), (12, 4), (10**6, 1024)])
def test_quantile_inverts_the_cdf(n, d):
    levels = np.array([1e-6, 0.05, 0.5, 0.95, 1 - 1e-9])
    assert random_entanglement_cdf(random_entanglement_quantile(levels, n, d), n, d) == pytest.approx(levels, rel=1e-6)
    assert random_entanglement_quantile([0, 1], n, d).tolist() == [0, 1]
    low, high = random_entanglement_quantile([0.4, 0.6], n, d)
    assert low - 0.2 < random_entanglement_mean(n, d) < high + 0.2


def test_draws_follow_the_analytic_null():
    draws = random_entanglement_draws(6, 10, n_draws=800)
    assert stats.kstest(draws[:, 2], lambda t: random_entanglement_cdf(t, 6, 10)).pvalue > 0.01
    assert torch.equal(draws, random_entanglement_draws(6, 10, n_draws=800))
    assert not torch.equal(draws, random_entanglement_draws(6, 10, n_draws=800, seed=1))


def test_covariance_draws_follow_the_law_of_normal_vectors():
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(10, 10, generator=generator)).Q
    covariance = rotation @ torch.diag(torch.linspace(1, 0.05, 10) ** 2) @ rotation.T
    draws = random_entanglement_draws(4, 10, covariance=covariance, n_draws=800)
    x = torch.distributions.MultivariateNormal(torch.zeros(10), covariance).sample((800, 4))
    measured = [float(entanglement(v)[0]) for v in x]
    assert stats.ks_2samp(draws[:, 0], measured).pvalue > 0.01
    assert stats.ks_2samp(random_entanglement_draws(4, 10, n_draws=800)[:, 0], measured).pvalue < 1e-6


def test_a_low_rank_covariance_is_a_smaller_space():
    covariance = torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0, 0]))
    draws = random_entanglement_draws(5, 7, covariance=covariance, n_draws=800)
    assert stats.kstest(draws[:, 0], lambda t: random_entanglement_cdf(t, 5, 3)).pvalue > 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_entanglement_cdf(0.5, 1, 4), "N >= 2"),
        (lambda: random_cosine_cdf(0.5, 1), "2 dimensions"),
        (lambda: random_cosine_cdf(1.5, 3), r"\[0, 1\]"),
        (lambda: random_entanglement_quantile(1.5, 3, 3), r"\[0, 1\]"),
        (lambda: random_entanglement_draws(3, 4, covariance=torch.eye(3)), r"\[4, 4\]"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(EntangleError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
