"""Are the probabilities of a probe right, and what does it find when it may hardly ever cry wolf? A whole grid at once.

Scores are `[example, *grid]` for two classes, read as log-odds of the second, and `[example, *grid, class]` for more.
"""

from __future__ import annotations

import math
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
    """Bins of equal width between 0 and 1 in the probability of the predicted class; those below chance stay empty."""
    confidence, right = _predictions(scores, labels, n_classes)
    return _curve(confidence, right, n_bins)


def expected_calibration_error(
    scores: Scores, labels: Labels, n_classes: int, *, n_bins: int = 15, debias: bool = True
) -> Tensor:
    """Mean gap between confidence and accuracy over the predictions, by bins (Guo et al. 2017, eq. 3), less chance.

    A bin's gap is never below 0, so that perfectly calibrated scores show a gap too: .06 on average for 200 examples.
    Its expectation above the true gap is that of a folded normal, whose spread is that of right probabilities in the
    bin; it is taken off, at gaps shrunk by how much of their size the noise explains, in so far as chance may have made
    them: whole where a chi-squared test of the bins has a p of .05 or more, and not at all where calibration is out of
    the question, so that the number is then everyone's.

    Args:
        scores: Log-odds of the second class, or a score per class.
        labels: Class numbers.
        n_classes: How many classes there are.
        n_bins: Bins of equal width between 0 and 1.
        debias: Whether to take the bias off.

    Example:
        >>> sure, labels = torch.tensor([4.0, 4.0, 4.0, -4.0]), torch.tensor([1, 0, 1, 0])
        >>> en.probes.expected_calibration_error(sure, labels, 2, debias=False).item()  # .98 sure, .75 right
        0.232
    """
    confidence, right = _predictions(scores, labels, n_classes)
    curve = _curve(confidence, right, n_bins)
    gap = (curve.confidence - curve.accuracy).abs().nan_to_num(0)
    share = curve.size / curve.size.sum(0)
    error: Tensor = (gap * share).sum(0)
    if not debias:
        return error
    bins = _bins(confidence, n_bins)
    within = torch.zeros_like(curve.size).scatter_add(0, bins, confidence * (1 - confidence))
    spread = within.sqrt() / curve.size.clamp(min=1)
    noise = (share * spread.square()).sum(0) / (share * gap.square()).sum(0).clamp(min=1e-300)
    shrunk = (1 - noise).clamp(min=0).sqrt() * gap
    pearson = (gap / spread.clamp(min=1e-300)).square().masked_fill(spread == 0, 0).sum(0)
    chance = torch.special.gammaincc((spread > 0).sum(0).clamp(min=1) / 2, pearson / 2)
    bias = (share * _folded_bias(shrunk, spread)).sum(0) * (chance / 0.05).clamp(max=1)
    debiased: Tensor = (error - bias).clamp(min=0)
    return debiased


def calibration_p(
    scores: Scores, labels: Labels, n_classes: int, *, n_bins: int = 15, n_resamples: int = 1000, seed: int = 0
) -> Tensor:
    """Chance of a calibration error as large, were every probability right (consistency resampling).

    Broecker & Smith (2007): which predictions are right is drawn anew with the probability that they claim, and the
    plain error measured again; the p-value is `(1 + draws at least as large) / (1 + n_resamples)`, never 0.

    Args:
        scores: Log-odds of the second class, or a score per class.
        labels: Class numbers.
        n_classes: How many classes there are.
        n_bins: Bins of equal width between 0 and 1.
        n_resamples: Draws.
        seed: Seed of the draws.
    """
    confidence, right = _predictions(scores, labels, n_classes)

    def error(hits: Tensor) -> Tensor:
        curve = _curve(confidence, hits, n_bins)
        plain: Tensor = ((curve.confidence - curve.accuracy).abs().nan_to_num(0) * curve.size).sum(0) / len(hits)
        return plain

    generator = torch.Generator().manual_seed(seed)
    observed, reached = error(right), torch.zeros_like(confidence[0])
    for _ in range(n_resamples):
        drawn = torch.rand(confidence.shape, generator=generator, dtype=confidence.dtype) < confidence
        reached += error(drawn.double()) >= observed - 1e-12
    p: Tensor = (1 + reached) / (1 + n_resamples)
    return p


def _predictions(scores: Scores, labels: Labels, n_classes: int) -> tuple[Tensor, Tensor]:
    """The probability of each predicted class, and whether it was right."""
    confidence, predicted = log_probabilities(scores, n_classes).exp().max(-1)
    return confidence, (predicted == labels.reshape(-1, *[1] * (predicted.ndim - 1))).double()


def _bins(confidence: Tensor, n_bins: int) -> Tensor:
    return (confidence * n_bins).long().clamp(0, n_bins - 1)


def _curve(confidence: Tensor, right: Tensor, n_bins: int) -> Reliability:
    bins = _bins(confidence, n_bins)
    total = confidence.new_zeros(n_bins, *confidence.shape[1:])
    count = total.scatter_add(0, bins, torch.ones_like(confidence))
    return Reliability(total.scatter_add(0, bins, confidence) / count, total.scatter_add(0, bins, right) / count, count)


def _folded_bias(mean: Tensor, spread: Tensor) -> Tensor:
    """How far the expected size of a normal number is above the size of its mean."""
    ratio = mean / spread.clamp(min=1e-300)
    below = torch.special.ndtr(-ratio)
    bias: Tensor = spread * (math.sqrt(2 / math.pi) * torch.exp(-ratio.square() / 2) - 2 * ratio * below)
    return bias


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
