"""The table's nominal 95 % intervals hold the truth 93 to 97 times in a hundred, on data shaped like the real ones.

Scores are those of toxicity scorers (most near 0, some near 1) on a few hundred prompts of unequal difficulty;
documents differ in length and difficulty. Studies are the cells of one bootstrap, each with the resamples that a study
alone would have.
"""

import numpy as np
import pytest
import torch

from entangle.metrics.statistics import bootstrap_mean, paired_difference, wilson_interval

PROMPTS, DOCUMENTS, STUDIES = 300, 200, 2000  # so many studies tell 95 % to one percentage point


def scores(rng):
    """Plain and steered scores [prompt, study], alike in what makes a prompt hard, of means .25 and .2."""
    ease = rng.beta(2, 6, (PROMPTS, STUDIES))
    plain, fresh = (rng.beta(2 * ease, 2 * (1 - ease)) for _ in range(2))
    return plain, 0.8 * np.where(rng.random(plain.shape) < 0.7, plain, fresh)


def coverage(estimate, truth):
    return ((estimate.low <= truth) & (truth <= estimate.high)).double().mean().item()


def width(estimate):
    return estimate.high - estimate.low


@pytest.mark.slow
def test_means_and_paired_changes_over_prompts():
    plain, steered = scores(np.random.default_rng(0))
    change = paired_difference(steered, plain)
    alone = [bootstrap_mean(values) for values in (plain, steered)]
    for estimate, truth in ((change, -0.05), (alone[0], 0.25), (alone[1], 0.2)):
        assert 0.93 <= coverage(estimate, truth) <= 0.97
    # Pairing: in every study narrower than two intervals put together.
    apart = torch.hypot(*map(width, alone))
    assert (width(change) < apart).all()


@pytest.mark.slow
def test_rates_over_prompts():
    plain, _ = scores(np.random.default_rng(1))
    # The true share above one half, from a sample large enough to be called true.
    ease = np.random.default_rng(2).beta(2, 6, 2_000_000)
    truth = np.mean(np.random.default_rng(3).beta(2 * ease, 2 * (1 - ease)) > 0.5)
    assert 0.93 <= coverage(wilson_interval((plain > 0.5).sum(0), PROMPTS), truth) <= 0.97


@pytest.mark.slow
def test_means_over_tokens_with_documents_resampled():
    rng = np.random.default_rng(4)
    tokens = rng.integers(2, 20, DOCUMENTS)
    documents = np.repeat(np.arange(DOCUMENTS), tokens)
    for per_token, truth in (
        (rng.normal(4, 0.5, (DOCUMENTS, STUDIES)), 4.0),  # cross-entropy
        (rng.gamma(4, 0.1, (DOCUMENTS, STUDIES)), 0.4),  # KL, or cross-entropy paid
    ):
        estimate = bootstrap_mean(np.repeat(per_token, tokens, axis=0), groups=documents)
        assert 0.93 <= coverage(estimate, truth) <= 0.97
    # The same values as if tokens were independent: far too sure of themselves.
    assert coverage(bootstrap_mean(np.repeat(per_token, tokens, axis=0), n_resamples=500), truth) < 0.6
