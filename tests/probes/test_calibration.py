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
    assert (curve.confidence - curve.accuracy)[:, 0].abs().max() < 0.06


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
