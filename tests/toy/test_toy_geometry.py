"""Polytopes: each is recognised in any orientation and under noise, and nothing else is taken for one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.toy import geometry
from entangle.toy.autoencoders.geometry import POLYTOPES


def turned(vectors: torch.Tensor, seed: int, d: int = 0) -> torch.Tensor:
    """A random orientation in d dimensions, in random order."""
    generator = torch.Generator().manual_seed(seed)
    d = max(d, vectors.shape[1])
    frame = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q[: vectors.shape[1]]
    return (vectors @ frame)[torch.randperm(len(vectors), generator=generator)]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(list(POLYTOPES)), seed=st.integers(0, 10_000), size=st.floats(0.1, 10))
def test_a_polytope_is_itself_in_any_orientation_order_and_size(name, seed, size):
    found = geometry(size * turned(POLYTOPES[name], seed, d=6))
    assert found.name == name
    assert found.polytopes[0].deviation < 1e-3


def test_orthogonal_unions_have_their_names():
    pair, triangle = POLYTOPES["antipodal pair"], POLYTOPES["triangle"]
    assert geometry(turned(torch.block_diag(pair, pair), 0)).name == "square"
    assert geometry(turned(torch.block_diag(pair, pair, pair), 1)).name == "octahedron"
    assert geometry(turned(torch.block_diag(pair, triangle), 2)).name == "triangular bipyramid"
    assert geometry(turned(torch.block_diag(torch.eye(2), triangle), 3)).name == "2 x dedicated dimension + triangle"


def test_short_features_are_dropped():
    vectors = torch.cat([POLYTOPES["pentagon"], 0.1 * torch.ones(1, 2)])
    found = geometry(vectors)
    assert found.name == "pentagon"
    assert found.dropped == (5,)
    assert geometry(vectors, min_norm=0.01).name == "irregular"


def test_noise_within_the_tolerance_is_allowed_and_more_is_not():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5, 2, generator=generator)
    assert geometry(POLYTOPES["pentagon"] + 0.02 * noise).name == "pentagon"
    assert geometry(POLYTOPES["pentagon"] + 0.4 * noise).name == "irregular"


def test_random_directions_are_no_polytope():
    generator = torch.Generator().manual_seed(0)
    names = [geometry(torch.randn(5, 2, generator=generator)).name for _ in range(50)]
    assert names.count("pentagon") <= 1


def test_nothing_but_zeros_is_refused():
    with pytest.raises(EntangleError, match="length zero"):
        geometry(torch.zeros(3, 2))
