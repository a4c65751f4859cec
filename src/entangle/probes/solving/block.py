"""Some cells of a grid, fitted together: under every penalty, with true labels and with permuted ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from entangle.probes.judging.scores import area, correct
from entangle.probes.solving.solvers import Design, Rows, Solution
from entangle.probes.splits import Split

SCORE = {"accuracy": lambda *args: correct(*args).mean(0), "auroc": area}
AT_ONCE = 25
"""Permutations solved at a time: as many as keep the scores in cache."""


class Block:
    """A block of cells.

    Args:
        rows: Activations, examples ordered fit, select, report.
        split: The split.
        codes: Class number of every example.
        classes: The labels.
        metric: What penalties are chosen by, and what the null is of.
        standardise: Whether features are divided by their standard deviation on the fitting rows.
    """

    def __init__(
        self,
        rows: Rows,
        split: Split,
        codes: Int[Tensor, " example"],
        classes: npt.NDArray[Any],
        metric: str,
        *,
        standardise: bool = False,
    ) -> None:
        n_fit, n_select = len(split.fit), len(split.select)
        fitted = rows[:, :n_fit]
        self.select, self.report = rows[:, n_fit : n_fit + n_select], rows[:, n_fit + n_select :]
        self.scale = deviations(fitted) if standardise else None
        self.fitted = fitted if self.scale is None else fitted / self.scale.unsqueeze(1).to(fitted)
        self.split, self.codes, self.classes, self.metric = split, codes, classes, metric

    def fit(self, probes: Sequence[Any], shuffles: Int[Tensor, "example permutation"]) -> dict[str, Tensor]:
        """Fit every cell under each penalty, keep the best on the select part, and judge it.

        Args:
            probes: The same probe under each penalty, from strong to weak; each starts where the one before ended.
            shuffles: Permuted labels.

        Returns:
            What a `ProbeGrid` keeps of each cell, by name.
        """
        labels = self.codes[self.split.fit].to(self.fitted.device)[:, None]
        solutions: list[Solution] = []
        shared = Design.of(self.fitted) if len(probes) > 1 else self.fitted  # several penalties are of one design
        for probe in probes:
            solve = probe.solver(shared, self.classes)
            solutions.append(solve(labels, solutions[-1]) if solutions else solve(labels))
        raw = [self._raw(solution) for solution in solutions]
        merits = torch.stack([self._merit(solution) for solution in raw])
        converged = torch.stack([solution.converged[:, 0].cpu() for solution in raw])
        # What did not converge under one penalty is chosen only where nothing did under any.
        chosen = torch.where(converged | ~converged.any(0), merits, -torch.inf).argmax(0)

        def pick(values: list[Tensor]) -> Tensor:
            return torch.stack([value.cpu() for value in values])[chosen, torch.arange(len(chosen))]

        best = Solution(
            pick([solution.coef for solution in raw]),
            pick([solution.intercept for solution in raw]),
            pick([solution.objective for solution in raw]),
            pick([solution.gap for solution in raw]),
            max(solution.n_iter for solution in raw),
            pick([solution.converged for solution in raw]),
        )
        penalty = torch.tensor([float(getattr(probe, "C", torch.nan)) for probe in probes])
        return {
            "coef_": best.coef[:, 0].float(),
            "intercept_": best.intercept[:, 0].float(),
            "gap": best.gap[:, 0].float(),
            "converged": best.converged[:, 0],
            "C": penalty[chosen],
            "selection_scores": self._squeeze(self._scores(best, self.select)[:, :, 0]),
            "report_scores": self._squeeze(self._scores(best, self.report)[:, :, 0]),
            "null": self._null(probes, chosen, shuffles),
            "constant": (self.fitted == self.fitted[:, :1]).all(2).all(1).cpu(),
        }

    def _null(
        self, probes: Sequence[Any], chosen: Int[Tensor, " cell"], shuffles: Int[Tensor, "example permutation"]
    ) -> Float[Tensor, "permutation cell"]:
        """The reported metric of permuted labels, each cell under the penalty that it chose."""
        null = torch.full((shuffles.shape[1], len(chosen)), torch.nan)
        for number, probe in enumerate(probes):
            cells = chosen == number
            if not bool(cells.any()) or not shuffles.shape[1]:
                continue
            solve = probe.solver(self.fitted[cells.to(self.fitted.device)], self.classes)
            merits = []
            for columns in torch.split(shuffles, AT_ONCE, dim=1):
                solution = self._raw(solve(columns[self.split.fit].to(self.fitted.device)), cells)
                scores = self._scores(solution, self.report[cells.to(self.report.device)])
                for column in range(columns.shape[1]):
                    labels = columns[self.split.report, column]
                    squeezed = self._squeeze(scores[:, :, column])
                    merits.append(SCORE[self.metric](squeezed, labels, len(self.classes)).float())
            null[:, cells] = torch.stack(merits)
        return null

    def _raw(self, solution: Solution, cells: Bool[Tensor, " cell"] | None = None) -> Solution:
        """The solution in the units of the data: its intercept is that of the scaled features already."""
        if self.scale is None:
            return solution
        scale = self.scale if cells is None else self.scale[cells.to(self.scale.device)]
        coef = solution.coef / scale[:, None, None].to(solution.coef)
        return Solution(coef, solution.intercept, solution.objective, solution.gap, solution.n_iter, solution.converged)

    def _merit(self, solution: Solution) -> Float[Tensor, " cell"]:
        scores = self._squeeze(self._scores(solution, self.select)[:, :, 0])
        return SCORE[self.metric](scores, self.codes[self.split.select], len(self.classes)).float()

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


def deviations(rows: Rows) -> Float[Tensor, "cell feature"]:
    """Standard deviation of each feature over the examples, in float64; 1 for one that is constant."""
    centred = rows.double() - rows.double().mean(1, keepdim=True)
    deviation = centred.square().mean(1).sqrt()
    noise = 10 * torch.finfo(torch.float32).eps * rows.double().abs().amax(1)
    return torch.where(deviation > noise * 0.01, deviation, torch.ones_like(deviation))
