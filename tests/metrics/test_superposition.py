"""Known geometries have their known dimensionality; bounds and invariances hold; ranks agree with numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from entangle.errors import EntangleError
from entangle.metrics import (
    accessible_sparsity,
    capacity,
    coherence,
    dims_for_linear_access,
    effective_features,
    effective_rank,
    feature_dimensionality,
    features_per_dimension,
    interference,
    intrinsic_dimension,
    leverage,
    participation_ratio,
    polysemanticity,
    stable_rank,
    unit_vectors,
)

F64 = torch.float64


def polygon(n):
    angle = 2 * math.pi * torch.arange(n, dtype=F64) / n
    return torch.stack([angle.cos(), angle.sin()], 1)


def blocks(*parts):
    return torch.block_diag(*parts)


TETRAHEDRON = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=F64)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (torch.eye(4, dtype=F64) * 3, [1.0] * 4),
        (torch.tensor([[1.0], [-1.0]], dtype=F64), [0.5] * 2),
        (polygon(3), [2 / 3] * 3),
        (polygon(5), [2 / 5] * 5),
        (TETRAHEDRON, [3 / 4] * 4),
        (blocks(polygon(5), TETRAHEDRON, torch.ones(1, 1, dtype=F64)), [2 / 5] * 5 + [3 / 4] * 4 + [1.0]),
        (torch.tensor([[2.0, 0], [0, 0]], dtype=F64), [1.0, 0.0]),
    ],
)
def test_known_dimensionality(features, expected):
    assert feature_dimensionality(features).tolist() == pytest.approx(expected, abs=1e-9)
    assert capacity(features).tolist() == pytest.approx(expected, abs=1e-9)


def test_dimensionality_agrees_with_the_definition():
    w = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    unit = unit_vectors(w)
    assert torch.allclose(feature_dimensionality(w), w.square().sum(1) / (unit @ w.T).square().sum(1))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 2**31))
def test_capacity_is_conserved_and_covariant(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(n, d, generator=generator, dtype=F64) * torch.rand(n, 1, generator=generator, dtype=F64)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=F64)).Q
    order = torch.randperm(n, generator=generator)
    c = capacity(w)
    assert ((c >= 0) & (c <= 1)).all()
    assert float(c.sum()) <= min(n, d) + 1e-9
    assert torch.allclose(capacity(w @ rotation * 7), c, atol=1e-9)
    assert torch.allclose(capacity(w[order]), c[order], atol=1e-12)
    assert torch.allclose(capacity(torch.cat([w, w])), c.repeat(2) / 2, atol=1e-9)
    assert (leverage(w) >= c - 1e-9).all()
    assert float(leverage(w).sum()) == pytest.approx(min(n, d), abs=1e-6)


def test_leverage_is_the_share_of_variance_a_regression_recovers():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(6, 3))
    z = rng.normal(size=(200_000, 6))
    x = z @ w
    residual = z - x @ np.linalg.lstsq(x, z, rcond=None)[0]
    assert leverage(torch.from_numpy(w)).numpy() == pytest.approx(1 - residual.var(0), abs=0.01)


def test_capacity_of_tight_blocks_fills_the_space_and_of_others_does_not():
    assert float(capacity(blocks(polygon(7), TETRAHEDRON)).sum()) == pytest.approx(5)
    assert float(capacity(polygon(7)[:3]).sum()) < 1.99


def test_capacity_has_finite_gradients():
    w = torch.randn(6, 3, requires_grad=True)
    with torch.no_grad():
        w[0] = 0
    capacity(w).sum().backward()
    assert w.grad.isfinite().all()


@pytest.mark.parametrize("length", [1e-3, 1e-6, 1e-12])
def test_short_features_keep_what_they_have_beside_long_ones(length):
    """Orthogonal features have a dimension each, whatever their lengths, in any orientation and more than fit."""
    for seed in range(5):
        q = np.linalg.qr(np.random.default_rng(seed).normal(size=(16, 16)))[0]
        q[0] *= length
        features = torch.tensor(np.concatenate([q, q[1:]]))  # the others come twice, and share
        assert capacity(features)[0].item() == pytest.approx(1, abs=max(1e-6, 1e-15 / length))
        assert capacity(features)[1:].tolist() == pytest.approx([0.5] * 30)
        if length > 1e-4:  # as single precision stores it, the short one still is alone
            assert capacity(features.float())[0].item() == pytest.approx(1, abs=1e-3)
    assert capacity(torch.diag(torch.tensor([1.0, 1e-12, 1e-30]))).tolist() == [1, 1, 1]


def test_small_interference_and_spread_beside_large_offsets_are_not_rounding():
    exact = torch.eye(3, dtype=torch.float64)
    exact[0, 1] = 1e-5
    assert interference(exact.float())[0].item() == pytest.approx(1e-10, rel=1e-3)
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    shifted = participation_ratio(x + 2.0**12)
    rounded = ((x + 2.0**12).double() - 2.0**12).numpy()
    variances = np.linalg.eigvalsh(np.cov(rounded.T))
    assert shifted.item() == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=1e-6)
    assert polysemanticity(torch.full((4, 2), 1e-25)).tolist() == pytest.approx([4, 4])


def test_features_per_dimension():
    assert float(features_per_dimension(torch.eye(5))) == 1
    assert float(features_per_dimension(polygon(5))) == pytest.approx(2.5)
    assert float(features_per_dimension(torch.diag(torch.tensor([1.0, 1, 0, 0])))) == 0.5


def test_polysemanticity_counts_features_of_a_neuron():
    w = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    assert polysemanticity(w).tolist() == pytest.approx([1, 3, 0])
    assert polysemanticity(w * 1e-20).tolist() == pytest.approx([1, 3, 0])
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    assert polysemanticity(torch.eye(3) @ rotation).min() > 1.1


@pytest.mark.parametrize("shape", [(30, 5), (5, 30), (8, 8)])
def test_ranks_agree_with_numpy_and_scipy(shape):
    x = np.random.default_rng(0).normal(size=shape)
    s = np.linalg.svd(x, compute_uv=False)
    assert float(effective_rank(torch.from_numpy(x))) == pytest.approx(np.exp(stats.entropy(s)))
    assert float(stable_rank(torch.from_numpy(x))) == pytest.approx((s**2).sum() / s[0] ** 2)
    variances = np.linalg.eigvalsh(np.cov(x.T))
    assert float(participation_ratio(torch.from_numpy(x))) == pytest.approx(variances.sum() ** 2 / (variances**2).sum())


def test_ranks_of_known_matrices():
    projection = torch.diag(torch.tensor([1.0, 1, 1, 0, 0]))
    for rank in (effective_rank, stable_rank):
        assert float(rank(projection)) == pytest.approx(3)
        assert float(rank(5 * projection @ torch.linalg.qr(torch.randn(5, 5)).Q)) == pytest.approx(3, abs=1e-5)
    assert float(participation_ratio(projection, center=False)) == pytest.approx(3)
    offset = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) + 100
    assert float(participation_ratio(offset)) > 3.8
    assert float(participation_ratio(offset, center=False)) < 1.1


def test_effective_features():
    z = torch.zeros(6, 4)
    z[:3, 0], z[3:, 1] = 2.0, -2.0
    assert float(effective_features(z)) == pytest.approx(2)
    assert float(effective_features(torch.rand(4000, 8))) == pytest.approx(8, abs=0.01)
    with pytest.raises(EntangleError, match="ever active"):
        effective_features(torch.zeros(3, 3))


def test_accessible_sparsity_is_the_worst_case():
    """No k-sparse input errs by more than the tolerance at the k that is returned, and some does at k + 1."""
    directions = unit_vectors(torch.randn(7, 20, generator=torch.Generator().manual_seed(1), dtype=F64))
    gram = (directions @ directions.T).fill_diagonal_(0).abs()
    for tolerance in (0.3, 0.6, 0.9):
        k = accessible_sparsity(directions, tolerance)
        assert float(gram.topk(k).values.sum(1).max()) <= tolerance < float(gram.topk(k + 1).values.sum(1).max())
    assert accessible_sparsity(torch.eye(5), 1e-9) == 4
    assert accessible_sparsity(torch.ones(2, 3), 0.5) == 0


def test_enough_dimensions_for_linear_access_are_enough():
    d = dims_for_linear_access(50, 3, 0.9)
    assert d == math.ceil(4 * 9 * math.log(50) / 0.81)
    draws = [torch.randn(50, d, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    assert any(float(coherence(v)) <= 0.3 for v in draws)
    assert accessible_sparsity(min(draws, key=lambda v: float(coherence(v))), 0.9) >= 3
    assert not any(float(coherence(v[:, : d // 3])) <= 0.3 for v in draws)


@pytest.mark.parametrize("method", ["TwoNN", "MLE", "lPCA"])
def test_intrinsic_dimension_of_a_plane(method):
    pytest.importorskip("skdim")
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(600, 3, generator=generator) @ torch.randn(3, 20, generator=generator)
    assert intrinsic_dimension(plane, method) == pytest.approx(3, abs=0.4)
    assert intrinsic_dimension(torch.randn(600, 8, generator=generator), method) > 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effective_rank(torch.zeros(3, 3)), "all zeros"),
        (lambda: participation_ratio(torch.ones(3, 3)), "constant"),
        (lambda: stable_rank(torch.ones(3)), r"\[row, column\]"),
        (lambda: effective_rank(torch.full((2, 2), torch.nan)), "NaN"),
        (lambda: capacity(torch.ones(3)), r"\[feature, d\]"),
        (lambda: accessible_sparsity(torch.eye(3), 0), "above 0"),
        (lambda: dims_for_linear_access(1, 1, 0.1), "2 features"),
        (lambda: intrinsic_dimension(torch.randn(9, 3)), "20 distinct"),
        (lambda: intrinsic_dimension(torch.randn(90, 3), "PCA"), "one of TwoNN"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    if "intrinsic" in str(call.__code__.co_names):
        pytest.importorskip("skdim")
    with pytest.raises(EntangleError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
