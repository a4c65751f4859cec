"""Linear probes as scikit-learn estimators; given `[example, *grid, feature]` they fit every cell at once."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from entangle.errors import EntangleError
from entangle.probes.inputs import Classes
from entangle.probes.linear import Array, ClassWeight, LinearProbe, Solver
from entangle.probes.solving.closed_form import lda, mean_difference
from entangle.probes.solving.losses import Labels, LogisticLoss, Loss, MultinomialLoss, SquaredHingeLoss, SquaredLoss
from entangle.probes.solving.solvers import Design, Rows, Solution, minimise


class _Minimiser(LinearProbe):
    """A probe that minimises a loss; its parameters include `tol`, `max_iter` and `class_weight`."""

    tol: float | None
    max_iter: int
    class_weight: ClassWeight

    @abstractmethod
    def _objective(self, n_classes: int) -> tuple[Loss, float]:
        """The loss and the weight of its sum against half the squared norm."""

    def solver(self, x: Rows | Design, classes: Classes, sample_weight: Tensor | None = None) -> Solver:
        loss, C = self._objective(len(classes))
        if not (np.isfinite(C) and C > 0):
            raise EntangleError(
                "C and alpha must be positive and finite: without a penalty, separable data have no optimum; "
                f"got {self.get_params()}"
            )
        weights = None if sample_weight is None else sample_weight[:, None]
        design = x if isinstance(x, Design) else Design.of(x, weights)

        def solve(labels: Labels, start: Solution | None = None) -> Solution:
            weighted = design
            if self.class_weight is not None:
                weighted = replace(
                    design,
                    weights=design.weights * self._class_weights(labels, classes, sample_weight).to(design.weights),
                )
            return minimise(
                loss, weighted, labels, len(classes), C=C, tol=self.tol, max_iter=self.max_iter, start=start
            )

        return solve

    def _class_weights(self, labels: Labels, classes: Classes, sample_weight: Tensor | None) -> Tensor:
        """`[example, labelling]`, as scikit-learn weighs classes."""
        weight = None if sample_weight is None else sample_weight.cpu().numpy()
        columns = []
        for column in labels.cpu().numpy().T:
            per_class = compute_class_weight(
                self.class_weight, classes=classes, y=classes[column], sample_weight=weight
            )
            columns.append(torch.from_numpy(per_class[column]))
        return torch.stack(columns, 1)


class _ByInverseStrength(_Minimiser):
    """Penalised by `.5 |coef|^2` against `C` times the loss, as scikit-learn's linear classifiers are."""

    def __init__(
        self, C: float = 1.0, *, class_weight: ClassWeight = None, tol: float | None = None, max_iter: int = 200
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter


class LogisticProbe(_ByInverseStrength):
    """L2 logistic regression with scikit-learn's objective: `.5 |coef|^2 + C * sum_i weight_i * log-loss_i`, intercept
    free.

    More than two classes share one softmax.

    Args:
        C: Inverse strength of the penalty.
        class_weight: None, "balanced", or a weight for each label.
        tol: How far the mean log-loss may be above its minimum, as the preconditioned gradient estimates it; by default
            as near as the data's precision allows (`solvers.TOLERANCE`).
        max_iter: Steps after which a cell counts as not converged.

    Example:
        >>> probe = en.LogisticProbe(C=1.0).fit(acts["resid_post"], labels)
        >>> probe.coef_.shape, probe.intercept_.shape  # [layer, d_model] and [layer]
        ((2, 32), (2,))
        >>> probe.predict_proba(acts["resid_post"][:1]).shape  # [example, layer, class]
        (1, 2, 2)
    """

    def _objective(self, n_classes: int) -> tuple[Loss, float]:
        return (LogisticLoss() if n_classes == 2 else MultinomialLoss()), self.C

    def predict_proba(self, X: Any) -> Array:
        """Probabilities `[example, *grid, class]`."""
        return _softmax(self.decision_function(X), len(self.classes_))


class LinearSVMProbe(_ByInverseStrength):
    """L2 support vector machine with squared hinge: `.5 |coef|^2 + C * sum_i weight_i * max(0, 1 - y_i s_i)^2`,
    intercept free.

    More than two classes are each set against the rest. Unlike scikit-learn's LinearSVC, the intercept is not
    penalised.

    Args:
        C: Inverse strength of the penalty.
        class_weight: None, "balanced", or a weight for each label.
        tol: How far the mean loss may be above its minimum, as the preconditioned gradient estimates it; by default
            as near as the data's precision allows (`solvers.TOLERANCE`).
        max_iter: Steps after which a cell counts as not converged.

    Example:
        >>> probe = en.LinearSVMProbe(C=0.1).fit(acts["resid_post"][:, -1], labels)
        >>> probe.predict(acts["resid_post"][:4, -1])
        array([0, 1, 0, 1])
    """

    def _objective(self, n_classes: int) -> tuple[Loss, float]:
        return SquaredHingeLoss(), self.C


class RidgeProbe(_Minimiser):
    """Ridge regression on labels of +1 and -1, as scikit-learn's RidgeClassifier: `sum_i weight_i (y_i - s_i)^2 + alpha
    |coef|^2`.

    Args:
        alpha: Strength of the penalty.
        class_weight: None, "balanced", or a weight for each label.
        tol: How far the mean squared error may be above its minimum, as the preconditioned gradient estimates it; by
            default as near as the data's precision allows (`solvers.TOLERANCE`).
        max_iter: Steps after which a cell counts as not converged.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 2.0], [3.0, 0.0], [3.0, 2.0]])
        >>> en.RidgeProbe(alpha=0.1).fit(x, [0, 0, 1, 1]).coef_.round(2)
        array([[0.66, 0.  ]])
    """

    def __init__(
        self, alpha: float = 1.0, *, class_weight: ClassWeight = None, tol: float | None = None, max_iter: int = 200
    ) -> None:
        self.alpha = alpha
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter

    def _objective(self, n_classes: int) -> tuple[Loss, float]:
        return SquaredLoss(), 0.5 / self.alpha if self.alpha > 0 else np.inf


class LDAProbe(LinearProbe):
    """Linear discriminant analysis with a shrunk within-class covariance and class shares as priors.

    Args:
        shrinkage: "oas" (Chen et al. 2010), or a number from 0 to 1 as in scikit-learn.

    Example:
        >>> probe = en.LDAProbe().fit(acts["resid_post"], labels)
        >>> probe.coef_.shape  # [layer, d_model]
        (2, 32)
    """

    def __init__(self, shrinkage: float | str = "oas") -> None:
        self.shrinkage = shrinkage

    def solver(self, x: Rows, classes: Classes, sample_weight: Tensor | None = None) -> Solver:
        """The covariance of all examples is shared; each labelling takes its class means out of it."""
        design = Design.of(x, None if sample_weight is None else sample_weight[:, None], exact=True)
        return lambda labels: lda(design, labels, len(classes), shrinkage=self.shrinkage)

    def predict_proba(self, X: Any) -> Array:
        """Probabilities `[example, *grid, class]`."""
        return _softmax(self.decision_function(X), len(self.classes_))


class MeanDifferenceProbe(LinearProbe):
    """The difference of the class means, threshold half way: the "mass mean" direction of inference-time intervention.

    More than two classes: the nearest class mean.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 2.0], [3.0, 0.0], [3.0, 2.0]])
        >>> en.MeanDifferenceProbe().fit(x, [0, 0, 1, 1]).coef_
        array([[3., 0.]])
    """

    def solver(self, x: Rows, classes: Classes, sample_weight: Tensor | None = None) -> Solver:
        """The examples are centred once; each labelling takes its class means."""
        design = Design.of(x, None if sample_weight is None else sample_weight[:, None])
        return lambda labels: mean_difference(design, labels, len(classes))


class CellByCell:
    """Any linear scikit-learn classifier (one with `coef_` and `intercept_`), fitted in one cell after another."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def solver(self, x: Rows, classes: Classes, sample_weight: Tensor | None = None) -> Solver:
        """A clone of the estimator for each cell and labelling."""
        cells = x.cpu().numpy()
        weights = {} if sample_weight is None else {"sample_weight": sample_weight.cpu().numpy()}

        def solve(labels: Labels) -> Solution:
            fitted = [[clone(self.estimator).fit(cell, y, **weights) for y in labels.cpu().numpy().T] for cell in cells]
            for name in ("coef_", "intercept_"):
                if not hasattr(fitted[0][0], name):
                    raise EntangleError(
                        f"a probe must be linear, but {type(self.estimator).__name__} has no {name} once fitted"
                    )
            coef = torch.tensor(np.array([[f.coef_ for f in row] for row in fitted]), dtype=torch.float64)
            intercept = torch.tensor(
                np.array([[np.broadcast_to(f.intercept_, len(f.coef_)) for f in row] for row in fitted])
            )
            shape = coef.shape[:2]
            missing = coef.new_full(shape, torch.nan)
            return Solution(
                coef, intercept.double(), missing, coef.new_zeros(shape), 0, torch.ones(shape, dtype=torch.bool)
            )

        return solve


def _softmax(scores: Array, n_classes: int) -> Array:
    values = torch.from_numpy(np.asarray(scores))
    if n_classes == 2:
        values = torch.stack([torch.zeros_like(values), values], -1)
    probabilities: Array = torch.softmax(values, -1).numpy()
    return probabilities


PROBES: dict[str, type[LinearProbe]] = {
    "logistic": LogisticProbe,
    "mean_difference": MeanDifferenceProbe,
    "lda": LDAProbe,
    "ridge": RidgeProbe,
    "svm": LinearSVMProbe,
}


def make_probe(probe: str | Any, **parameters: Any) -> LinearProbe | CellByCell:
    """A probe by name or, as it is, an estimator.

    Args:
        probe: A name in `PROBES`, one of its estimators, or any linear scikit-learn classifier.
        **parameters: Of a probe given by name; those that it does not have are an error.

    Raises:
        EntangleError: No such probe or parameter.

    Example:
        >>> en.probes.make_probe("logistic", C=0.1)
        LogisticProbe(C=0.1)
        >>> en.probes.make_probe("forest")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: probe must be one of logistic, mean_difference, lda, ridge, svm ...
    """
    if not isinstance(probe, str):
        if isinstance(probe, type) or not hasattr(probe, "fit"):
            raise EntangleError(
                f"probe must be one of {', '.join(PROBES)} or an estimator (an instance), not {probe!r}"
            )
        if parameters:
            raise EntangleError(f"set {', '.join(parameters)} on the estimator itself")
        return clone(probe) if isinstance(probe, LinearProbe) else CellByCell(probe)
    if probe not in PROBES:
        raise EntangleError(f"probe must be one of {', '.join(PROBES)} or an estimator, not {probe!r}")
    try:
        return PROBES[probe](**parameters)
    except TypeError:
        raise EntangleError(f"the {probe} probe has no parameter {', '.join(parameters)}; leave it out") from None
