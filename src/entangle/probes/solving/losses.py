"""Convex losses of a linear score, each with what a minimiser needs: its value, its slope, a bound on its curvature.

Scores are `[cell, example, response, output]`: `response` counts labellings solved side by side (the true labels, or
many permutations of them), `output` the scores one labelling needs (one for two classes, one per class for more).
"""
# ruff: noqa: D102 - what the methods do is said once, in Loss

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Scores = Float[Tensor, "cell example response output"]
Targets = Float[Tensor, "example response output"]
Labels = Int[Tensor, "example response"]


class Loss(Protocol):
    """A loss per example, convex and with a Lipschitz gradient in its scores."""

    curvature: float
    """Upper bound of the second derivative: the Hessian in the weights is at most `curvature * X'X`."""

    def targets(self, labels: Labels, n_classes: int, dtype: torch.dtype) -> Targets:
        """What the scores are compared with."""
        ...

    def value(self, scores: Scores, targets: Targets) -> Float[Tensor, "cell example response"]:
        """The loss of each example."""
        ...

    def slope(self, scores: Scores, targets: Targets) -> Scores:
        """Its derivative by each score."""
        ...


class LogisticLoss:
    """`log(1 + exp(-s))` with `s` the score signed by the label; curvature p(1 - p) <= 1/4 (Boehning 1988).

    Example:
        >>> loss = en.probes.LogisticLoss()
        >>> scores = torch.tensor([0.0, 4.0]).reshape(1, 2, 1, 1)
        >>> targets = loss.targets(torch.tensor([[1], [1]]), 2, torch.float32)
        >>> loss.value(scores, targets).flatten()  # log 2, and nearly nothing
        tensor([0.6931, 0.0181])
    """

    curvature = 0.25

    def targets(self, labels: Labels, n_classes: int, dtype: torch.dtype) -> Targets:
        return labels.to(dtype).unsqueeze(-1)

    def value(self, scores: Scores, targets: Targets) -> Float[Tensor, "cell example response"]:
        return (F.softplus(scores) - targets * scores).squeeze(-1)

    def slope(self, scores: Scores, targets: Targets) -> Scores:
        return torch.sigmoid(scores).sub_(targets)


class MultinomialLoss:
    """Softmax cross-entropy; curvature diag(p) - pp' <= 1/2 (Boehning 1992)."""

    curvature = 0.5

    def targets(self, labels: Labels, n_classes: int, dtype: torch.dtype) -> Targets:
        return F.one_hot(labels, n_classes).to(dtype)

    def value(self, scores: Scores, targets: Targets) -> Float[Tensor, "cell example response"]:
        return scores.logsumexp(-1) - (scores * targets).sum(-1)

    def slope(self, scores: Scores, targets: Targets) -> Scores:
        return torch.softmax(scores, -1).sub_(targets)


class SquaredHingeLoss:
    """`max(0, 1 - y s)^2` with y = +1 or -1, one against the rest for more than two classes; curvature 2."""

    curvature = 2.0

    def targets(self, labels: Labels, n_classes: int, dtype: torch.dtype) -> Targets:
        return signed_targets(labels, n_classes, dtype)

    def value(self, scores: Scores, targets: Targets) -> Float[Tensor, "cell example response"]:
        return (1 - targets * scores).clamp_(min=0).square_().sum(-1)

    def slope(self, scores: Scores, targets: Targets) -> Scores:
        return (1 - targets * scores).clamp_(min=0).mul_(targets).mul_(-2)


def signed_targets(labels: Labels, n_classes: int, dtype: torch.dtype) -> Targets:
    """+1 for the class and -1 for the rest: one output for two classes, else one per class."""
    one_hot = F.one_hot(labels, n_classes).to(dtype).mul_(2).sub_(1)
    return one_hot[..., 1:] if n_classes == 2 else one_hot


class SquaredLoss:
    """`(y - s)^2` with y = +1 or -1: ridge regression on the labels; curvature 2, exactly, so one step solves it."""

    curvature = 2.0

    def targets(self, labels: Labels, n_classes: int, dtype: torch.dtype) -> Targets:
        return signed_targets(labels, n_classes, dtype)

    def value(self, scores: Scores, targets: Targets) -> Float[Tensor, "cell example response"]:
        return (scores - targets).square_().sum(-1)

    def slope(self, scores: Scores, targets: Targets) -> Scores:
        return (scores - targets).mul_(2)
