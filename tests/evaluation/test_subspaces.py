"""Iterated probes find planted planes; sampled gradients are those of the model."""

from __future__ import annotations

import pytest
import torch

from entangle.activations import collect
from entangle.errors import EntangleError
from entangle.evaluation.interaction import interaction_gradients
from entangle.evaluation.subspaces import nullspace_subspace
from entangle.interventions import AddDirection, steer
from entangle.metrics import subspace_overlap

TEXTS = ["the cat sat on the mat", "a quick brown fox jumps over the lazy dog", "the moon sat"]


def planted(seed=0, n=4000, d=12):
    """Positives differ along axis 0, whose noise axis 1 tells of: a probe reads both, and so does a second one."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=generator)
    x = torch.randn(n, d, generator=generator)
    x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
    x[:, 0] += 2 * y
    return x, y


def test_two_dimensions_of_a_concept_are_found():
    x, y = planted()
    basis = nullspace_subspace(x, y, 2)
    assert torch.allclose(basis @ basis.T, torch.eye(2), atol=1e-5)
    assert float(subspace_overlap(basis, torch.eye(12)[:2])) > 0.95
    assert float(subspace_overlap(nullspace_subspace(x, y.roll(1), 2), torch.eye(12)[:2])) < 0.7


def test_a_projected_out_direction_is_not_found_again():
    x, y = planted()
    one, three = nullspace_subspace(x, y, 1), nullspace_subspace(x, y, 3)
    assert torch.allclose(three[:1], one, atol=1e-5)
    assert float((three[1:] @ one.T).abs().max()) < 1e-5


def test_a_mean_difference_leaves_nothing():
    x, y = planted()
    with pytest.raises(EntangleError, match="after 1 dimensions"):
        nullspace_subspace(x, y, 2, estimator="mean_difference")
    with pytest.raises(EntangleError, match="from 1 to 11"):
        nullspace_subspace(x, y, 12)
    with pytest.raises(EntangleError, match="estimator"):
        nullspace_subspace(x, y, 1, estimator="pca")


def test_gradients_are_the_models(tiny_model, tiny_tokenizer):
    """Their second moment is that of finite differences: |J v|^2 summed over tokens."""
    model = tiny_model("olmo2")
    before = collect(model, tiny_tokenizer, TEXTS, sites="resid_post", tokens="all", progress=False)["resid_post"]
    g = interaction_gradients(model, tiny_tokenizer, TEXTS[2:], layer=0, later=2, n_projections=200)
    n_tokens = len(tiny_tokenizer(TEXTS[2])["input_ids"])
    assert g.shape == (200 * n_tokens, 32)
    v = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)
    estimated = g.reshape(200, n_tokens, 32) @ v

    def at(layer_edit):
        with steer(model, layer_edit, tokens=mask):
            found = collect(
                model, tiny_tokenizer, TEXTS[2:], sites="resid_post", layers=[2], tokens="all", progress=False
            )
        return found["resid_post"][:, 0]

    position = n_tokens - 1
    mask = torch.arange(n_tokens)[None] == position
    step = 1e-2
    difference = (at(AddDirection(step * v, "resid_post", 0)) - at(AddDirection(-step * v, "resid_post", 0))) / (
        2 * step
    )
    expected = float(difference.square().sum())
    assert float(estimated[:, position].square().mean()) == pytest.approx(expected, rel=0.3)
    after = collect(model, tiny_tokenizer, TEXTS, sites="resid_post", tokens="all", progress=False)["resid_post"]
    assert torch.equal(before, after)
    assert all(p.grad is None for p in model.parameters())


def test_gradients_run_downwards_only(tiny_model, tiny_tokenizer):
    with pytest.raises(EntangleError, match="later"):
        interaction_gradients(tiny_model("olmo2"), tiny_tokenizer, TEXTS, layer=1, later=1)
