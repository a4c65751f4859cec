"""What the entanglement report found: concept x concept at one site and layer, as tables, matrices and files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from entangle import plots
from entangle.concepts.noise import off_diagonal
from entangle.concepts.plain import plain_fields
from entangle.errors import EntangleError
from entangle.metrics import Estimate
from entangle.storage.record import read, taken_apart, write

Matrix = Float[Tensor, "concept concept"]
Vector = Float[Tensor, " concept"]

PAIRS = ("cosine", "corrected", "set_aside", "whitened", "readout", "causal", "conditional", "subspace_overlap")
SHARES = ("variance_share", "component_overlap")


@dataclass(frozen=True)
class EntanglementReport:
    """How entangled some concepts are at one site and layer. Tensors are float64, one value per concept or pair.

    What needs activations is None without them; what needs labels is None without those. An `Estimate` is a value with
    low and high, which are NaN without labels, as nothing can be refitted then.

    Attributes:
        names: The concepts.
        entanglement: E_i = max_j |cos(v_i, v_j)| with its bootstrap interval.
        partner: The concept that reaches E_i.
        percentile: Share of random directions with a smaller E, exactly.
        cosine: Signed cosine of each pair with its interval, as [concept, concept].
        cosine_percentile: Share of random pairs with a smaller absolute cosine, exactly.
        null_mean: Expected E of random directions.
        null_95: The value that E stays below in 95 % of random directions.
        corrected: Cosine of each pair corrected for the noise of the directions (attenuation), with its interval. Where
            noise is all there is, the interval is everything.
        covariance_percentile: As `percentile`, for random directions with the covariance of each concept's own data
            set.
        permutation_percentile: As `percentile`, for the partners' directions refitted on shuffled labels.
        percentiles: For each other number by name, such as "cosine" or "variance_share", the share of random directions
            (or pairs) of each concept's own covariance with a smaller one, absolutely; for "subspace_overlap", of
            subspaces refitted on shuffled labels.
        split_half: Mean cosine r of a concept's directions on two halves of its examples. Of all examples estimation
            leaves 2r / (1 + r) of a 1 (Spearman & Brown 1910).
        agreement: Absolute cosine of the given direction with the refit on all examples; far below 1, intervals
            describe another estimator than the directions came from.
        whitened: Cosine after whitening (Mahalanobis), each direction by its concept's own data set; on one data set,
            inverse covariance as the metric.
        readout: The same with the root of the covariance: on one data set, the correlation of the projections on two
            directions over the activations.
        causal: Cosine in the causal inner product at the unembedding (Park et al. 2023).
        conditional: Cosine of a pair's directions with the other concept held fixed, for concepts labelled on the same
            examples; NaN for other pairs.
        label_correlation: Correlation of a pair's labels, likewise.
        subspace_overlap: Mean squared cosine of the principal angles between the subspaces of two concepts, each found
            by iterated null-space projection.
        variance_share: Share of the variance along the direction, of the concept's own data set about its mean.
        component_overlap: Share of the direction inside the leading principal components.
        massive: Coordinates that vary so much more than the others that they may carry every cosine, in any of the data
            sets (`metrics.massive_coordinates`).
        set_aside: Cosine of each pair without those coordinates.
        entanglement_set_aside: E without those coordinates.
        n_examples: Examples each concept was resampled on.
        settings: What was asked: site, layer, estimator, seed and so on.

    Example:
        >>> report = en.entanglement_report(directions)
        >>> len(report.to_frame()), len(report.pairs())  # a row per concept, and one per pair
        (3, 3)
        >>> report.save("report")
        >>> en.EntanglementReport.load("report").names
        ('rudeness', 'tense', 'sentiment')
    """

    names: tuple[str, ...]
    entanglement: Estimate
    partner: tuple[str, ...]
    percentile: Vector
    cosine: Estimate
    cosine_percentile: Matrix
    null_mean: float
    null_95: float
    corrected: Estimate | None = None
    covariance_percentile: Vector | None = None
    permutation_percentile: Vector | None = None
    percentiles: Mapping[str, Tensor] = field(default_factory=dict)
    split_half: Vector | None = None
    agreement: Vector | None = None
    whitened: Estimate | None = None
    readout: Estimate | None = None
    causal: Estimate | None = None
    conditional: Estimate | None = None
    label_correlation: Matrix | None = None
    subspace_overlap: Estimate | None = None
    variance_share: Estimate | None = None
    component_overlap: Estimate | None = None
    massive: tuple[int, ...] | None = None
    set_aside: Estimate | None = None
    entanglement_set_aside: Estimate | None = None
    n_examples: tuple[int, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row per concept; frames of several layers can be concatenated.

        `whitened` is E after whitening, `set_aside` E without the massive coordinates, `massive` how many those are.
        """
        partner = [self.names.index(name) for name in self.partner]
        corrected = None
        if self.corrected is not None:
            corrected = Estimate(*(torch.as_tensor(part)[range(len(partner)), partner] for part in self.corrected))
        columns: dict[str, Any] = {
            "concept": self.names,
            "site": self.settings.get("site"),
            "layer": self.settings.get("layer"),
            **_columns("entanglement", self.entanglement, first=True),
            "partner": self.partner,
            **_columns("corrected", corrected),
            "null_mean": self.null_mean,
            "null_95": self.null_95,
            "percentile": self.percentile,
            "covariance_percentile": self.covariance_percentile,
            "permutation_percentile": self.permutation_percentile,
            "split_half": self.split_half,
            "agreement": self.agreement,
            **_columns("set_aside", self.entanglement_set_aside),
            "massive": None if self.massive is None else len(self.massive),
            "whitened": None if self.whitened is None else off_diagonal(torch.as_tensor(self.whitened.value)).amax(1),
            **{k: v for name in SHARES for k, v in self._judged(name).items()},
            "n_examples": self.n_examples,
        }
        return pd.DataFrame({k: v.numpy() if isinstance(v, Tensor) else v for k, v in columns.items()})

    def pairs(self) -> pd.DataFrame:
        """One row per pair of concepts: every cosine with its interval and its percentile."""
        first, second = np.triu_indices(len(self.names), 1)
        matrices: dict[str, Any] = {k: v for name in PAIRS for k, v in self._judged(name).items()}
        matrices["percentile"] = self.cosine_percentile
        matrices["label_correlation"] = self.label_correlation
        frame = pd.DataFrame({"first": np.array(self.names)[first], "second": np.array(self.names)[second]})
        return frame.assign(
            **{k: m[first, second].numpy() if isinstance(m, Tensor) else None for k, m in matrices.items()}
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists and numbers, ready for JSON; NaN becomes None."""
        return plain_fields(vars(self))

    def plot(self, what: str = "cosine", **style: Any) -> Any:
        """A concept x concept matrix: the cosine, or another field of that shape, by name."""
        field = getattr(self, what) if what in (*PAIRS, "label_correlation") else None
        shown = field.value if isinstance(field, Estimate) else field
        if not isinstance(shown, Tensor):
            raise EntangleError(
                f"plot shows cosine, and {', '.join((*PAIRS[1:], 'label_correlation'))} where the report was "
                f"given what they need; not {what!r}"
            )
        where = " ".join(str(self.settings[k]) for k in ("site", "layer") if self.settings.get(k) is not None)
        style = {"title": f"{what} {where}".strip(), "label": what} | style
        return plots.matrix(shown.numpy(), self.names, **style)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write it as safetensors and JSON."""
        tensors: dict[str, Tensor] = {f"percentiles.{name}": value for name, value in self.percentiles.items()}
        meta: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Estimate):
                tensors |= {f"{name}.{end}": torch.as_tensor(v) for end, v in value._asdict().items()}
            elif isinstance(value, Tensor):
                tensors[name] = value
            elif name != "percentiles":
                meta[name] = value
        write(directory, "EntanglementReport", 1, tensors, meta)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            EntangleError: Nothing usable is there.
        """
        tensors, meta = read(directory, "EntanglementReport", 1)
        with taken_apart(directory, "EntanglementReport"):
            fields: dict[str, Any] = {k: meta[k] for k in ("null_mean", "null_95", "settings")}
            listed = {k: meta.get(k) for k in ("names", "partner", "n_examples", "massive")}
            fields |= {k: tuple(value) if value is not None else None for k, value in listed.items()}
            fields |= {name: tensor for name, tensor in tensors.items() if "." not in name}
            parts: dict[str, dict[str, Tensor]] = {"percentiles": {}}
            for name in tensors.keys() - fields.keys():
                group, part = name.split(".")
                parts.setdefault(group, {})[part] = tensors[name]
            fields["percentiles"] = parts.pop("percentiles")
            fields |= {name: Estimate(**ends) for name, ends in parts.items()}
            return cls(**fields)

    def _judged(self, name: str) -> dict[str, Any]:
        """The columns of a number and its percentile."""
        columns = _columns(name, getattr(self, name), first=name == "cosine")
        if name in self.percentiles:
            columns[f"{name}_percentile"] = self.percentiles[name]
        return columns


def _columns(name: str, estimate: Estimate | None, *, first: bool = False) -> dict[str, Any]:
    """The three columns of an estimate, of None where there is none.

    Args:
        name: The name of the value's column.
        estimate: The estimate.
        first: Whether the ends are called "low" and "high" alone, as those of a table's first estimate are.
    """
    columns = (estimate or Estimate(math.nan, math.nan, math.nan)).columns(name)
    if first:
        columns = {key.removeprefix(f"{name}_"): value for key, value in columns.items()}
    return columns if estimate is not None else dict.fromkeys(columns)
