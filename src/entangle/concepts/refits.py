"""A concept's direction, found again on resampled examples: what bootstrap, permutation and split-half all need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entangle.data import read_labels
from entangle.errors import EntangleError
from entangle.metrics import bootstrap_counts
from entangle.probes import encode_groups
from entangle.probes.estimators import PROBES, make_probe
from entangle.probes.judging.null import permuted_within
from entangle.probes.solving.losses import LogisticLoss
from entangle.probes.solving.solvers import Design, minimise, warn_unconverged

LEAST = 4  # examples of each class
_BATCH = 128  # refits solved together by an iterative estimator

Rows: TypeAlias = Float[Tensor, "example d"]
Refit: TypeAlias = Callable[
    [Rows, Bool[Tensor, "resample example"], Float[Tensor, "resample example"]], Float[Tensor, "resample d"]
]
"""Examples, a labelling of them for each refit, and their weights in each refit -> a direction for each refit."""


@dataclass(frozen=True)
class Sample:
    """The examples a concept's direction is found on.

    Attributes:
        x: Activations.
        positive: Which examples show the concept.
        groups: A number for each example; examples of one group are drawn together.
        label_names: What is not the concept, and what is, in the words of the labels.
    """

    x: Rows
    positive: Bool[Tensor, " example"]
    groups: np.ndarray[Any, Any] | None = None
    label_names: tuple[str, ...] = ("0", "1")

    @classmethod
    def of(cls, name: str, x: Rows, labels: Any, groups: Any = None) -> Sample:
        """Check labels and groups; errors name the concept."""
        read = read_labels(labels, len(x), two=True, what=f"labels of {name!r}")
        y = torch.from_numpy(read.codes)
        fewest = min(int((y == 0).sum()), int((y == 1).sum()))
        if fewest < LEAST:
            raise EntangleError(
                f"{name!r} has {fewest} examples of one class: half of them must still hold two, so it takes at least "
                f"{LEAST} of each"
            )
        if groups is not None and len(groups) != len(y):
            raise EntangleError(f"{name!r} has {len(groups)} groups for {len(y)} examples; give one per example")
        grouped = encode_groups(groups, len(y))
        return cls(x, (y == 1).to(x.device), None if grouped is None else grouped.numpy(), read.names)


def inputs(
    directions: Any, activations: Any, labels: Mapping[str, Any] | None, n_dims: int
) -> tuple[Tensor | None, dict[str, Sample]]:
    """The activations that all concepts share, where they do, and each concept's own examples."""
    if activations is None:
        if labels is not None:
            raise EntangleError("labels need the activations they label; give both")
        return None, {}
    if isinstance(activations, Mapping):
        if labels is not None:
            raise EntangleError("labels stand in the mapping, concept -> (activations, labels); do not give them twice")
        distinct = {id(item[0]): _rows(item[0], n_dims) for item in activations.values()}
        samples = {name: Sample.of(name, distinct[id(x)], *rest) for name, (x, *rest) in activations.items()}
        return None, samples
    rows = _rows(_at(directions, activations), n_dims)
    return rows.cpu(), {name: Sample.of(name, rows, y) for name, y in (labels or {}).items()}


def _rows(activations: Any, n_dims: int) -> Float[Tensor, "example d"]:
    rows = torch.as_tensor(activations).detach().float()
    if rows.ndim != 2 or rows.shape[1] != n_dims:
        raise EntangleError(f"activations must be [example, {n_dims}] like the directions, not {tuple(rows.shape)}")
    if not bool(rows.isfinite().all()):
        bad = int((~rows.isfinite()).any(1).sum())
        raise EntangleError(f"{bad} of {len(rows)} activations hold NaN or infinity; drop those examples")
    return rows


def _at(directions: Any, activations: Any) -> Any:
    """The rows of an `Activations` at the place of the directions; a tensor is taken as it is."""
    if not (hasattr(activations, "layers") and hasattr(activations, "sites")):
        return activations
    site, layer, head = (getattr(directions, name, None) for name in ("site", "layer", "head"))
    if site is None or layer is None:
        raise EntangleError("directions without a site and layer need activations [example, d], not an Activations")
    layers = list(activations.layers(site))
    if layer not in layers:
        raise EntangleError(f"the activations hold {site} at layers {layers}, not at layer {layer} of the directions")
    rows = activations[site][:, layers.index(layer)]
    return rows if head is None else rows[:, head]


