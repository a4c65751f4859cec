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


@pytest.mark.parametrize("model_type", ["mistral", "qwen2"])
def test_a_map_without_a_constant_needs_no_switch_for_biases(tiny_model, tmp_path, model_type, ids):
    model, edit = tiny_model(model_type), Ablate(torch.ones(32), "attn_out", 1)
    baked = bake(model, edit)
    assert type(baked) is type(model)
    baked.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded, ids), steered(model, edit, 1, ids), atol=1e-4, rtol=0)


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
    ("edit", "message"),
    [
        (Clamp(torch.ones(32), 0, 1, "attn_out", 1), "no affine map"),
        (Compose([AddDirection(torch.ones(32), "attn_out", 1), Clamp(torch.ones(32), 0, 1)]), "no affine map"),
        (AddDirection(torch.ones(31), "attn_out", 1), "32 numbers a token"),
        (AddDirection(torch.ones(8), "z", 1, 4), "heads 0 to 3"),
    ],
)
def test_what_is_no_affine_map_of_the_model_is_refused(tiny_model, edit, message, ids):
    model = tiny_model("llama")
    plain = logits(model, ids)
    with pytest.raises(EntangleError, match=message) as caught:
        edit.bake(model)
    assert "\n" not in str(caught.value)
    assert torch.equal(logits(model, ids), plain)


def test_baking_is_refused_inside_a_block(tiny_model):
    model = tiny_model("llama")
    with steer(model, some_iti(model)), pytest.raises(EntangleError, match="outside the steer block"):
        bake(model, some_iti(model))


# What no weights hold (Mistral's biases, a map of the residual stream) the model carries; that compiles too.
COMPILED = [("llama", "z"), ("mistral", "z"), ("llama", "resid_post"), ("gpt2", "resid_mid")]


def compiled_is_steered(model, site, ids, backend):
    v = torch.randn(32, generator=torch.Generator().manual_seed(0))
    edit = some_iti(model) if site == "z" else Set(v, 2.0, site, 1)
    compiled = torch.compile(bake(model, edit, 0.7), backend=backend, fullgraph=True)
    wanted = steered(model, edit, 0.7, ids)
    torch.testing.assert_close(logits(compiled, ids), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(compiled, ids), wanted, atol=1e-4, rtol=0)  # the graph, run again
    assert (wanted - logits(model, ids)).abs().max() > 0.05
    with pytest.raises(EntangleError, match="bake the edit into the weights first"):
        steer(compiled, edit)


@pytest.mark.parametrize(("model_type", "site"), COMPILED)
def test_a_baked_model_is_one_graph(tiny_model, model_type, site, ids):
    compiled_is_steered(tiny_model(model_type), site, ids, "eager")


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "site"), COMPILED)
def test_a_baked_model_compiles_with_inductor(tiny_model, model_type, site, ids):
    compiled_is_steered(tiny_model(model_type), site, ids, "inductor")


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
