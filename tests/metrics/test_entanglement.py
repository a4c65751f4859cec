"""Planted geometries are recovered, bounds hold, invariances hold."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle import metrics
from entangle.errors import EntangleError
from entangle.metrics import (
    babel,
    clusters,
    coherence,
    coherence_bound,
    cosines,
    entanglement,
    interference,
    orthoplex_bound,
    unit_vectors,
    welch_bound,
)

F64 = torch.float64


def simplex(d):
    """d + 1 directions with every pair at -1 / d."""
    return torch.eye(d + 1, dtype=F64) - 1 / (d + 1)


def polygon(n):
    angle = torch.arange(n, dtype=F64) * (math.pi / n)
    return torch.stack([angle.cos(), angle.sin()], 1)


def icosahedron():
    """Six diagonals: an equiangular tight frame of 6 lines in 3 dimensions."""
    phi = (1 + 5**0.5) / 2
    return torch.tensor([[0, 1, phi], [0, 1, -phi], [1, phi, 0], [1, -phi, 0], [phi, 0, 1], [-phi, 0, 1]], dtype=F64)


def even_code():
    """16 lines in 6 dimensions at 1 / 3, the largest equiangular set there: the even-weight binary code of length 6."""
    words = [w for w in itertools.product([1.0, -1.0], repeat=6) if math.prod(w) > 0 and w[0] > 0]
    return torch.tensor(words, dtype=F64)


def mutually_unbiased():
    """12 lines in 4 dimensions, three bases with every cross pair at 1/2: they meet the orthoplex bound."""
    rows = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    rows += [list(s) for s in itertools.product([1, -1], repeat=4) if s[0] == 1]
    return torch.tensor(rows, dtype=F64)


def pairs(n_pairs):
    """Antipodal pairs on their own axes."""
    return torch.cat([torch.eye(n_pairs, dtype=F64), -torch.eye(n_pairs, dtype=F64)])


GEOMETRIES = [
    (torch.eye(7, dtype=F64), 0.0),
    (simplex(5), 1 / 5),
    (polygon(5), math.cos(math.pi / 5)),
    (pairs(4), 1.0),
    (icosahedron(), 1 / 5**0.5),
    (even_code(), 1 / 3),
    (mutually_unbiased(), 1 / 2),
]


@pytest.mark.parametrize(("vectors", "expected"), GEOMETRIES)
def test_planted_entanglement(vectors, expected):
    assert entanglement(vectors).tolist() == pytest.approx([expected] * len(vectors), abs=1e-6)
    assert float(coherence(vectors)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("vectors", [icosahedron(), even_code(), polygon(3)])
def test_equiangular_tight_frames_meet_welch(vectors):
    n, d = vectors.shape
    assert float(coherence(vectors)) == pytest.approx(welch_bound(n, d), abs=1e-9)
    moved = vectors + 0.01 * torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert float(coherence(moved)) > welch_bound(n, d) + 1e-4


def test_simplex_meets_welch_in_its_own_dimension():
    assert float(coherence(simplex(5))) == pytest.approx(welch_bound(6, 5), abs=1e-9)


def test_orthoplex_takes_over_beyond_every_equiangular_frame():
    vectors = mutually_unbiased()
    assert float(coherence(vectors)) == pytest.approx(orthoplex_bound(12, 4), abs=1e-9)
    assert coherence_bound(12, 4) == 0.5
    assert welch_bound(12, 4) == pytest.approx(0.42640, abs=1e-5)
    assert orthoplex_bound(10, 4) == 0.0
    assert coherence_bound(10, 4) == welch_bound(10, 4)
    assert welch_bound(4, 4) == welch_bound(1, 9) == 0.0


def test_entanglement_agrees_with_the_definition():
    vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    expected = [
        max(abs(float(torch.cosine_similarity(a, b, dim=0))) for j, b in enumerate(vectors) if j != i)
        for i, a in enumerate(vectors)
    ]
    assert entanglement(vectors).tolist() == pytest.approx(expected, abs=1e-6)
    assert entanglement(SimpleNamespace(vectors=vectors)).tolist() == entanglement(vectors).tolist()
    assert entanglement(vectors.numpy()).tolist() == entanglement(vectors).tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(1, 8), st.integers(0, 2**31))
def test_invariances_and_bounds(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, d, generator=generator, dtype=F64)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=F64)).Q
    scale = torch.randn(n, 1, generator=generator, dtype=F64).exp() * (
        torch.randint(2, (n, 1), generator=generator) * 2 - 1
    )
    order = torch.randperm(n, generator=generator)
    e = entanglement(vectors)
    assert torch.allclose(entanglement(vectors @ rotation), e, atol=1e-9)
    assert torch.allclose(entanglement(vectors * scale), e, atol=1e-9)
    assert torch.allclose(entanglement(vectors[order]), e[order], atol=1e-12)
    assert torch.allclose(entanglement(torch.cat([vectors, vectors[:1]]))[[0, -1]], torch.ones(2, dtype=F64), atol=1e-9)
    assert float(e.max()) >= coherence_bound(n, d) - 1e-9
    assert float(interference(vectors).mean()) >= n / d - 1 - 1e-9
    mu = babel(vectors)
    assert float(mu[0]) == pytest.approx(float(coherence(vectors)), abs=1e-12)
    assert (mu <= mu[0] * torch.arange(1, n) + 1e-9).all()
    assert (mu.diff() <= mu.new_tensor(1) + 1e-9).all()


def test_babel_agrees_with_the_definition():
    vectors = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    gram = cosines(vectors).abs()
    for m in (1, 2, 5):
        expected = max(
            sum(float(gram[i, j]) for j in others)
            for i in range(7)
            for others in itertools.combinations([j for j in range(7) if j != i], m)
        )
        assert float(babel(vectors, m)[m - 1]) == pytest.approx(expected, abs=1e-9)
    assert babel(torch.eye(5)).tolist() == [0.0] * 4
    assert babel(simplex(4)).tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_interference_agrees_with_the_definition():
    vectors = torch.randn(9, 4, generator=torch.Generator().manual_seed(2), dtype=F64)
    squared = cosines(vectors).square().fill_diagonal_(0)
    assert torch.allclose(interference(vectors), squared.sum(1))
    assert torch.allclose(interference(vectors, neighbours=3), squared.topk(3, dim=1).values.mean(1))
    assert interference(icosahedron()).tolist() == pytest.approx([1.0] * 6)  # a tight frame: N / M - 1


def test_clusters():
    block = torch.tensor([[1.0, 0.05, 0, 0], [1, -0.05, 0, 0], [-1, 0, 0.05, 0], [0, 0, 1, 0], [0, 0, 0.1, 1]])
    order = torch.tensor([3, 0, 4, 1, 2])
    found = clusters(block[order], 0.9, block=2)
    assert found[[1, 3, 4]].tolist() == [0, 0, 0]
    assert len(set(found.tolist())) == 3
    assert set(clusters(block, 0.04).tolist()) == {0}


def test_gradients_are_finite_and_point_towards_less_entanglement():
    vectors = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=F64, requires_grad=True)
    before = float(entanglement(vectors.detach()).sum())
    entanglement(vectors).sum().backward()
    assert vectors.grad.isfinite().all()
    assert float(entanglement(vectors.detach() - 1e-3 * vectors.grad).sum()) < before
    orthogonal = torch.eye(4, dtype=F64, requires_grad=True)
    entanglement(orthogonal).sum().backward()
    assert orthogonal.grad.isfinite().all()


def test_extreme_scales_keep_their_direction():
    vectors = torch.tensor([[1e-30, 1e-30], [1e30, 0.0], [0.0, 5.0]])
    assert entanglement(vectors).tolist() == pytest.approx([0.5**0.5] * 3, rel=1e-6)
    assert unit_vectors(vectors).norm(dim=1).tolist() == pytest.approx([1] * 3)


def test_half_precision_is_measured_in_float32():
    vectors = torch.randn(6, 5).bfloat16()
    assert entanglement(vectors).dtype == torch.float32
    assert torch.equal(entanglement(vectors), entanglement(vectors.float()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: entanglement(torch.eye(1, 3)), "2 directions or more, not 1"),
        (lambda: entanglement(torch.zeros(3)), r"\[feature, d\]"),
        (lambda: entanglement(torch.tensor([[1.0, 0], [0, 0]])), "row 1"),
        (lambda: entanglement(torch.tensor([[1.0, 0], [0, torch.nan]])), "first at row 1"),
        (lambda: babel(torch.eye(3), 3), "k must be from 1 to 2"),
        (lambda: clusters(torch.eye(3), 1.0), "threshold"),
        (lambda: welch_bound(0, 3), "N=0"),
        (lambda: orthoplex_bound(3, 0), "M=0"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(EntangleError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_every_exported_name_exists_once():
    assert sorted(set(metrics.__all__)) == sorted(metrics.__all__)
    assert all(hasattr(metrics, name) for name in metrics.__all__)
