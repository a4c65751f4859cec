"""A perfect reconstruction costs nothing, the mean costs everything, and in between more is less."""

from __future__ import annotations

import pytest
import torch

from entangle.activations import collect
from entangle.concepts.functional import Reconstruct, functional_importance, subspace_projection
from entangle.errors import EntangleError
from entangle.evaluation import cross_entropy, language_shift
from entangle.interventions import Ablate

TEXTS = ["the cat sat on the mat", "a quick brown fox jumps over the lazy dog and looked at the moon", "the moon sat"]


@pytest.fixture(scope="module")
def setting(tiny_model, tiny_tokenizer):
    model = tiny_model("olmo2")
    x = collect(model, tiny_tokenizer, TEXTS, sites="resid_post", layers=[1], tokens="all", progress=False)
    x = x["resid_post"][:, 0]
    return model, tiny_tokenizer, x.mean(0), torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh


def importance(setting, reconstruct):
    model, tokenizer, *_ = setting
    return functional_importance(model, tokenizer, TEXTS, reconstruct, layer=1, n_resamples=50)


def test_identity_costs_nothing(setting):
    found = importance(setting, lambda x: x)
    assert float(found.kl.value) == pytest.approx(0, abs=1e-6)
    assert float(found.ce_increase.value) == pytest.approx(0, abs=1e-6)
    assert float(found.loss_recovered.value) == pytest.approx(1, abs=1e-5)
    assert found.variance_explained == pytest.approx(1, abs=1e-6)


def test_the_mean_recovers_nothing(setting):
    model, tokenizer, mean, _ = setting
    found = importance(setting, lambda x: mean.to(x).expand_as(x))
    assert float(found.loss_recovered.value) == pytest.approx(0, abs=1e-4)
    assert found.variance_explained == pytest.approx(0, abs=1e-5)
    expected = language_shift(
        model, tokenizer, TEXTS, Ablate(torch.eye(32), "resid_post", 1, mean=mean), progress=False
    )
    assert float(found.kl.value) == pytest.approx(expected.kl.sum() / expected.tokens.sum(), rel=1e-4)
    assert found.kl.low <= found.kl.value <= found.kl.high


def test_more_components_cost_less_and_explain_what_they_should(setting):
    _, _, mean, components = setting
    found = [importance(setting, subspace_projection(components[:k], mean)) for k in (2, 8, 20)]
    losses = [float(f.kl.value) for f in found]
    assert losses == sorted(losses, reverse=True)
    assert found[0].variance_explained < found[1].variance_explained < found[2].variance_explained < 1
    everything = importance(setting, subspace_projection(torch.eye(32) * 3, mean))
    assert float(everything.kl.value) == pytest.approx(0, abs=1e-5)


def test_kept_and_removed_parts_make_the_whole(setting):
    _, _, mean, components = setting
    x = torch.randn(5, 4, 32)
    basis = torch.cat([components[:3], components[:1] * 2])  # dependent rows count once
    kept, rest = subspace_projection(basis, mean), subspace_projection(basis, mean, keep=False)
    assert torch.allclose(kept(x) + rest(x) - mean, x, atol=1e-5)
    assert torch.allclose(kept(kept(x)), kept(x), atol=1e-5)
    ablated = Ablate(components[:3], "resid_post", 1, mean=mean)
    assert torch.allclose(rest(x), ablated(x), atol=1e-5)


def test_strength_is_linear_and_the_model_is_left_alone(setting):
    model, tokenizer, mean, _ = setting
    x = torch.randn(2, 3, 32)
    edit = Reconstruct(lambda t: mean.to(t).expand_as(t), "resid_post", 1)
    assert torch.allclose(edit(x, alpha=0.25), x + 0.25 * (mean - x), atol=1e-6)
    before = cross_entropy(model, tokenizer, TEXTS, progress=False).mean
    importance(setting, lambda t: t * 0)
    assert cross_entropy(model, tokenizer, TEXTS, progress=False).mean == before


def test_bad_reconstruction_is_one_clear_line(setting):
    with pytest.raises(EntangleError, match="keep the shape") as caught:
        importance(setting, lambda x: x[..., :3])
    assert "\n" not in str(caught.value)
