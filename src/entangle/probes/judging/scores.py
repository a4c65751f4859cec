"""What held-out scores are worth: accuracy, AUROC, log-loss, calibration, recall at few false positives; a whole grid
at once.

Scores are `[example, *grid]` for two classes (above 0: the second) and `[example, *grid, class]` for more.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from entangle.metrics.intervals.areas import auroc_interval
from entangle.metrics.intervals.ranking import auroc
from entangle.metrics.statistics import Estimate

Scores = Float[Tensor, "example *cell"]
Labels = Int[Tensor, " example"]


def correct(scores: Shaped[Tensor, "example ..."], labels: Labels, n_classes: int) -> Float[Tensor, "example *cell"]:
    """1 where the predicted class is the label, else 0.

    Example:
        >>> en.probes.correct(torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([1, 0, 0]), 2).flatten()
        tensor([1., 1., 0.])
    """
    predicted = (scores > 0).long() if n_classes == 2 else scores.argmax(-1)
    return (predicted == _beside(labels, predicted)).float()


def area(
    scores: Shaped[Tensor, "example ..."], labels: Labels, n_classes: int, weights: Tensor | None = None
) -> Tensor:
    """AUROC `[*cell]`, or `[resample, *cell]` under resampling weights; each class against the rest, averaged."""
    if n_classes == 2:
        return auroc(scores, labels, weights)
    return torch.stack([auroc(scores[..., k], (labels == k).long(), weights) for k in range(n_classes)]).mean(0)


def separation(scores: Shaped[Tensor, "example ..."], labels: Labels, n_classes: int) -> Float[Tensor, "*cell"]:
    """How far apart the scores of two classes lie, in standard deviations within them (d'); each class against the
    rest, averaged. It tells cells apart that make no mistake.

    Example:
        >>> en.probes.separation(torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([1, 1, 0, 0]), 2)
        tensor([2.8284])
    """
    if n_classes > 2:
        each = [separation(scores[..., k], (labels == k).long(), 2) for k in range(n_classes)]
        return torch.stack(each).mean(0)
    one, other = scores[labels == 1], scores[labels == 0]
    within = (one.var(0, correction=0) * len(one) + other.var(0, correction=0) * len(other)) / max(len(scores) - 2, 1)
    return ((one.mean(0) - other.mean(0)) / within.sqrt()).nan_to_num(0.0, torch.inf, -torch.inf)


def area_interval(
    scores: Shaped[Tensor, "example ..."],
    labels: Labels,
    n_classes: int,
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: Labels | None = None,
) -> Estimate:
    """AUROC of every cell with its interval over examples, or over groups if given (see `auroc_interval`).

    Nothing is resampled: `n_resamples` and `seed` stay for those who give them to every interval alike.
    """
    names = None if groups is None else groups.numpy()
    estimate = auroc_interval(scores, labels, n_classes=n_classes, groups=names, level=level)
    return Estimate(*(torch.as_tensor(part, dtype=torch.float64) for part in estimate))


def _beside(labels: Labels, like: Tensor) -> Tensor:
    return labels.reshape(-1, *[1] * (like.ndim - 1))
