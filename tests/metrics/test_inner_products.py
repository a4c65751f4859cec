"""Other metrics than the coordinates' own: what they ignore, and whom they agree with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.covariance import EmpiricalCovariance

from entangle.errors import EntangleError
from entangle.metrics import (
    causal_gram,
    ches,
    cosines,
    gram_cosines,
    principal_angles,
    readout_cosines,
    subspace_overlap,
    whitened_cosines,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(d, seed=0):
    a = normal(d, d, seed=seed)
    return a @ a.T + 0.1 * torch.eye(d, dtype=torch.float64)


def test_identity_is_the_plain_cosine():
    v = normal(5, 4)
    for metric in (whitened_cosines, readout_cosines):
        assert torch.allclose(metric(v, 3 * torch.eye(4)), cosines(v), atol=1e-12)
        assert not torch.allclose(metric(v, covariance(4)), cosines(v), atol=0.05)


def test_whitened_cosine_does_not_see_linear_maps_and_readouts_do_not_see_dual_ones():
    v, c, a = normal(5, 4), covariance(4), normal(4, 4, seed=7)
    assert torch.allclose(whitened_cosines(v @ a.T, a @ c @ a.T), whitened_cosines(v, c), atol=1e-8)
    assert torch.allclose(readout_cosines(v @ torch.linalg.inv(a), a @ c @ a.T), readout_cosines(v, c), atol=1e-8)
    assert not torch.allclose(cosines(v @ a.T), cosines(v), atol=0.05)


def test_whitened_lengths_are_mahalanobis_distances():
    x = normal(500, 4) @ normal(4, 4, seed=3)
    found = EmpiricalCovariance().fit(x.numpy())
    v = normal(6, 4, seed=5)
    inner = v @ torch.from_numpy(found.precision_) @ v.T
    assert inner.diagonal().numpy() == pytest.approx(found.mahalanobis(v.numpy() + found.location_))
    assert torch.allclose(whitened_cosines(v, torch.from_numpy(found.covariance_)), gram_cosines(inner), atol=1e-8)


def test_causal_gram_makes_its_own_principal_directions_orthogonal_and_equal():
    unembedding = normal(300, 5) @ normal(5, 5, seed=2)
    centred = unembedding - unembedding.mean(0)
    c = centred.T @ centred / 300
    v = normal(4, 5, seed=3)
    assert torch.allclose(causal_gram(v, unembedding), v @ torch.linalg.inv(c) @ v.T, atol=1e-9)
    assert torch.allclose(causal_gram(v, unembedding, space="residual"), v @ c @ v.T, atol=1e-9)
    # Park et al., theorem 3.2: the map to the dual space keeps the inner product.
    dual = v @ torch.linalg.inv(c)
    assert torch.allclose(causal_gram(dual, unembedding, space="residual"), causal_gram(v, unembedding), atol=1e-9)


def test_causal_gram_of_independent_planted_concepts_is_diagonal():
    """Words are sums of independent concepts along non-orthogonal directions: those are what the metric separates."""
    concepts = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0.5, 0.5, 0.7]], dtype=torch.float64)
    attributes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    gram = causal_gram(concepts, attributes @ concepts)
    assert torch.allclose(gram, torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert float(cosines(concepts)[0, 1]) == pytest.approx(0.8)


def test_principal_angles_agree_with_scipy():
    for seed in range(5):
        a, b = normal(2, 7, seed=seed), normal(3, 7, seed=seed + 50)
        expected = subspace_angles(a.numpy().T, b.numpy().T)[::-1]
        assert principal_angles(a, b).tolist() == pytest.approx(expected.tolist(), abs=1e-9)
    tilted = torch.tensor([[1.0, 1e-9, 0]], dtype=torch.float64)
    assert float(principal_angles(tilted, torch.eye(3, dtype=torch.float64)[:1])[0]) == pytest.approx(1e-9, rel=1e-3)


def test_overlap_of_known_subspaces():
    eye = torch.eye(6, dtype=torch.float64)
    assert float(subspace_overlap(eye[:2], eye[2:5])) == pytest.approx(0)
    assert float(subspace_overlap(eye[:2], normal(2, 2) @ eye[:2])) == pytest.approx(1)
    assert float(subspace_overlap(eye[:1], eye[:4])) == pytest.approx(1)
    assert float(subspace_overlap(eye[:2], eye[1:3])) == pytest.approx(0.5)
    assert float(subspace_overlap(torch.cat([eye[:1], eye[:1]]), eye[:1])) == pytest.approx(1)
    a, b = normal(1, 6), normal(1, 6, seed=1)
    assert float(subspace_overlap(a, b)) == pytest.approx(float(torch.cosine_similarity(a, b)) ** 2)
    random = [float(subspace_overlap(normal(2, 12, seed=i), normal(3, 12, seed=99 + i))) for i in range(200)]
    assert np.mean(random) == pytest.approx(3 / 12, abs=0.02)


def test_ches_agrees_with_the_definition():
    plus, minus = normal(3, 4, 5), normal(3, 6, 5, seed=1)
    summed = ches(plus, minus, length_normalised=False)
    for i in range(3):
        h, g = plus[i].sum(0), minus[i].sum(0)
        assert float(summed[i]) == pytest.approx(float(h @ g - h @ h))
        h, g = plus[i].mean(0), minus[i].mean(0)
        assert float(ches(plus, minus)[i]) == pytest.approx(float(h @ g - h @ h))
    assert ches(plus, plus).tolist() == pytest.approx([0] * 3, abs=1e-12)


def test_ches_ignores_padding_and_ranks_similar_answers_higher():
    plus, minus = normal(2, 4, 5), normal(2, 6, 5, seed=1)
    padded = torch.cat([minus, normal(2, 3, 5, seed=2)], 1)
    mask = torch.arange(9).expand(2, 9) < 6
    assert torch.allclose(ches(plus, padded, None, mask), ches(plus, minus))
    assert not torch.allclose(ches(plus, padded), ches(plus, minus))
    assert (ches(plus, plus + 0.1 * normal(2, 4, 5, seed=3)) > ches(plus, -plus)).all()
    shuffled = plus[:, torch.tensor([2, 0, 3, 1])]
    assert torch.allclose(ches(shuffled, minus), ches(plus, minus))
    assert torch.allclose(ches(3 * plus, 3 * minus), 9 * ches(plus, minus))


@pytest.mark.parametrize("seed", range(20))
def test_an_unembedding_that_does_not_span_is_refused_whatever_the_rounding(seed):
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
    flat = rows @ torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).diag()
    turned = flat.double() @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    with pytest.raises(EntangleError, match="does not span"):
        causal_gram(turned[:2], turned)
    assert causal_gram(rows[:2], rows).isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: whitened_cosines(normal(2, 3), covariance(4)), "3 dimensions"),
        (lambda: whitened_cosines(normal(2, 3), torch.zeros(3, 3)), "positive definite"),
        (lambda: causal_gram(normal(2, 3), normal(9, 4)), "3 dimensions"),
        (lambda: causal_gram(normal(2, 3), normal(3, 3)), "does not span"),
        (lambda: causal_gram(normal(2, 3), normal(9, 3), space="other"), "space"),
        (lambda: principal_angles(normal(2, 3), normal(2, 4)), "3 and 4"),
        (lambda: subspace_overlap(torch.zeros(1, 3), normal(2, 3)), "not zero"),
        (lambda: ches(normal(2, 3), normal(2, 3)), "batch, pos, d"),
        (lambda: ches(normal(2, 3, 4), normal(3, 3, 4)), "match in batch"),
        (lambda: ches(normal(1, 3, 4), normal(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool)), "no token"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(EntangleError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
