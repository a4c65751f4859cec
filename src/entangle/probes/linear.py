"""What every linear probe is: a scikit-learn estimator that fits and scores all cells of a grid at once."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted, validate_data
from torch import Tensor

from entangle.errors import EntangleError
from entangle.probes.inputs import Cells, Classes, encode_labels
from entangle.probes.solving.solvers import Rows, Solution

ClassWeight = Mapping[Any, float] | str | None
Array = npt.NDArray[Any]
Solver = Callable[..., Solution]
"""Solves the same examples for any labellings of them, `[example, labelling]`; minimisers also take a solution to start
from."""

BLOCK_BYTES = 1 << 24  # of activations worked on at a time: a few cells, so that they stay in the processor's cache


class LinearProbe(ClassifierMixin, BaseEstimator, ABC):  # type: ignore[misc]
    """What the five probes share: scores `X @ coef_ + intercept_`, above 0 for the second class, or largest for the
    class.

    Attributes:
        coef_: `[*grid, feature]` for two classes, `[*grid, class, feature]` for more. Without a grid, as in
            scikit-learn: `[1, feature]` or `[class, feature]`.
        intercept_: The same without the feature axis.
        classes_: The labels, sorted.
        converged_: Whether the tolerance was reached, shaped like the grid.
        n_iter_: Steps taken.

    Example:
        >>> probe = en.probes.make_probe("ridge").fit(acts["z"], labels)
        >>> isinstance(probe, en.probes.LinearProbe), probe.score(acts["z"], labels).shape
        (True, (2, 4))
    """

    @abstractmethod
    def solver(self, x: Rows, classes: Classes, sample_weight: Tensor | None = None) -> Solver:
        """Prepare some cells: what does not depend on the labels is done once, here.

        Args:
            x: Activations of some cells.
            classes: The labels that class numbers stand for.
            sample_weight: One weight per example.
        """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit a probe in every cell.

        Args:
            X: Activations `[example, feature]` or `[example, *grid, feature]`, array or tensor (on its device).
            y: One label per example.
            sample_weight: One weight per example.

        Returns:
            Itself.

        Raises:
            EntangleError: Labels of one class, activations that are not finite, or parameters out of range.
        """
        if not isinstance(X, Tensor):
            if _has_grid(X):
                X = check_array(X, allow_nd=True, dtype=(np.float64, np.float32))
            else:
                X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
                check_classification_targets(y)
        codes, self.classes_ = encode_labels(y, in_sorted_order=True)
        cells = Cells(X)
        self.n_features_in_ = cells.n_features
        if len(codes) != cells.n_examples:
            raise EntangleError(f"X has {cells.n_examples} examples but y has {len(codes)} labels")
        weight = None
        if sample_weight is not None:
            weights = sample_weight.detach().cpu().numpy() if isinstance(sample_weight, Tensor) else sample_weight
            values = _check_sample_weight(weights, np.empty((cells.n_examples, 1)), ensure_non_negative=True)
            weight = torch.from_numpy(values).to(cells.device)
        solutions = []
        for start, stop in cells.blocks(BLOCK_BYTES):
            solve = self.solver(cells.read(start, stop), self.classes_, weight)
            solutions.append(solve(codes.to(cells.device)[:, None]))
        self._store(solutions, cells)
        return self

    def _store(self, solutions: list[Solution], cells: Cells) -> None:
        coef = torch.cat([s.coef[:, 0] for s in solutions]).cpu().numpy()
        intercept = torch.cat([s.intercept[:, 0] for s in solutions]).cpu().numpy()
        outputs = coef.shape[1:2] if len(self.classes_) > 2 or not cells.grid else ()
        self.coef_ = coef.reshape(*cells.grid, *outputs, cells.n_features)
        self.intercept_ = intercept.reshape(*cells.grid, *outputs)
        converged = torch.cat([s.converged[:, 0] for s in solutions]).cpu()
        self.converged_ = converged.numpy().reshape(cells.grid)
        self.n_iter_ = max(s.n_iter for s in solutions)
        if not bool(converged.all()):
            names = [cells.name(int(i)) for i in (~converged).nonzero()[:, 0]]
            warnings.warn(
                f"not converged after {self.n_iter_} steps: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''} "
                f"({len(names)} of {cells.n_cells}); raise max_iter, lower C, or scale the features",
                ConvergenceWarning,
                stacklevel=3,
            )

    def decision_function(self, X: Any) -> Array:
        """Scores `[example, *grid]` for two classes, `[example, *grid, class]` for more."""
        check_is_fitted(self)
        if isinstance(X, Tensor):
            X = X.detach().cpu().numpy()
        if not _has_grid(X):
            X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
            scores = X @ self.coef_.T + self.intercept_
            return np.asarray(scores[:, 0] if len(self.classes_) == 2 else scores)
        X = check_array(X, allow_nd=True, dtype=(np.float64, np.float32))
        fitted = (*self.converged_.shape, self.n_features_in_)
        if X.shape[1:] != fitted:
            raise EntangleError(f"these probes were fitted on [example, {fitted}], not {X.shape}")
        if len(self.classes_) == 2:
            return np.asarray(np.einsum("n...d,...d->n...", X, self.coef_) + self.intercept_)
        scores = np.einsum("n...d,...kd->n...k", X, self.coef_) + self.intercept_
        return np.asarray(scores)

    def predict(self, X: Any) -> Array:
        """The most likely label of each example, in every cell: `[example, *grid]`."""
        scores = self.decision_function(X)
        codes = (scores > 0).astype(int) if len(self.classes_) == 2 else scores.argmax(-1)
        return np.asarray(self.classes_[codes])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Accuracy: a number, or one per cell of the grid."""
        predicted = self.predict(X)
        right = predicted == np.asarray(y).reshape(-1, *[1] * (predicted.ndim - 1))
        return np.average(right, axis=0, weights=sample_weight)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")


def _has_grid(X: Any) -> bool:
    return len(getattr(X, "shape", ())) > 2
