"""A probe for every layer, or every layer and head, judged on examples that neither fitted nor chose it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.intervals.rates import rate_interval
from entangle.metrics.statistics import Estimate, max_statistic_p
from entangle.models import Mark, check_made_with
from entangle.probes.exporting import Cell, FittedProbe, cell_of
from entangle.probes.judging import calibration
from entangle.probes.judging.scores import area, area_interval, correct, separation
from entangle.probes.splits import PARTS, Split
from entangle.storage.record import read, taken_apart, write

METRICS = ("accuracy", "auroc")
TENSOR_FIELDS = ("coef_", "intercept_", "labels", "selection_scores", "report_scores", "null", "C", "gap")
JSON_FIELDS = ("metric", "layers", "fingerprint")


@dataclass(frozen=True, eq=False)
class ProbeGrid:
    """Linear probes over a grid, with held-out scores and the null they are judged against.

    Every number without "selection" in its name comes from the report part of the split, which chose nothing.

    Attributes:
        coef_: Of the raw features, `[*grid, feature]`; for more than two classes `[*grid, class, feature]`.
        intercept_: The same without the feature axis.
        classes_: The labels; a score above 0 means the second, which directions point to (see `entangle.data.labels`).
        split: Which examples were fitted, selected and reported on.
        labels: Class number of every example.
        groups: Group number of every example, if there were groups.
        selection_scores: Of the select part, `[example, *grid]` (`[example, *grid, class]` for more than two classes).
        report_scores: Of the report part, likewise.
        null: The reported metric of probes fitted to permuted labels, `[permutation, *grid]`.
        C: Strength of the penalty in each cell, chosen on the select part if there was a choice; NaN for probes without
            one.
        gap: Estimated distance of each cell's objective from its minimum, per unit of example weight.
        metric: "accuracy" or "auroc": what `top` ranks by and what the null and the p-values are of.
        settings: Everything needed to repeat it.
        layers: The layer number of each index of the grid's first axis.
        converged: Which cells' probes reached their minimum; the others are in no choice.
        fingerprint: Of the model the activations come from.

    Example:
        >>> grid.shape, grid.directions.shape  # layers x heads, and a direction of d_head numbers in each
        ((2, 4), torch.Size([2, 4, 8]))
        >>> len(grid.top(2)), grid.null.shape  # the best (layer, head), and every head under shuffled labels
        (2, torch.Size([100, 2, 4]))
        >>> grid.save("probes")
        >>> en.ProbeGrid.load("probes").shape
        (2, 4)
    """

    coef_: Float[Tensor, "*grid feature"]
    intercept_: Float[Tensor, "*grid"]
    classes_: npt.NDArray[Any]
    split: Split
    labels: Int[Tensor, " example"]
    groups: Int[Tensor, " example"] | None
    selection_scores: Shaped[Tensor, "selected ..."]
    report_scores: Shaped[Tensor, "reported ..."]
    null: Float[Tensor, " permutation *grid"]
    C: Float[Tensor, "*grid"]
    gap: Float[Tensor, "*grid"]
    metric: str
    settings: Mapping[str, Any]
    layers: Sequence[int] | None = None
    converged: Bool[Tensor, "*grid"] = None  # type: ignore[assignment]
    fingerprint: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.converged is None:  # as in grids saved before cells that do not converge were kept
            object.__setattr__(self, "converged", torch.ones_like(self.gap, dtype=torch.bool))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid: `(n_layers, n_heads)`, say."""
        return tuple(self.gap.shape)

    @property
    def constant(self) -> Bool[Tensor, "*grid"]:
        """Cells whose activations never vary, such as a head that is always 0: chance is all that can be read there."""
        cells = torch.zeros(self.shape, dtype=torch.bool)
        for cell in self.settings.get("constant_cells", []):
            cells[tuple(cell)] = True
        return cells

    @property
    def broken(self) -> dict[tuple[int, ...], str]:
        """Cells that have no probe, since their activations were not finite, and why (`fit_probes(broken="mark")`)."""
        return {tuple(cell): reason for cell, reason in self.settings.get("broken_cells", [])}

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes_)

    @property
    def report_labels(self) -> Int[Tensor, " reported"]:
        """Class numbers of the report part."""
        return self.labels[self.split.report]

    @cached_property
    def accuracy(self) -> Float[Tensor, "*grid"]:
        """Share of the report part that is classified correctly."""
        return correct(self.report_scores, self.report_labels, self.n_classes).mean(0)

    @cached_property
    def auroc(self) -> Float[Tensor, "*grid"]:
        """Area under the ROC curve on the report part; for more than two classes, each against the rest, averaged."""
        return area(self.report_scores, self.report_labels, self.n_classes).float()

    @cached_property
    def selection_accuracy(self) -> Float[Tensor, "*grid"]:
        """Accuracy on the select part: for choosing cells. Of the cells it chooses, it is too good."""
        return correct(self.selection_scores, self.labels[self.split.select], self.n_classes).mean(0)

    @cached_property
    def selection_auroc(self) -> Float[Tensor, "*grid"]:
        """AUROC on the select part: for choosing cells. Of the cells it chooses, it is too good."""
        return area(self.selection_scores, self.labels[self.split.select], self.n_classes).float()

    @cached_property
    def interval(self) -> Estimate:
        """Accuracy with Wilson's interval over examples, or over groups: three tensors shaped like the grid."""
        hits = correct(self.report_scores, self.report_labels, self.n_classes)
        estimate = rate_interval(hits, groups=self._report_groups, level=self.settings["level"])
        return Estimate(*(torch.as_tensor(part, dtype=torch.float64) for part in estimate))

    @cached_property
    def auroc_interval(self) -> Estimate:
        """AUROC with its score interval over examples or groups (see `entangle.metrics.auroc_interval`)."""
        return area_interval(
            self.report_scores,
            self.report_labels,
            self.n_classes,
            level=self.settings["level"],
            groups=self._report_groups,
        )

    @cached_property
    def log_loss(self) -> Float[Tensor, "*grid"]:
        """Mean negative log-probability of the true class in nats, reading scores as log-odds (logistic and LDA)."""
        return calibration.log_loss(self.report_scores, self.report_labels, self.n_classes)

    @cached_property
    def ece(self) -> Float[Tensor, "*grid"]:
        """Expected calibration error in 15 bins, less its bias, reading scores as log-odds (logistic and LDA)."""
        return calibration.expected_calibration_error(self.report_scores, self.report_labels, self.n_classes)

    @cached_property
    def ece_p(self) -> Float[Tensor, "*grid"]:
        """Chance of a calibration error as large, were every probability right (see `calibration.calibration_p`)."""
        return calibration.calibration_p(
            self.report_scores,
            self.report_labels,
            self.n_classes,
            n_resamples=self.settings["n_resamples"],
            seed=self.settings["seed"],
        )

    @cached_property
    def temperature(self) -> Float[Tensor, "*grid"]:
        """What to divide scores by, fitted on the select part; above 1 where the probes are too sure of themselves."""
        return calibration.temperature(self.selection_scores, self.labels[self.split.select], self.n_classes)

    def reliability(self, *, n_bins: int = 15) -> calibration.Reliability:
        """Reliability curves on the report part: confidence, accuracy and size, each `[bin, *grid]`."""
        return calibration.reliability(self.report_scores, self.report_labels, self.n_classes, n_bins=n_bins)

    def recall_at(self, false_positive_rate: float = 0.01) -> calibration.Recall:
        """Recall on the report part, at thresholds that the select part sets; two classes only.

        Raises:
            EntangleError: More than two classes, or too few examples for such a threshold.
        """
        if self.n_classes != 2:
            raise EntangleError(f"recall at a false positive rate is for two classes, not {self.n_classes}")
        select = self.labels[self.split.select]
        return calibration.recall_at(
            self.selection_scores, select, self.report_scores, self.report_labels, false_positive_rate
        )

    @cached_property
    def p_values(self) -> Float[Tensor, "*grid"]:
        """Chance that the best cell of a grid of permuted labels does at least as well (Westfall-Young): corrected for
        all cells.

        Raises:
            EntangleError: There were no permutations.
        """
        if not len(self.null):
            raise EntangleError("p-values need a null; fit with n_permutations=100 or so")
        return max_statistic_p(getattr(self, self.metric), self.null)

    @property
    def directions(self) -> Float[Tensor, "*grid feature"]:
        """Unit vectors along which the second class scores higher; for more than two classes, one per class."""
        return torch.nn.functional.normalize(self.coef_, dim=-1)

    def top(self, k: int) -> list[tuple[int, ...]]:
        """The `k` cells that did best on the select part, best first, as indices of the grid.

        Of equals, those come first whose scores set the classes furthest apart there (`entangle.probes.separation`).

        Cells that did not converge are not among them, nor dead ones, whose activations never change.

        Raises:
            EntangleError: There are fewer than `k` such cells.
        """
        ranking: Tensor = getattr(self, f"selection_{self.metric}")
        usable = self.converged & ranking.isfinite() & ~self.constant
        if not 1 <= k <= int(usable.sum()):
            raise EntangleError(
                f"top(k) needs k from 1 to the {int(usable.sum())} cells of the grid that converged and are not dead; "
                f"got {k}"
            )
        apart = separation(self.selection_scores, self.labels[self.split.select], self.n_classes)
        best = np.lexsort((-apart.flatten(), -ranking.masked_fill(~usable, -torch.inf).flatten()))[:k]
        return [tuple(int(i) for i in np.unravel_index(cell, self.shape)) for cell in best]

    def to_frame(self) -> pd.DataFrame:
        """One row per cell: where it is, how it did, and how sure that is."""
        index = np.indices(self.shape).reshape(len(self.shape), -1)
        columns: dict[str, Any] = dict(zip(self._axes, index, strict=True))
        if self.layers is not None:
            columns["layer"] = np.asarray(self.layers)[index[0]]
        values: dict[str, Any] = {
            **self.interval.columns("accuracy"),
            **self.auroc_interval.columns("auroc"),
        }
        if len(self.null):
            values |= {"null_mean": self.null.mean(0), "p_value": self.p_values}
        values |= {f"selection_{self.metric}": getattr(self, f"selection_{self.metric}"), "C": self.C}
        values |= {"converged": self.converged, "constant": self.constant}
        return pd.DataFrame(columns | {name: np.asarray(value).reshape(-1) for name, value in values.items()})

    def plot(self, *, top: int = 0, ax: Any = None) -> Any:
        """Heat map of the held-out metric by layer and head, or its curve over layers' one column; returns matplotlib
        Axes. Cells that did not converge are blank.

        Args:
            top: Outline this many cells, those the select part ranks highest.
            ax: Axes to draw on, else new ones.
        """
        from entangle import plots

        if len(self.shape) > 2:
            raise EntangleError(f"a heat map needs a grid of one or two axes, not {len(self.shape)}; fit a part of it")
        values = getattr(self, self.metric).masked_fill(~self.converged, torch.nan)
        mark = [(cell[0], cell[1] if len(cell) > 1 else 0) for cell in self.top(top)] if top else []
        title = "" if not len(self.null) else f"95 % of the best of a shuffled grid: below {self.null_ceiling():.3f}"
        axes = (*self._axes, "")[:2]
        return plots.heatmap(
            values if len(self.shape) else values.reshape(1, 1),
            rows=self.layers,
            row_name=axes[0],
            column_name=axes[1],
            label=f"held-out {self.metric}",
            title=title,
            mark=mark,
            ax=ax,
        )

    def estimator(self, cell: int | Sequence[int] | None = None) -> FittedProbe:
        """One probe as a scikit-learn estimator, fitted: it can be cloned, stand in a `Pipeline` and `set_output`.

        Args:
            cell: Its index in the grid; by default the one that did best on the select part.
        """
        return self._cell(cell).estimator()

    def export(
        self,
        directory: str | os.PathLike[str],
        cell: int | Sequence[int] | None = None,
        *,
        format: str = "safetensors",
        site: str | None = None,
    ) -> Path:
        """Write one probe for elsewhere, beside a `probe.json` that says how to apply it.

        Args:
            directory: Made if need be.
            cell: As for `estimator`.
            format: `"safetensors"`, `probe.safetensors` with `weight [score, feature]` and `bias [score]`; or `"onnx"`,
                `probe.onnx` from `activation [example, feature]` to `score [example, score]`.
            site: Where the activations were taken, for whoever reads it.

        Returns:
            The directory.

        Raises:
            EntangleError: No such cell or format, or a file of another kind is in the way.
        """
        return self._cell(cell).export(Path(directory), format, site)

    def snippet(
        self,
        cell: int | Sequence[int] | None = None,
        *,
        tool: str = "transformer_lens",
        site: str = "z",
        folder: str | os.PathLike[str] = ".",
        model: Any = None,
    ) -> str:
        """The lines of Python that apply one exported probe in another tool; print them.

        Args:
            cell: As for `estimator`.
            tool: `"transformer_lens"` or `"nnsight"`.
            site: Where the activations were taken.
            folder: Where `export` wrote it.
            model: The model, whose own modules nnsight goes by.
        """
        return self._cell(cell).snippet(tool, site, str(folder), model)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write it as safetensors and JSON."""
        tensors = {name: getattr(self, name) for name in (*TENSOR_FIELDS, "converged")}
        tensors |= {f"split.{name}": getattr(self.split, name) for name in PARTS}
        if self.groups is not None:
            tensors["groups"] = self.groups
        meta = {"classes": self.classes_.tolist(), "classes_dtype": self.classes_.dtype.str, "settings": self.settings}
        write(directory, "ProbeGrid", 1, tensors, meta | {name: getattr(self, name) for name in JSON_FIELDS})

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, model: Any = None, fingerprint: Mark = None) -> Self:
        """Read what `save` wrote.

        Args:
            directory: Where it was written.
            model: The model it is to be used with, if that is to be checked.
            fingerprint: That model's fingerprint in its place.

        Raises:
            EntangleError: Nothing usable is there, or it belongs to another model.
        """
        tensors, meta = read(directory, "ProbeGrid", 1)
        with taken_apart(directory, "ProbeGrid"):
            check_made_with(meta["fingerprint"], model, fingerprint, what="these probes")
            stored: dict[str, Any] = {name: tensors[name] for name in TENSOR_FIELDS} | {
                name: meta[name] for name in JSON_FIELDS
            }
            return cls(
                **stored,
                classes_=np.array(meta["classes"], dtype=meta["classes_dtype"]),
                split=Split(*(tensors[f"split.{name}"] for name in PARTS)),
                groups=tensors.get("groups"),
                converged=tensors.get("converged"),  # type: ignore[arg-type]
                settings=meta["settings"],
            )

    def null_ceiling(self, level: float = 0.95) -> float:
        """What the best cell of a grid of permuted labels stays below, with this probability."""
        if not len(self.null):
            raise EntangleError("a null ceiling needs a null; fit with n_permutations=100 or so")
        return float(self.null.flatten(1).amax(1).quantile(level))

    def _cell(self, cell: int | Sequence[int] | None) -> Cell:
        given = self.top(1)[0] if cell is None else (cell,) if isinstance(cell, int) else tuple(cell)
        inside = len(given) == len(self.shape) and all(-n <= i < n for i, n in zip(given, self.shape, strict=True))
        if not inside:
            raise EntangleError(f"the grid {self.shape} has no cell {given}")
        index = tuple(i % n for i, n in zip(given, self.shape, strict=True))
        accuracy = [float(torch.as_tensor(part)[index]) for part in self.interval]
        about = {
            "probe": str(self.settings["probe"]),
            "accuracy": accuracy[0],
            "accuracy_interval": accuracy[1:3],
            "fingerprint": None if self.fingerprint is None else dict(self.fingerprint),
        }
        return cell_of(self.coef_, self.intercept_, self.classes_, index, self.layers, about)

    @property
    def _axes(self) -> tuple[str, ...]:
        return (
            ("layer", "head")[: len(self.shape)]
            if len(self.shape) <= 2
            else tuple(f"axis_{i}" for i in range(len(self.shape)))
        )

    @property
    def _report_groups(self) -> Tensor | None:
        return None if self.groups is None else self.groups[self.split.report]
