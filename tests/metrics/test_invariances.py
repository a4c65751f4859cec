"""What leaves each metric of a feature matrix as it is, what does not, and where gradients flow."""

from __future__ import annotations

import pytest
import torch

from entangle.metrics import (
    babel,
    capacity,
    causal_gram,
    ches,
    coherence,
    cosines,
    effective_features,
    effective_rank,
    entanglement,
    feature_dimensionality,
    features_per_dimension,
    interaction_cosines,
    interference,
    leverage,
    participation_ratio,
    polysemanticity,
    readout_cosines,
    stable_rank,
    subspace_overlap,
    whitened_cosines,
)

N, D = 9, 5


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ORDER = torch.randperm(N, generator=torch.Generator().manual_seed(3))
ROTATION = torch.linalg.qr(normal(D, D, seed=1)).Q
MIXING = normal(D, D, seed=4) + 2 * torch.eye(D)
SIGNED = torch.tensor([1.0, -2, 3, -0.1, 5, 1, -1, 20, 0.5], dtype=torch.float64)[:, None]

MAPS = {
    "rotation": lambda w: w @ ROTATION,
    "scale": lambda w: 7 * w,
    "scale of each": lambda w: w * SIGNED,
    "scale of dimensions": lambda w: w * SIGNED[:D, 0],
    "linear map": lambda w: w @ MIXING,
    "duplication": lambda w: torch.cat([w, w]),
}
UNIT = {"rotation", "scale", "scale of each"}
RANK = {"rotation", "scale", "duplication"}
METRICS = {
    entanglement: UNIT,
    coherence: UNIT,
    lambda w: babel(w, 4): UNIT,
    interference: UNIT,
    lambda w: interference(w, neighbours=2): UNIT,
    capacity: {"rotation", "scale"},
    feature_dimensionality: {"rotation", "scale"},
    leverage: {"rotation", "scale", "scale of dimensions", "linear map"},
    features_per_dimension: {"rotation"},
    polysemanticity: {"scale", "scale of dimensions"},
    effective_rank: RANK,
    stable_rank: RANK,
    participation_ratio: RANK,
    lambda w: participation_ratio(w, center=False): RANK,
    effective_features: {"scale", "duplication"},
    lambda w: whitened_cosines(w, w.T @ w): {"rotation", "scale", "scale of dimensions", "linear map"},
    lambda w: subspace_overlap(w[:2], w[2:4]): {"rotation", "scale", "scale of each", "duplication"},
}


def same(a, b):
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_only_the_maps_that_are_named_leave_it_unchanged(metric):
    w = normal(N, D)
    before = metric(w)
    assert {name for name, change in MAPS.items() if same(metric(change(w)), before)} == METRICS[metric]


@pytest.mark.parametrize("metric", [m for m in METRICS if "subspace_overlap" not in m.__code__.co_names])
def test_order_of_features_does_not_matter(metric):
    w = normal(N, D)
    before, after = metric(w), metric(w[ORDER])
    moved = before
    if before.ndim and before.shape[0] == N:
        moved = before[ORDER]
        moved = moved[:, ORDER] if before.ndim == 2 else moved
    assert same(after, moved)


def test_what_a_duplicate_does():
    w = normal(N, D)
    twice = torch.cat([w, w])
    assert torch.allclose(entanglement(twice), torch.ones(2 * N, dtype=torch.float64))
    assert same(interference(twice), (2 * interference(w) + 1).repeat(2))
    assert same(capacity(twice), capacity(w).repeat(2) / 2)
    assert same(leverage(twice), leverage(w).repeat(2) / 2)
    assert same(polysemanticity(twice), 2 * polysemanticity(w))
    assert same(features_per_dimension(twice), 2 * features_per_dimension(w))


def unembedding():
    return normal(40, D, seed=8)


DIFFERENTIABLE = {
    "entanglement": entanglement,
    "coherence": coherence,
    "babel": babel,
    "interference": interference,
    "nearest interference": lambda w: interference(w, neighbours=3),
    "capacity": capacity,
    "features_per_dimension": features_per_dimension,
    "polysemanticity": polysemanticity,
    "effective_rank": effective_rank,
    "stable_rank": stable_rank,
    "participation_ratio": participation_ratio,
    "effective_features": effective_features,
    "cosines": cosines,
    "whitened_cosines": lambda w: whitened_cosines(w, torch.diag(torch.arange(1.0, D + 1))),
    "readout_cosines": lambda w: readout_cosines(w, torch.diag(torch.arange(1.0, D + 1))),
    "causal_gram": lambda w: causal_gram(w, unembedding()),
    "causal_gram of the residual": lambda w: causal_gram(w, unembedding(), space="residual"),
    "interaction_cosines": lambda w: interaction_cosines(w, normal(4, D, seed=2)),
    "ches": lambda w: ches(w[None, :4], w[None, 4:]),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_finite_and_those_of_small_steps(name):
    w = normal(N, D).requires_grad_()
    weights = normal(*DIFFERENTIABLE[name](w).shape, seed=5)
    value = (DIFFERENTIABLE[name](w) * weights).sum()
    (gradient,) = torch.autograd.grad(value, w)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 1e-6
    step = 1e-6 * normal(N, D, seed=6)
    with torch.no_grad():
        ahead, back = ((DIFFERENTIABLE[name](w + sign * step) * weights).sum() for sign in (1, -1))
    assert float(ahead - back) / 2 == pytest.approx(float((gradient * step).sum()), rel=1e-4, abs=1e-12)
