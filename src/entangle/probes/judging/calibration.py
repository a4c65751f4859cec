"""Are the probabilities of a probe right, and what does it find when it may hardly ever cry wolf? A whole grid at once.

Scores are `[example, *grid]` for two classes, read as log-odds of the second, and `[example, *grid, class]` for more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from entangle.errors import EntangleError

Scores = Shaped[Tensor, "example ..."]
Labels = Int[Tensor, " example"]


class Reliability(NamedTuple):
    """A reliability curve: among predictions about this sure, how many were right.

    Attributes:
        confidence: Mean probability of the predicted class in each bin, NaN where it is empty.
        accuracy: Share of those predictions that were right.
        size: How many there were.
    """

    confidence: Float[Tensor, " bin *cell"]
    accuracy: Float[Tensor, " bin *cell"]
    size: Float[Tensor, " bin *cell"]


class Recall(NamedTuple):
    """What a threshold finds.

    Attributes:
        recall: Share of the second class that scores above it.
        false_positive_rate: Share of the first class that does, which was meant to be small.
        threshold: The score.
    """

    recall: Float[Tensor, "*cell"]
    false_positive_rate: Float[Tensor, "*cell"]
    threshold: Float[Tensor, "*cell"]


def log_probabilities(scores: Scores, n_classes: int) -> Float[Tensor, "example *cell class"]:
    """Log-probability of every class."""
    x = scores.double()
    return F.logsigmoid(torch.stack([-x, x], -1)) if n_classes == 2 else torch.log_softmax(x, -1)


def log_loss(scores: Scores, labels: Labels, n_classes: int) -> Float[Tensor, "*cell"]:
    """Mean negative log-probability of the true class, in nats."""
    return -_of_label(log_probabilities(scores, n_classes), labels).mean(0)


def reliability(scores: Scores, labels: Labels, n_classes: int, *, n_bins: int = 15) -> Reliability:
    """Bins of equal width between chance, 1 / `n_classes`, and 1 in the probability of the predicted class."""
    confidence, predicted = log_probabilities(scores, n_classes).exp().max(-1)
    right = (predicted == labels.reshape(-1, *[1] * (predicted.ndim - 1))).double()
    floor = 1 / n_classes
    bins = ((confidence - floor) / (1 - floor) * n_bins).long().clamp(0, n_bins - 1)
    total = confidence.new_zeros(n_bins, *confidence.shape[1:])
    count = total.scatter_add(0, bins, torch.ones_like(confidence))
    return Reliability(total.scatter_add(0, bins, confidence) / count, total.scatter_add(0, bins, right) / count, count)


def expected_calibration_error(scores: Scores, labels: Labels, n_classes: int, *, n_bins: int = 15) -> Tensor:
    """Mean gap between confidence and accuracy over the predictions, by bins (Guo et al. 2017, eq. 3)."""
    curve = reliability(scores, labels, n_classes, n_bins=n_bins)
    gap = (curve.confidence - curve.accuracy).abs().nan_to_num(0)
    error: Tensor = (gap * curve.size).sum(0) / curve.size.sum(0)
    return error


def temperature(scores: Scores, labels: Labels, n_classes: int) -> Float[Tensor, "*cell"]:
    """What to divide scores by for the smallest log-loss (Guo et al. 2017), between 0.001 and 1000.

    The log-loss is convex in 1 / temperature, so its derivative is bisected.
    """
    x = scores.double()
    x = torch.stack([torch.zeros_like(x), x], -1) if n_classes == 2 else x
    low, high = x.new_full(x.shape[1:-1], -3), x.new_full(x.shape[1:-1], 3)  # of log10(1 / temperature)
    truth = _of_label(x, labels).mean(0)
    for _ in range(50):
        middle = (low + high) / 2
        p = torch.softmax(x * 10 ** middle.unsqueeze(-1), -1)
        too_sharp = (p * x).sum(-1).mean(0) > truth
        low, high = torch.where(too_sharp, low, middle), torch.where(too_sharp, middle, high)
    return 10 ** (-(low + high) / 2)


def recall_at(
    selection: Scores,
    selection_labels: Labels,
    report: Scores,
    report_labels: Labels,
    false_positive_rate: float = 0.01,
) -> Recall:
    """Recall on the report part at the threshold that this share of the select part's first class passes.

    Raises:
        EntangleError: The share is not between 0 and 1, or the first class has too few examples to set such a
            threshold.
    """
    negatives = selection[selection_labels == 0]
    if not 0 < false_positive_rate < 1:
        raise EntangleError(f"the false positive rate must lie strictly between 0 and 1, not {false_positive_rate}")
    if len(negatives) * false_positive_rate < 1:
        raise EntangleError(
            f"a false positive rate of {false_positive_rate} needs {int(1 / false_positive_rate)} or more "
            f"examples of the first class in the select part, not {len(negatives)}"
        )
    threshold = torch.quantile(negatives, 1 - false_positive_rate, dim=0, interpolation="higher")
    above = (report > threshold).double()
    return Recall(above[report_labels == 1].mean(0), above[report_labels == 0].mean(0), threshold)


def _of_label(values: Tensor, labels: Labels) -> Tensor:
    """The last axis's entry at each example's label."""
    index = labels.reshape(-1, *[1] * (values.ndim - 1)).expand(*values.shape[:-1], 1)
    return values.gather(-1, index).squeeze(-1)
