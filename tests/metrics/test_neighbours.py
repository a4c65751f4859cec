"""Blocks, symmetry and memory change nothing about who is nearest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.metrics import cosines, nearest_partners


def reference(vectors, k):
    return cosines(vectors).abs().fill_diagonal_(-1).topk(k, dim=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 6), st.integers(1, 4000), st.integers(0, 2**31), st.data())
def test_equals_the_full_matrix_whatever_the_memory(n, d, max_bytes, seed, data):
    k = data.draw(st.integers(1, n - 1))
    vectors = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values, _ = reference(vectors, k)
    found = nearest_partners(vectors, k, max_bytes=max_bytes)
    assert torch.allclose(found.cosine.abs(), values, atol=1e-12)
    assert torch.allclose(cosines(vectors).gather(1, found.feature), found.cosine, atol=1e-12)
    assert (found.feature != torch.arange(n)[:, None]).all()
    assert all(len(set(row)) == k for row in found.feature.tolist())


@pytest.mark.parametrize("k", [1, 4])
def test_equals_the_full_matrix_at_a_size_with_many_blocks(k):
    vectors = torch.randn(3000, 48, generator=torch.Generator().manual_seed(0))
    values, columns = reference(vectors, k)
    found = nearest_partners(vectors, k, max_bytes=1 << 20)
    assert torch.allclose(found.cosine.abs(), values, atol=1e-6)
    assert (found.feature == columns).double().mean() > 0.999  # ties within rounding may swap


def test_sign_is_kept_and_duplicates_find_each_other():
    vectors = torch.tensor([[1.0, 0, 0], [0, 1, 0.1], [-1, 0, 0.01], [0, 2, 0.2]])
    found = nearest_partners(vectors)
    assert found.feature[:, 0].tolist() == [2, 3, 0, 1]
    assert found.cosine[:, 0].sign().tolist() == [-1, 1, -1, 1]


def test_k_out_of_range():
    for k in (0, 3, -1):
        with pytest.raises(EntangleError, match=f"from 1 to 2, .* not {k}"):
            nearest_partners(torch.eye(3), k)
