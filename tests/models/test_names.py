"""TransformerLens's canonical names are understood wherever a site is."""

from __future__ import annotations

import pytest
import torch

import entangle as en
from entangle.models import hook_name, place_named
from entangle.models.atlas import ADDED_NAMES, HOOK_NAMES

TEXTS = ["the quick brown fox", "a cat sat on the mat and looked", "over the lazy dog", "the moon"]


def test_every_name_that_is_one_tensor_in_every_model_says_its_place():
    for name, site in HOOK_NAMES.items():
        assert place_named(f"blocks.2.{name}") == (site, 2)
    for name in (*(f"blocks.1.{name}" for name in ADDED_NAMES), "z", "model.layers.1.mlp", "blocks.x.hook_in"):
        assert place_named(name) is None
    for site in set(HOOK_NAMES.values()):
        assert place_named(hook_name(site, 4)) == (site, 4)


def test_names_are_sites_in_collect_and_steer(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    edit = torch.linspace(-1, 1, 32)
    options = {"progress": False, "tokens": "all"}
    for name, (site, layer) in {"blocks.1.hook_in": ("resid_pre", 1), "blocks.2.attn.o.hook_in": ("z", 2)}.items():
        by_name = en.collect(model, tiny_tokenizer, TEXTS, sites=name, **options)
        assert torch.equal(
            by_name[site], en.collect(model, tiny_tokenizer, TEXTS, sites=site, layers=layer, **options)[site]
        )
    ids = torch.tensor([[5, 9, 13]])
    for name, (site, layer) in {
        "blocks.1.hook_out": ("resid_post", 1),
        "blocks.0.attn.o.hook_out": ("attn_out", 0),
    }.items():
        with torch.no_grad(), en.steer(model, en.AddDirection(edit, name)):
            steered = model(ids).logits
        with torch.no_grad(), en.steer(model, en.AddDirection(edit, site, layer)):
            assert torch.equal(model(ids).logits, steered)
        assert not torch.equal(model(ids).logits, steered)


def test_names_are_sites_of_directions_metrics_and_conditions(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    vector = torch.linspace(-1, 1, 32)
    named = en.Directions(vector[None], ("a",), site="blocks.1.hook_out")
    plain = en.Directions(vector.flip(0)[None], ("b",), site="resid_post", layer=1)
    assert (named.site, named.layer) == ("resid_post", 1)
    assert len(en.Directions.stack(a=named, b=plain)) == 2
    with pytest.raises(en.EntangleError, match="layer 1"):
        en.Directions(vector[None], ("a",), site="blocks.1.hook_out", layer=2)
    with pytest.raises(en.EntangleError, match="different places"):
        named.cosine(en.Directions(vector[None], ("c",), site="blocks.2.hook_out"))
    settings = {"samples": 1, "progress": False}
    by_name = en.ShiftMetric.fit(model, tiny_tokenizer, TEXTS * 4, sites="blocks.1.hook_out", **settings)
    by_site = en.ShiftMetric.fit(model, tiny_tokenizer, TEXTS * 4, sites="resid_post", layers=[1], **settings)
    assert torch.equal(by_name.matrix("resid_post", 1), by_site.matrix("resid_post", 1))
    assert by_site.at("blocks.1.hook_out").keys == (("resid_post", 1),)
    gate = en.When(en.AddDirection(vector, "blocks.2.hook_out"), vector, site="blocks.1.hook_out")
    same = en.When(en.AddDirection(vector, "resid_post", 2), vector, site="resid_post", layer=1)
    ids = torch.tensor([[5, 9, 13]])
    with torch.no_grad(), en.steer(model, gate):
        steered = model(ids).logits
    with torch.no_grad(), en.steer(model, same):
        assert torch.equal(model(ids).logits, steered)
    with (
        pytest.raises(en.EntangleError, match="must act there or in a later layer"),
        en.steer(model, en.When(en.AddDirection(vector, "blocks.0.hook_out"), vector, site="blocks.1.hook_out")),
    ):
        pass