def mean_difference(x: Rows, labels: Bool[Tensor, "resample example"], weights: Tensor) -> Tensor:
    """Mean of the positives minus mean of the negatives: one matrix product for all refits."""
    positive = weights * labels
    negative = weights - positive
    signed = positive / positive.sum(1, keepdim=True) - negative / negative.sum(1, keepdim=True)
    return signed @ (x - x.mean(0))


def logistic(x: Rows, labels: Bool[Tensor, "resample example"], weights: Tensor) -> Tensor:
    """The normal of a logistic probe (C = 1), refits solved side by side."""
    normals, unconverged = [], 0
    for start in range(0, len(weights), _BATCH):
        part = slice(start, start + _BATCH)
        design = Design.of(x[None], weights[part].T.contiguous())
        solution = minimise(LogisticLoss(), design, labels[part].T.long(), 2, tol=1e-8)
        unconverged += int((~solution.converged).sum())
        normals.append(solution.coef[0, :, 0])
    warn_unconverged(unconverged, len(weights), "refitted directions")
    return torch.cat(normals).to(x)


def by_probe(probe: str) -> Refit:
    """Any probe's normal: labellings that share their weights are solved together, resamples one after another."""

    def refit(x: Rows, labels: Bool[Tensor, "resample example"], weights: Tensor) -> Tensor:
        solver = make_probe(probe).solver
        classes = np.array([0, 1])
        if bool((weights == weights[0]).all()):
            solutions = [solver(x[None], classes, weights[0])(labels.T.long())]
        else:
            solutions = [
                solver(x[None], classes, weight)(label[:, None].long())
                for weight, label in zip(weights, labels, strict=True)
            ]
        unconverged = sum(int((~solution.converged).sum()) for solution in solutions)
        warn_unconverged(unconverged, len(weights), "refitted directions")
        return torch.cat([solution.coef[0, :, 0] for solution in solutions]).to(x)

    refit.__name__ = probe
    return refit


ESTIMATORS: dict[str, Refit] = {
    **{name: by_probe(name) for name in PROBES},
    "mean_difference": mean_difference,
    "mass_mean": mean_difference,
    "logistic": logistic,
}


def full(sample: Sample, refit: Refit) -> Float[Tensor, " d"]:
    """The direction on all examples."""
    return refit(sample.x, sample.positive[None], torch.ones_like(sample.x[:, 0])[None])[0]


def bootstrapped(name: str, sample: Sample, refit: Refit, n: int, seed: int) -> Float[Tensor, "resample d"]:
    """Directions on `n` bootstrap resamples of the examples, or of whole groups."""
    counts = bootstrap_counts(len(sample.x), n, seed=seed, groups=sample.groups).to(sample.x)
    positives = (counts * sample.positive).sum(1)
    empty = int(((positives == 0) | (positives == counts.sum(1))).sum())
    if empty:
        raise EntangleError(f"{empty} of {n} resamples of {name!r} drew one class only; give more examples or groups")
    return refit(sample.x, sample.positive.expand(n, -1), counts)


def shuffles(sample: Sample, n: int, seed: int) -> Bool[Tensor, "permutation example"]:
    """`n` shuffles of the labels that keep the groups: whole ones swap labels, mixed ones shuffle within themselves."""
    rng = np.random.default_rng(seed)
    positive = sample.positive.cpu().numpy()
    drawn = [
        rng.permutation(positive) if sample.groups is None else permuted_within(positive, sample.groups, rng)
        for _ in range(n)
    ]
    return torch.from_numpy(np.stack(drawn)).to(sample.x.device)


def permuted(sample: Sample, refit: Refit, n: int, seed: int) -> Float[Tensor, "permutation d"]:
    """Directions on `n` shuffles of the labels."""
    labels = shuffles(sample, n, seed)
    return refit(sample.x, labels, torch.ones_like(labels, dtype=sample.x.dtype))


def halves(sample: Sample, refit: Refit, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Directions on both halves of `n` random splits, by class, or by group where there are groups."""
    rng = np.random.default_rng(seed)
    strata = sample.positive.cpu().numpy() if sample.groups is None else np.zeros(len(sample.x), dtype=bool)
    unit = np.arange(len(strata)) if sample.groups is None else sample.groups
    first = np.zeros((n, len(strata)), dtype=bool)
    for split in range(n):
        for stratum in np.unique(strata):
            units = rng.permutation(np.unique(unit[strata == stratum]))
            first[split] |= np.isin(unit, units[: len(units) // 2])
    weights = torch.from_numpy(first).to(sample.x)
    labels = sample.positive.expand(n, -1)
    return refit(sample.x, labels, weights), refit(sample.x, labels, 1 - weights)
