"""Conditional and autoencoder edits: only the tokens, and only the feature, that they name."""

from __future__ import annotations

import pytest
import torch

from entangle.errors import EntangleError
from entangle.interventions import Ablate, AddDirection, Clamp, Compose, SAEFeature, When, steer
from entangle.models import Atlas, hooked

V, P = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))


def read(model, ids, place, *edits, **how):
    seen = []
    with (
        torch.no_grad(),
        steer(model, list(edits), **how) as handle,
        hooked([(place, lambda x: seen.append(x.clone()))]),
    ):
        model(input_ids=ids)
    return seen[0], handle.counts


@pytest.fixture
def ids():
    return torch.randint(3, 96, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("make", [lambda: AddDirection(V, layer=1), lambda: Clamp(V, 0, 0.1, layer=1)])
def test_the_tokens_a_probe_fires_on_are_edited(tiny_model, ids, side, make):
    model = tiny_model("llama")
    place = Atlas(model).place("resid_post", 1)
    was, _ = read(model, ids, place)
    scores = was @ P + 0.2
    threshold = float(scores.median())
    fires = scores > threshold if side == "above" else scores < threshold
    edit = When(make(), P, threshold, layer=1, intercept=0.2, side=side)
    now, counts = read(model, ids, place, edit, alpha=2.0)
    torch.testing.assert_close(now, torch.where(fires[..., None], make()(was, alpha=2.0), was))
    assert 0 < fires.sum() < fires.numel()
    assert counts == [int(fires.sum())]


def test_the_condition_may_be_read_before_the_place_it_steers(tiny_model, ids):
    model = tiny_model("gpt2")
    atlas = Atlas(model)
    early, _ = read(model, ids, atlas.place("resid_post", 0))
    late, _ = read(model, ids, atlas.place("z", 2))
    threshold = float((early @ P).median())
    v = torch.randn(8, generator=torch.Generator().manual_seed(1))
    now, counts = read(model, ids, atlas.place("z", 2), When(AddDirection(v, "z", 2, 1), P, threshold, layer=0))
    fires = early @ P > threshold
    torch.testing.assert_close(now[..., 8:16], late[..., 8:16] + fires[..., None] * v, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(now[..., :8], late[..., :8])
    assert counts == [int(fires.sum())]


def test_generation_with_the_cache_and_without(tiny_model, ids):
    model = tiny_model("llama")
    edit = When(Compose([AddDirection(V, layer=1), Ablate(P, layer=2)]), P, 0.0, layer=1)
    outs = []
    for use_cache in (True, False):
        with steer(model, edit, alpha=2, tokens="generated"):
            outs.append(model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, use_cache=use_cache))
    assert torch.equal(*outs)


@pytest.mark.parametrize(
    ("edit", "layer"),
    [
        (AddDirection(V, layer=0), 1),
        (AddDirection(V, "resid_mid", 1), 1),
        (AddDirection(V, "blocks.0.hook_resid_post"), 1),
    ],
)
def test_a_condition_must_come_first(tiny_model, edit, layer):
    with pytest.raises(EntangleError, match="must act there or in a later layer"):
        steer(tiny_model("llama"), When(edit, P, layer=layer))


def test_a_probe_of_another_size_is_refused(tiny_model):
    with pytest.raises(EntangleError, match="32 numbers a token, but the edit has 31"):
        steer(tiny_model("llama"), When(AddDirection(V, layer=1), P[:31], layer=1))
    with pytest.raises(EntangleError, match="side must be"):
        When(AddDirection(V, layer=1), P, side="beside")


class Autoencoder:
    """A sparse autoencoder that does not reconstruct what it reads, as real ones do not."""

    def __init__(self, d=32, n=50):
        generator = torch.Generator().manual_seed(3)
        self.up, self.down = torch.randn(d, n, generator=generator), torch.randn(n, d, generator=generator) / 5

    def encode(self, x):
        return torch.relu(x @ self.up - 1)

    def decode(self, features):
        return features @ self.down + 0.3


@pytest.mark.parametrize(
    ("how", "new"), [("set", lambda f: torch.full_like(f, 2.0)), ("add", lambda f: f + 2), ("scale", lambda f: f * 2)]
)
def test_one_feature_changes_and_the_reconstruction_error_stays(tiny_model, ids, how, new):
    model, sae = tiny_model("llama"), Autoencoder()
    place = Atlas(model).place("resid_post", 1)
    was, _ = read(model, ids, place)
    now, counts = read(model, ids, place, SAEFeature(sae, 7, 2.0, how, layer=1), alpha=0.5)
    feature = sae.encode(was)[..., 7]
    torch.testing.assert_close(now, was + 0.5 * (new(feature) - feature)[..., None] * sae.down[7], atol=1e-5, rtol=1e-5)
    assert counts == [27]
    assert (sae.decode(sae.encode(was)) - was).abs().max() > 0.5


def test_bad_autoencoder_edits_are_refused(tiny_model, ids):
    with pytest.raises(EntangleError, match="encode and decode"):
        SAEFeature(object(), 0, 1.0)
    with pytest.raises(EntangleError, match="how must be"):
        SAEFeature(Autoencoder(), 0, 1.0, "square")
    model = tiny_model("llama")
    with (
        pytest.raises(EntangleError, match="features 0 to 49"),
        steer(model, SAEFeature(Autoencoder(), 50, 1.0, layer=1)),
    ):
        model(input_ids=ids)
