"""Concepts of more than one dimension: probe, project out what was found, probe again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entangle.concepts import refits
from entangle.concepts.refits import ESTIMATORS, Sample
from entangle.errors import EntangleError
from entangle.metrics import Estimate, bias_corrected_interval, bootstrap_counts

Bases = Float[Tensor, "resample n_dims d"]
_SHRINKAGE = 1e-3


def nullspace_subspace(
    x: Float[Tensor, "example d"], labels: Any, n_dims: int, *, estimator: str = "logistic"
) -> Float[Tensor, "n_dims d"]:
    """The dimensions a concept can be read from, one after another (INLP; Ravfogel et al. 2020).

    Iterated null-space projection: each probe is fitted where the earlier ones' directions have been projected out.
    `subspace_overlap` compares the results of two concepts.

    Args:
        x: Activations.
        labels: 0 or 1 for every example.
        n_dims: How many probes; fewer than d. How many are worth having is for held-out accuracy to say.
        estimator: Which probe. A mean difference leaves nothing for a second one.

    Returns:
        Orthonormal rows, in the order found.

    Raises:
        EntangleError: Labels of one class, an unknown probe, or no direction left to find.

    Example:
        >>> basis = en.concepts.nullspace_subspace(acts["resid_post"][:, 1], labels, 3)
        >>> torch.allclose(basis @ basis.T, torch.eye(3), atol=1e-5)  # three orthogonal directions that tell the labels
        True
    """
    if not 1 <= n_dims < x.shape[-1]:
        raise EntangleError(f"n_dims must be from 1 to {x.shape[-1] - 1}, not {n_dims}")
    if estimator not in ESTIMATORS:
        raise EntangleError(f"estimator must be one of {sorted(ESTIMATORS)}, not {estimator!r}")
    basis = x.new_zeros(0, x.shape[1]).double()
    centred = (x - x.mean(0)).double()
    for number in range(n_dims):
        left = centred - centred @ basis.T @ basis
        sample = Sample.of("the concept", left.float(), labels)
        direction = refits.full(sample, ESTIMATORS[estimator]).double()
        direction = direction - basis.T @ (basis @ direction)
        scores = left @ direction
        gap = scores[sample.positive].mean() - scores[~sample.positive].mean()
        if not float(gap.abs()) > 1e-4 * float(scores.std()):  # what rounding leaves is no direction
            raise EntangleError(f"nothing linear is left after {number} dimensions; ask for at most that many")
        basis = torch.cat([basis, (direction / direction.norm())[None]])
    return basis.to(x)


def subspace_overlaps(
    samples: Sequence[Sample],
    seeds: Sequence[int],
    n_dims: int,
    *,
    n_resamples: int,
    n_permutations: int,
    level: float,
    seed: int,
) -> tuple[Estimate, Float[Tensor, "concept concept"]]:
    """Overlap of every two concepts' subspaces of iterated linear discriminants, and what it is by chance.

    Args:
        samples: The examples of each concept.
        seeds: Of each concept's resamples; concepts that share both examples and seed are resampled together.
        n_dims: Dimensions of each subspace.
        n_resamples: Bootstrap resamples.
        n_permutations: Shuffles of the labels.
        level: Coverage of the intervals.
        seed: Seed of the shuffles.

    Returns:
        Mean squared cosine of the principal angles, with its interval, and the share of subspaces refitted on shuffled
        labels that overlap less.
    """
    if not 1 <= n_dims < samples[0].x.shape[1]:
        raise EntangleError(f"a concept's subspace has from 1 to {samples[0].x.shape[1] - 1} dimensions, not {n_dims}")
    measured, drawn, shuffled = [], [], []
    for i, (sample, own) in enumerate(zip(samples, seeds, strict=True)):
        everyone = torch.ones(1, len(sample.x), dtype=torch.float64)
        measured.append(_discriminants(sample.x, sample.positive[None], everyone, n_dims)[0])
        counts = bootstrap_counts(len(sample.x), n_resamples, seed=own, groups=sample.groups).double()
        drawn.append(_discriminants(sample.x, sample.positive.expand(n_resamples, -1), counts, n_dims))
        labels = refits.shuffles(sample, n_permutations, seed + 1 + i)
        shuffled.append(_discriminants(sample.x, labels, everyone.expand(n_permutations, -1), n_dims))
    value = _overlap(torch.stack(measured)[None])[0]
    by_chance = _overlap(torch.stack(shuffled, dim=1))
    share: Tensor = (by_chance < value).double().sum(0) / (1 + n_permutations)
    draws = _overlap(torch.stack(drawn, dim=1))
    return bias_corrected_interval(value, draws, level=level), share


def _discriminants(
    x: Float[Tensor, "example d"],
    positive: Bool[Tensor, "resample example"],
    weights: Float[Tensor, "resample example"],
    n_dims: int,
) -> Bases:
    """Iterated null-space projection with a linear discriminant, for many weightings or labellings of the examples.

    A discriminant needs the covariance A and the difference of means c alone: the next one is what minimises
    w'Aw / 2 - c'w among the w orthogonal to those before it.
    """
    rows = (x - x.mean(0)).double().cpu()
    bases = []
    factor = torch.empty(0)
    for i, (label, weight) in enumerate(zip(positive.cpu(), weights, strict=True)):
        share = weight.double() / weight.sum()
        ones = share * label
        mean = share @ rows
        if i == 0 or not torch.equal(weight, weights[i - 1]):
            covariance = rows.T @ (share[:, None] * rows) - torch.outer(mean, mean)
            level = _SHRINKAGE * covariance.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
            factor = torch.linalg.cholesky(covariance + level * torch.eye(len(covariance), dtype=torch.float64))
        towards = torch.cholesky_solve((ones @ rows - ones.sum() * mean)[:, None], factor)
        basis, solved = rows.new_zeros(rows.shape[1], 0), rows.new_zeros(rows.shape[1], 0)
        for _ in range(n_dims):
            held = torch.linalg.solve(basis.T @ solved, basis.T @ towards)
            direction = towards - solved @ held
            direction = direction - basis @ (basis.T @ direction)  # orthogonal to rounding
            basis = torch.cat([basis, direction / direction.norm()], dim=1)
            solved = torch.cat([solved, torch.cholesky_solve(basis[:, -1:], factor)], dim=1)
        bases.append(basis.T)
    return torch.stack(bases)


def _overlap(bases: Float[Tensor, "resample concept n_dims d"]) -> Float[Tensor, "resample concept concept"]:
    """Mean squared cosine of the principal angles: |B_i B_j'|_F^2 over the number of dimensions."""
    n_resamples, n_concepts, n_dims, _ = bases.shape
    flat = bases.flatten(1, 2)
    products = (flat @ flat.mT).view(n_resamples, n_concepts, n_dims, n_concepts, n_dims)
    overlap: Tensor = products.square().sum((2, 4)) / n_dims
    return overlap
