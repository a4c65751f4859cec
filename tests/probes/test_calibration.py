"""Calibration and recall against scikit-learn, torch and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss

from entangle.errors import EntangleError
from entangle.probes.judging import calibration


@pytest.fixture(scope="module")
def calibrated() -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn with the probabilities that the first cell claims; the second claims thrice the log-odds."""
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(20_000, generator=generator)
    labels = (torch.rand(20_000, generator=generator) < torch.sigmoid(scores)).long()
    return torch.stack([scores, 3 * scores], 1), labels


def test_log_loss_is_scikit_learns(calibrated):
    scores, labels = calibrated
    ours = calibration.log_loss(scores, labels, 2)
    for cell in range(2):
        assert ours[cell].item() == pytest.approx(
            sklearn_log_loss(labels, torch.sigmoid(scores[:, cell].double())), rel=1e-6
        )
    three = torch.randn(500, 2, 3)
    y = torch.arange(500) % 3
    expected = torch.nn.functional.cross_entropy(three[:, 1].double(), y)
    assert calibration.log_loss(three, y, 3)[1].item() == pytest.approx(expected.item())


def test_only_the_honest_cell_is_calibrated(calibrated):
    scores, labels = calibrated
    error = calibration.expected_calibration_error(scores, labels, 2)
    assert error[0] < 0.012
    assert error[1] > 0.05
    curve = calibration.reliability(scores, labels, 2, n_bins=10)
    assert curve.size.sum(0).tolist() == [20_000, 20_000]
    assert (curve.size[:5] == 0).all()  # below chance nothing is predicted
    assert (curve.confidence - curve.accuracy)[5:, 0].abs().max() < 0.06


def test_temperature_undoes_what_was_done(calibrated):
    scores, labels = calibrated
    t = calibration.temperature(scores, labels, 2)
    assert t[1].item() == pytest.approx(3 * t[0].item(), rel=1e-6)
    assert t[0].item() == pytest.approx(1, abs=0.05)
    best = calibration.log_loss(scores / t, labels, 2)
    for factor in (0.9, 1.1):
        assert bool((calibration.log_loss(scores / (factor * t), labels, 2) > best).all())
    both = torch.stack([torch.zeros_like(scores), scores], -1)
    torch.testing.assert_close(calibration.temperature(both[..., [0, 1]], labels, 2 + 1), t)


def test_recall_at_few_false_positives(calibrated):
    scores, labels = calibrated
    half = 10_000
    found = calibration.recall_at(scores[:half], labels[:half], scores[half:], labels[half:], 0.01)
    assert found.false_positive_rate.tolist() == pytest.approx([0.01, 0.01], abs=0.005)
    negatives, positives = scores[:half][labels[:half] == 0, 0].numpy(), scores[half:][labels[half:] == 1, 0].numpy()
    assert found.recall[0].item() == pytest.approx((positives > np.quantile(negatives, 0.99)).mean(), abs=0.01)
    noise = calibration.recall_at(torch.randn(half), labels[:half], torch.randn(half), labels[half:], 0.01)
    assert noise.recall.item() < 0.03
    with pytest.raises(EntangleError, match="needs 100 or more examples"):
        calibration.recall_at(scores[:50], labels[:50], scores[50:], labels[50:], 0.01)


def calibrated_rows(n: int, studies: int, seed: int = 0, slope: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [example, study] and, study by study, labels drawn with `slope` times the log-odds that they claim."""
    rng = np.random.default_rng(seed)
    scores = 2 * rng.standard_normal((n, studies))
    return torch.tensor(scores), torch.tensor(rng.random(scores.shape) < 1 / (1 + np.exp(-slope * scores))).long()


def errors(scores: torch.Tensor, labels: torch.Tensor, **options: bool) -> np.ndarray:
    pairs = zip(scores.T, labels.T, strict=True)
    return np.array([float(calibration.expected_calibration_error(s, y, 2, **options)) for s, y in pairs])


def test_without_its_bias_taken_off_the_error_is_guos():
    scores, labels = calibrated_rows(500, 3, slope=0.5)
    for s, y, ours in zip(scores.T.numpy(), labels.T.numpy(), errors(scores, labels, debias=False), strict=True):
        p = 1 / (1 + np.exp(-s))
        confidence, right = np.maximum(p, 1 - p), (p > 0.5) == y
        edges = np.linspace(0, 1, 16)
        bins = np.digitize(confidence, edges[1:-1])
        gaps = [(bins == b).mean() * abs(confidence[bins == b].mean() - right[bins == b].mean()) for b in set(bins)]
        assert ours == pytest.approx(sum(gaps))


def test_scores_that_are_right_show_hardly_any_error_and_wrong_ones_theirs():
    assert errors(*calibrated_rows(200, 150)).mean() < 0.025
    assert errors(*calibrated_rows(200, 150), debias=False).mean() > 0.05  # the control: what was shown before
    assert errors(*calibrated_rows(400, 100, slope=0.4)).mean() == pytest.approx(0.134, abs=0.012)


def test_p_values_of_calibration_are_uniform_where_it_holds_and_small_where_it_does_not():
    def p_values(slope: float) -> np.ndarray:
        scores, labels = calibrated_rows(150, 150, slope=slope)
        pairs = zip(scores.T, labels.T, strict=True)
        return np.array([float(calibration.calibration_p(s, y, 2, n_resamples=99)) for s, y in pairs])

    held = p_values(1.0)
    assert held.min() >= 0.01
    assert np.mean(held <= 0.05) == pytest.approx(0.05, abs=0.045)
    assert np.mean(p_values(0.3) <= 0.05) > 0.95
