"""Neither blocks, nor symmetry, nor screening in low precision change who is nearest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.metrics import cosines, nearest_partners, neighbours, unit_vectors

F64 = torch.float64


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def check(vectors, k, *, slack=2e-6, **options):
    """Every partner is among the k best by brute force in float64, up to rounding in the directions' own precision."""
    found = nearest_partners(vectors, k, **options)
    full = cosines(vectors.double())
    best = full.abs().fill_diagonal_(-1).topk(k, dim=1).values
    assert torch.allclose(full.gather(1, found.feature).abs(), best, rtol=0, atol=slack)
    assert torch.allclose(full.gather(1, found.feature), found.cosine.double(), rtol=0, atol=slack)
    assert (found.feature != torch.arange(len(vectors))[:, None]).all()
    assert all(len(set(row)) == k for row in found.feature.tolist())


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def screening(request, monkeypatch):
    """Screen in either precision, whatever this processor is fast at."""
    monkeypatch.setattr(neighbours, "_fast_dtype", lambda _: request.param)
    return request.param


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 300), st.integers(1, 6), st.integers(1, 40_000), st.integers(0, 2**31), st.data())
def test_equals_the_full_matrix_whatever_the_memory(n, d, max_bytes, seed, data):
    k = data.draw(st.integers(1, min(n - 1, 12)))
    check(normal(n, d, seed=seed, dtype=F64), k, slack=1e-12, max_bytes=max_bytes)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_equals_the_full_matrix_at_a_size_with_many_blocks(k, screening):
    check(normal(3000, 48), k, max_bytes=1 << 18)


@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-9])
def test_partners_closer_to_one_another_than_the_screen_can_see(step, screening):
    """Each direction has a ladder of partners whose cosines differ by less than bfloat16 tells apart."""
    base, away = torch.linalg.qr(normal(20, 20, dtype=F64)).Q[:10], normal(10, 20, seed=1, dtype=F64)
    away = unit_vectors(away - (away * base).sum(1, keepdim=True) * base)
    angles = 0.3 + step * torch.arange(40, dtype=F64)
    ladder = angles.cos()[:, None, None] * base + angles.sin()[:, None, None] * away
    vectors = torch.cat([base, ladder.flatten(0, 1)])[torch.randperm(410, generator=torch.Generator().manual_seed(0))]
    check(vectors, 1, slack=1e-12)
    check(vectors, 5, slack=1e-12)


def test_directions_that_all_but_coincide(screening):
    """Nothing can be screened out: every group may hold a partner of everyone."""
    check(normal(1, 16, dtype=F64) + 1e-4 * normal(600, 16, seed=1, dtype=F64), 3, slack=1e-12, max_bytes=1 << 16)
    check(torch.ones(200, 3), 2)


def test_a_few_features_with_many_candidates_among_many_with_few(screening):
    """A bundle spread over all groups beside a scattered rest."""
    vectors = normal(2000, 64, dtype=F64)
    vectors[::7] = vectors[0] + 1e-3 * vectors[::7]
    check(vectors, 2, slack=1e-12, max_bytes=1 << 17)


def test_rounding_errors_that_conspire(screening):
    """Rows whose every entry bfloat16 rounds the same way, so that products are off by as much as they can be."""
    up, down = 1 + 2**-8 - 2**-12, 1 + 2**-8 + 2**-12  # rounded to 1 and to 1 + 2^-7
    signs = normal(400, 64, seed=2).sign().double()
    scale = torch.where(torch.arange(400)[:, None] % 2 == 0, up, down)
    mixed = torch.where(torch.arange(64) % 2 == 0, scale, 1.0)
    check(signs * mixed, 3, slack=1e-12)
    check((signs * mixed).float(), 3)


def test_duplicates_and_opposites_come_first(screening):
    vectors = normal(500, 32, dtype=F64)
    vectors[321], vectors[17] = 3 * vectors[40], -vectors[41]
    found = nearest_partners(vectors, 2)
    assert found.feature[[321, 40, 17, 41], 0].tolist() == [40, 321, 41, 17]
    assert found.cosine[[321, 40, 17, 41], 0].tolist() == pytest.approx([1, 1, -1, -1])


def test_sign_is_kept_and_duplicates_find_each_other():
    vectors = torch.tensor([[1.0, 0, 0], [0, 1, 0.1], [-1, 0, 0.01], [0, 2, 0.2]])
    found = nearest_partners(vectors)
    assert found.feature[:, 0].tolist() == [2, 3, 0, 1]
    assert found.cosine[:, 0].sign().tolist() == [-1, 1, -1, 1]


def test_orthogonal_directions_have_partners_at_zero(screening):
    found = nearest_partners(torch.eye(400), 2)
    assert found.cosine.abs().max() == 0
    assert (found.feature != torch.arange(400)[:, None]).all()


def test_the_screen_spares_nearly_all_full_precision_products(screening):
    """Otherwise the above would hold of a search that looks everywhere."""
    unit = unit_vectors(normal(4096, 256))
    screen = neighbours._screened(unit, 1, 16, 1 << 23)
    assert screen.wanted(slice(None)).double().mean() < 0.05


def test_gradients_flow_through_the_cosines():
    vectors = normal(300, 8).requires_grad_()
    found = nearest_partners(vectors, 2)
    found.cosine.square().sum().backward()
    unit = vectors.detach() / vectors.detach().norm(dim=1, keepdim=True)
    again = unit.clone().requires_grad_()
    (again * again[found.feature[:, 0]]).sum(1).square().sum().backward()
    assert vectors.grad.isfinite().all()
    assert (vectors.grad * vectors).sum(1).abs().max() < 1e-4  # scaling a direction changes nothing
    assert vectors.grad.norm() > 1


@pytest.mark.parametrize("value", [True, False])
def test_settings_of_torch_are_left_as_they_were(value):
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    try:
        matmul.allow_bf16_reduced_precision_reduction = value
        nearest_partners(normal(300, 8))
        assert matmul.allow_bf16_reduced_precision_reduction is value
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


@pytest.mark.gpu
@pytest.mark.parametrize("k", [1, 10])
def test_a_gpu_finds_the_same(k):
    vectors = normal(20_000, 256)
    there = nearest_partners(vectors.cuda(), k, max_bytes=1 << 26)
    here = nearest_partners(vectors, k)
    assert there.feature.is_cuda
    assert torch.allclose(there.cosine.cpu().abs(), here.cosine.abs(), atol=1e-5)


def test_k_out_of_range():
    for k in (0, 3, -1):
        with pytest.raises(EntangleError, match=f"from 1 to 2, .* not {k}"):
            nearest_partners(torch.eye(3), k)
