"""Fitting a grid of probes: a block of cells at a time, true labels and their permutations together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm import tqdm

from entangle.data import same_index
from entangle.errors import EntangleError
from entangle.probes.estimators import BLOCK_BYTES, make_probe
from entangle.probes.grid import METRICS, ProbeGrid
from entangle.probes.inputs import Cells, encode_groups, encode_labels
from entangle.probes.judging.null import permuted_labels
from entangle.probes.judging.scores import area, correct
from entangle.probes.solving.solvers import Rows, Solution
from entangle.probes.splits import Split, three_way

SCORE = {"accuracy": lambda *args: correct(*args).mean(0), "auroc": area}


def fit_probes(
    x: Float[Tensor, "example *grid feature"] | npt.ArrayLike,
    y: Sequence[Any] | npt.ArrayLike | Tensor,
    *,
    positive: Any = None,
    probe: str | Any = "logistic",
    groups: Sequence[Any] | npt.ArrayLike | Tensor | None = None,
    seed: int = 0,
    split: Split | None = None,
    C: float | Sequence[float] = 1.0,
    n_permutations: int = 100,
    n_resamples: int = 2000,
    level: float = 0.95,
    metric: str = "accuracy",
    layers: Sequence[int] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> ProbeGrid:
    """Fit a linear probe in every cell of a grid, and judge each on examples that neither fitted nor chose it.

    Args:
        x: Activations; anything that can be sliced will do, and is read a block of cells at a time.
        y: One label per example: names, bools or whole numbers. Which of two is class 1, the one that scores above 0
            speak for and that directions point to, is decided by the rules of `entangle.data.labels`.
        positive: The label that is class 1 instead, all others being class 0.
        probe: "logistic", "mean_difference", "lda", "ridge", "svm", one of their estimators with parameters of your
            own, or any linear scikit-learn classifier (fitted cell by cell).
        groups: A group per example (author, document, template...), which stays on one side of the split.
        seed: Seed of split, permutations and resamples.
        split: A split of your own, else `three_way(y, groups=groups, seed=seed)`.
        C: Inverse strength of the penalty (logistic and svm, by name); of several, each cell takes the best on the
            select part.
        n_permutations: Shuffles of the labels for the null; 0 for none.
        n_resamples: Bootstrap resamples for the intervals.
        level: Coverage of the intervals.
        metric: "accuracy" or "auroc": what cells are ranked by and the null is of.
        layers: The layer numbers along the grid's first axis.
        fingerprint: Of the model, kept with the result.
        device: Where to compute; by default where `x` is.
        progress: Show a progress bar.

    Returns:
        The probes with their held-out scores.

    Raises:
        EntangleError: Activations that are not finite, labels of one class, a class missing from a part of the split, a
            group on both sides of it, or a cell that did not converge (named).
    """
    if metric not in METRICS:
        raise EntangleError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
    if n_permutations < 0 or n_resamples < 1:
        raise EntangleError(
            f"n_permutations must be 0 or more and n_resamples 1 or more, not {n_permutations} and {n_resamples}"
        )
    cells = Cells(x, device=device)
    if layers is not None and (not cells.grid or len(layers) != cells.grid[0]):
        raise EntangleError(f"layers must number the first axis of the grid {cells.grid}; got {list(layers)}")
    same_index(x=x, y=y, groups=groups)
    codes, classes = encode_labels(y, cells.n_examples, positive=positive)
    units = encode_groups(groups, cells.n_examples)
    split = split if split is not None else three_way(codes, groups=units, seed=seed)
    split.check(codes, units)
    penalties = list(C) if isinstance(C, Sequence | np.ndarray) else [C]
    has_penalty = probe in ("logistic", "svm")
    if not has_penalty and penalties != [1.0]:
        raise EntangleError(f"C is for the logistic and svm probes; set the penalty of {probe} on its estimator")
    if not penalties:
        raise EntangleError("C must be a positive number, or several to choose from; got none")
    probes = [make_probe(probe, C=c) for c in penalties] if has_penalty else [make_probe(probe)]

    order = torch.cat([split.fit, split.select, split.report])
    shuffles = permuted_labels(codes, split, n_permutations, seed=seed, groups=units)
    parts: list[dict[str, Tensor]] = []
    n_outputs = 1 if len(classes) == 2 else len(classes)
    extra = 4 * min(n_permutations, 25) * n_outputs
    with tqdm(total=cells.n_cells, desc="probes", unit="cell", disable=not progress) as bar:
        for start, stop in cells.blocks(BLOCK_BYTES, extra):
            block = _Block(cells.read(start, stop, order), split, codes, classes, metric)
            parts.append(block.fit(probes, shuffles, [cells.name(i) for i in range(start, stop)]))
            bar.update(stop - start)
    found = {
        name: torch.cat([part[name] for part in parts], dim=1 if name.endswith("scores") or name == "null" else 0)
        for name in parts[0]
    }

    constant = found.pop("constant").nonzero()[:, 0].tolist()
    outputs = () if n_outputs == 1 else (n_outputs,)
    shapes = {
        "coef_": (*cells.grid, *outputs, cells.n_features),
        "intercept_": (*cells.grid, *outputs),
        "gap": cells.grid,
    }
    shapes |= {"C": cells.grid, "null": (n_permutations, *cells.grid)}
    shapes |= {name: (len(found[name]), *cells.grid, *outputs) for name in ("selection_scores", "report_scores")}
    settings = {
        "probe": probe if isinstance(probe, str) else repr(probe),
        "C": penalties,
        "seed": seed,
        "n_resamples": n_resamples,
        "constant_cells": [[int(i) for i in np.unravel_index(cell, cells.grid)] for cell in constant],
    }
    return ProbeGrid(
        **{name: found[name].reshape(shape) for name, shape in shapes.items()},
        classes_=classes,
        split=split,
        labels=codes,
        groups=units,
        metric=metric,
        settings=settings | {"level": level},
        layers=None if layers is None else [int(layer) for layer in layers],
        fingerprint=fingerprint,
    )


class _Block:
    """A block of cells, its examples ordered fit, select, report."""

    def __init__(self, rows: Rows, split: Split, codes: Tensor, classes: npt.NDArray[Any], metric: str) -> None:
        n_fit, n_select = len(split.fit), len(split.select)
        self.fitted, self.select, self.report = (
            rows[:, :n_fit],
            rows[:, n_fit : n_fit + n_select],
            rows[:, n_fit + n_select :],
        )
        self.split, self.codes, self.classes, self.metric = split, codes, classes, metric

    def fit(self, probes: Sequence[Any], shuffles: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        labels = self.codes[self.split.fit].to(self.fitted.device)[:, None]
        candidates, merits = [], []
        for probe in probes:
            solve = probe.solver(self.fitted, self.classes)
            solution = _converged(solve(labels), names)
            candidates.append((solve, solution))
            scores = self._scores(solution, self.select)[:, :, 0]
            merits.append(SCORE[self.metric](self._squeeze(scores), self.codes[self.split.select], len(self.classes)))
        chosen = torch.stack(merits).argmax(0)
        null = torch.full((shuffles.shape[1], len(names)), torch.nan)
        for number, (solve, _) in enumerate(candidates):
            cells = chosen == number
            if bool(cells.any()) and shuffles.shape[1]:
                null[:, cells] = self._null(solve, shuffles, names)[:, cells]

        def pick(values: list[Tensor]) -> Tensor:
            return torch.stack(values)[chosen, torch.arange(len(names))]

        best = Solution(
            pick([s.coef.cpu() for _, s in candidates]),
            pick([s.intercept.cpu() for _, s in candidates]),
            pick([s.objective.cpu() for _, s in candidates]),
            pick([s.gap.cpu() for _, s in candidates]),
            max(s.n_iter for _, s in candidates),
            pick([s.converged.cpu() for _, s in candidates]),
        )
        penalty = torch.tensor([float(getattr(probe, "C", torch.nan)) for probe in probes])
        return {
            "coef_": best.coef[:, 0].float(),
            "intercept_": best.intercept[:, 0].float(),
            "gap": best.gap[:, 0].float(),
            "C": penalty[chosen],
            "selection_scores": self._squeeze(self._scores(best, self.select)[:, :, 0]),
            "report_scores": self._squeeze(self._scores(best, self.report)[:, :, 0]),
            "null": null,
            "constant": (self.fitted == self.fitted[:, :1]).all(2).all(1).cpu(),
        }

    def _null(self, solve: Any, shuffles: Tensor, names: Sequence[str]) -> Float[Tensor, "permutation cell"]:
        rows = []
        for columns in torch.split(shuffles, 25, dim=1):  # as many at a time as keep the scores in cache
            solution = _converged(solve(columns[self.split.fit].to(self.fitted.device)), names)
            scores = self._scores(solution, self.report)
            for column in range(columns.shape[1]):
                labels = columns[self.split.report, column]
                rows.append(SCORE[self.metric](self._squeeze(scores[:, :, column]), labels, len(self.classes)).float())
        return torch.stack(rows)

    def _scores(self, solution: Solution, rows: Rows) -> Shaped[Tensor, "example cell labelling output"]:
        """About the mean, so that features far from 0 cost no precision."""
        coef, intercept = solution.coef.to(rows.device), solution.intercept.to(rows.device)
        mean = rows.mean(1)
        flat = coef.flatten(1, 2)
        offset = intercept.flatten(1) + torch.einsum("crd,cd->cr", flat, mean.double())
        scores = torch.baddbmm(offset.to(rows)[:, None], rows - mean[:, None], flat.mT.to(rows))
        return scores.reshape(*rows.shape[:2], *coef.shape[1:3]).transpose(0, 1).float().cpu()

    def _squeeze(self, scores: Tensor) -> Tensor:
        return scores.squeeze(-1) if len(self.classes) == 2 else scores


def _converged(solution: Solution, names: Sequence[str]) -> Solution:
    wrong = [name for name, fine in zip(names, solution.converged.all(1).tolist(), strict=True) if not fine]
    if wrong:
        which = ", ".join(wrong[:5]) + (" ..." if len(wrong) > 5 else "")
        raise EntangleError(
            f"not converged after {solution.n_iter} steps: {which}; "
            "pass an estimator with a larger max_iter, a smaller C or a looser tol"
        )
    return solution
