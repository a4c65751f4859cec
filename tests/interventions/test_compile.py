"""Baked weights, exported files and other tools' hooks: all compute what the hooks compute."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM

from entangle.errors import EntangleError
from entangle.interventions import (
    ITI,
    Ablate,
    AddDirection,
    Clamp,
    Compose,
    Scale,
    Set,
    bake,
    export,
    steer,
)
from entangle.models import Atlas

SWITCHED = [
    "gpt2",
    "gpt_neox",
    "llama",
    "olmo2",
    "qwen3",
    "gemma3_text",
    "phi",
]  # configurations that can have the biases
UNSWITCHED = ["mistral", "qwen2"]


def some_iti(model, k=4):
    atlas = Atlas(model)
    generator = torch.Generator().manual_seed(0)
    everywhere = list(itertools.product(atlas.layers("z"), range(atlas.n_heads(0))))
    directions = torch.nn.functional.normalize(torch.randn(k, atlas.d_head(0), generator=generator), dim=1)
    chosen = torch.randperm(len(everywhere), generator=generator)[:k].tolist()
    return ITI([everywhere[i] for i in chosen], directions, torch.rand(k, generator=generator) + 0.5)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def steered(model, edit, alpha, ids):
    with steer(model, edit, alpha=alpha):
        return logits(model, ids)


@pytest.fixture
def ids():
    return torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model_type", SWITCHED)
def test_baked_iti_round_trips_through_stock_classes(tiny_model, tmp_path, model_type, ids):
    model = tiny_model(model_type)
    plain, before = logits(model, ids), {name: p.clone() for name, p in model.named_parameters()}
    baked = some_iti(model).bake(model, alpha=3)
    wanted = steered(model, some_iti(model), 3, ids)
    assert type(baked) is type(model)
    assert (wanted - plain).abs().max() > 0.05
    torch.testing.assert_close(logits(baked, ids), wanted, atol=1e-4, rtol=0)
    baked.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(loaded) is type(model)
    torch.testing.assert_close(logits(loaded.eval(), ids), wanted, atol=1e-4, rtol=0)
    # The user's model is as it was.
    assert torch.equal(logits(model, ids), plain)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("model_type", UNSWITCHED)
def test_a_configuration_without_the_biases_bakes_but_refuses_to_save(tiny_model, tmp_path, model_type, ids):
    model = tiny_model(model_type)
    baked = bake(model, some_iti(model), 3)
    assert isinstance(baked, type(model))
    torch.testing.assert_close(logits(baked, ids), steered(model, some_iti(model), 3, ids), atol=1e-4, rtol=0)
    with pytest.raises(EntangleError, match="no configuration for the biases"):
        baked.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    # A map without a constant needs no bias, so it saves.
    ablated = bake(model, Ablate(torch.randn(32), "attn_out", 1))
    ablated.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded, ids), logits(ablated, ids))


@pytest.mark.parametrize("site", ["z", "attn_out", "mlp_post", "mlp_out"])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox"])
def test_every_affine_edit_bakes_at_every_projection(tiny_model, model_type, site, ids):
    model = tiny_model(model_type)
    v, w = torch.randn(2, Atlas(model).size(site, 1), generator=torch.Generator().manual_seed(0))
    for edit in [AddDirection(v, site, 1), Ablate(v, site, 1, mean=w), Scale(v, 3.0, site, 1), Set(v, 2.0, site, 1)]:
        wanted = steered(model, edit, 0.7, ids)
        torch.testing.assert_close(logits(bake(model, edit, 0.7), ids), wanted, atol=1e-4, rtol=0)
    both = Compose([Ablate(v, site, 1), AddDirection(w, site, 1)])
    torch.testing.assert_close(logits(bake(model, both), ids), steered(model, both, 1.0, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("model_type", "site"), [("gpt2", "resid_post"), ("gpt2", "resid_pre"), ("llama", "resid_mid")]
)
def test_a_constant_on_the_residual_stream_goes_into_the_projection_before(tiny_model, model_type, site, ids):
    model = tiny_model(model_type)
    edit = AddDirection(torch.randn(32, generator=torch.Generator().manual_seed(0)), site, 1)
    torch.testing.assert_close(logits(bake(model, edit), ids), steered(model, edit, 1.0, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("model_type", "edit", "message"),
    [
        ("llama", Ablate(torch.ones(32), "resid_post", 1), "no weights hold a map at resid_post"),
        ("olmo2", AddDirection(torch.ones(32), "resid_post", 1), "differs from its hooks"),  # a norm comes in between
        ("gemma3_text", AddDirection(torch.ones(32), "resid_post", 1), "differs from its hooks"),
        ("llama", AddDirection(torch.ones(32), "resid_pre", 0), "no weights hold a constant at resid_pre"),
        ("llama", Clamp(torch.ones(32), 0, 1, "attn_out", 1), "no affine map"),
        ("llama", AddDirection(torch.ones(31), "attn_out", 1), "32 numbers a token"),
    ],
)
def test_what_no_weights_hold_is_refused(tiny_model, model_type, edit, message, ids):
    model = tiny_model(model_type)
    plain = logits(model, ids)
    with pytest.raises(EntangleError, match=message) as caught:
        edit.bake(model)
    assert "\n" not in str(caught.value)
    assert torch.equal(logits(model, ids), plain)


def test_baking_is_refused_inside_a_block(tiny_model):
    model = tiny_model("llama")
    with steer(model, some_iti(model)), pytest.raises(EntangleError, match="outside the steer block"):
        bake(model, some_iti(model))


def test_a_baked_model_compiles(tiny_model, ids):
    model = tiny_model("llama")
    baked = bake(model, some_iti(model), 3)
    compiled = torch.compile(baked, backend="eager")
    torch.testing.assert_close(logits(compiled, ids), steered(model, some_iti(model), 3, ids), atol=1e-4, rtol=0)


def test_alpha_zero_bakes_the_same_weights(tiny_model):
    model = tiny_model("llama")
    baked = bake(model, some_iti(model), 0)
    assert dict(baked.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(p, q) for p, q in zip(baked.parameters(), model.parameters(), strict=True))


def test_gguf(tiny_model, tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    model = tiny_model("llama")
    v = torch.randn(32)
    path = export(AddDirection(v, "resid_post", 2), tmp_path / "x.gguf", format="gguf", model=model, alpha=3)
    (tensor,) = gguf.GGUFReader(path).tensors
    assert tensor.name == "direction.2"
    torch.testing.assert_close(torch.from_numpy(tensor.data.copy()), 3 * v)


@pytest.mark.parametrize(
    ("edit", "format", "message"),
    [
        (AddDirection(torch.ones(8), "z", 1, 0), "gguf", "whole blocks"),
        (AddDirection(torch.ones(32), "resid_post", 0), "gguf", "from the second on"),
        (AddDirection(torch.ones(32), "resid_pre", 1), "lm-eval", "is an input"),
        (Ablate(torch.ones(32), "resid_post", 1), "lm-eval", "is a map"),
        (Clamp(torch.ones(32), 0, 1), "lm-eval", "no affine map"),
        (AddDirection(torch.ones(32), "resid_post", 1), "onnx", "format must be one of"),
    ],
)
def test_what_a_format_cannot_say_is_refused(tiny_model, tmp_path, edit, format, message):
    with pytest.raises(EntangleError, match=message) as caught:
        export(edit, tmp_path / "x", format=format, model=tiny_model("llama"))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
