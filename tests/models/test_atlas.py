"""The sites the atlas finds are the right ones, by algebra; what a model does not have is missing with a reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from entangle.errors import EntangleError
from entangle.models import Atlas, AtlasError, hooked
from tiny import VOCABULARY

IDS = torch.arange(3, 17).view(2, 7)
PARALLEL = {"phi", "gpt_neox"}


def read(model, *sites_and_layers):
    atlas = Atlas(model)
    seen = {}
    places = [atlas.place(*key) for key in sites_and_layers]
    with torch.no_grad(), hooked((p, lambda x, p=p: seen.__setitem__((p.site, p.layer), x.clone())) for p in places):
        model(IDS)
    return atlas, seen


@pytest.mark.parametrize("layer", [0, 2])
def test_algebra_of_a_block(layer, causal_lm):
    sites = [site for site in Atlas(causal_lm).sites if not Atlas(causal_lm).reason(site, layer)]
    atlas, x = read(causal_lm, *((site, layer) for site in sites))
    assert {"resid_pre", "z", "attn_out", "mlp_post", "mlp_out", "resid_post"} <= set(sites)
    with torch.no_grad():
        assert torch.allclose(atlas.place("z", layer).out_projection(x["z", layer]), x["attn_out", layer], atol=1e-5)
        assert torch.allclose(atlas.module("mlp_post", layer)(x["mlp_post", layer]), x["mlp_out", layer], atol=1e-5)
    family = causal_lm.config.model_type
    if family in PARALLEL:
        assert "parallel" in atlas.reason("resid_mid", layer)
        total = x["resid_pre", layer] + x["attn_out", layer] + x["mlp_out", layer]
        assert torch.allclose(x["resid_post", layer], total, atol=1e-4)
    elif family not in {"olmo2", "gemma2", "gemma3_text"}:  # these norm what they add
        assert torch.allclose(x["resid_mid", layer], x["resid_pre", layer] + x["attn_out", layer], atol=1e-4)
        assert torch.allclose(x["resid_post", layer], x["resid_mid", layer] + x["mlp_out", layer], atol=1e-4)


def test_stream_runs_from_block_to_block(causal_lm):
    _, x = read(causal_lm, ("resid_post", 0), ("resid_pre", 1), ("resid_post", 1), ("resid_pre", 2))
    assert torch.equal(x["resid_post", 0], x["resid_pre", 1])
    assert torch.equal(x["resid_post", 1], x["resid_pre", 2])


def test_heads_of_grouped_queries_and_wide_heads(tiny_model):
    for family, d_head in [("llama", 8), ("gemma2", 16), ("gemma3_text", 16), ("gpt2", 8)]:
        atlas = Atlas(tiny_model(family))
        assert (atlas.n_heads(1), atlas.d_head(1), atlas.size("z", 1)) == (4, d_head, 4 * d_head)
        assert atlas.d_model == 32


def test_z_is_by_head_what_the_kernel_returns(tiny_model, monkeypatch):
    """Compared with `scaled_dot_product_attention` itself, wrapped from outside."""
    model = tiny_model("olmo2")
    Atlas(model)
    returned = []
    plain = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *a, **k: returned.append(plain(*a, **k)) or returned[-1],
    )
    _, x = read(model, ("z", 0), ("z", 1), ("z", 2))
    for layer in range(3):
        heads = x["z", layer].unflatten(-1, (4, 8))
        assert torch.equal(heads.transpose(1, 2), returned[layer])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_both_kernels(implementation, tiny_model):
    config = tiny_model("llama").config
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    assert Atlas(model).path("z", 1) == "model.layers.1.self_attn.o_proj"


def test_half_precision(tiny_model):
    from copy import deepcopy

    for family in ["llama", "gpt2", "olmo2", "phi"]:
        plain = Atlas(tiny_model(family)).table()
        assert Atlas(deepcopy(tiny_model(family)).to(torch.bfloat16)).table().equals(plain)


def test_no_attention_is_a_reason_not_a_guess():
    config = AutoConfig.for_model(
        "mamba", hidden_size=32, num_hidden_layers=2, vocab_size=VOCABULARY, state_size=4, time_step_rank=4
    )
    atlas = Atlas(AutoModelForCausalLM.from_config(config))
    assert atlas.sites[0] == "resid_pre"
    assert "z" not in atlas.sites
    assert "no attention kernel ran" in atlas.reason("z", 0)
    with pytest.raises(AtlasError, match=r"layer 1 has no z: no attention .* no layer of this model has it"):
        atlas.place("z", 1)
    table = atlas.table()
    assert table[table.site == "z"].module.isna().all()


def test_encoder_decoder_stacks():
    config = AutoConfig.for_model(
        "t5", d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4, vocab_size=96
    )
    model = AutoModel.from_config(config)
    assert Atlas(model).n_layers == 3
    assert Atlas(model, stack="encoder").n_layers == 2
    assert Atlas(model).path("z", 0) == "decoder.block.0.layer.0.SelfAttention.o"
    with pytest.raises(AtlasError, match=r"it has encoder\.block, decoder\.block"):
        Atlas(model, stack="middle")


def test_names(tiny_model):
    atlas = Atlas(tiny_model("llama"))
    assert atlas.resolve("blocks.2.hook_resid_post") == ("resid_post", 2)
    assert atlas.resolve("blocks.0.mlp.hook_post") == ("mlp_post", 0)
    assert atlas.resolve("model.layers.1.mlp.down_proj") == ("mlp_post", 1)
    assert atlas.resolve("model.layers.1") == ("resid_post", 1)
    with pytest.raises(AtlasError, match="names no site"):
        atlas.resolve("model.layers.9.mlp")
    with pytest.raises(AtlasError, match="only z feeds"):
        _ = atlas.place("resid_post", 0).out_projection
    with pytest.raises(AtlasError, match="layers 0 to 2"):
        atlas.place("z", 3)
    with pytest.raises(AtlasError, match="'residual' is not a site"):
        atlas.place("residual", 0)


def test_one_probe_a_structure(tiny_model, monkeypatch):
    from entangle.models import atlas as module

    Atlas(tiny_model("llama", 0))
    monkeypatch.setattr(module, "trace", lambda *_: pytest.fail("probed again"))
    assert Atlas(tiny_model("llama", 1)).module("z", 0) is tiny_model("llama", 1).model.layers[0].self_attn.o_proj


def test_probing_leaves_no_trace(tiny_model):
    model = tiny_model("qwen3", 7)
    model.train()
    state = torch.get_rng_state()
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    Atlas(model)
    assert all(m.training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == before
    assert all(p.grad is None for p in model.parameters())
    model.eval()


def test_what_cannot_be_probed():
    with pytest.raises(EntangleError, match="pass example inputs"):
        Atlas(nn.Linear(2, 2))
    with pytest.raises(AtlasError, match="no list of blocks"):
        Atlas(nn.Linear(2, 2), inputs={"input": torch.randn(2, 7, 2)})
    with pytest.raises(EntangleError, match="compile"):
        Atlas(torch.compile(nn.Linear(2, 2)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_atlas_built_where_gradients_are_off_is_the_same(mode):
    """What reads the autograd graph must turn it on: steering is most often set up inside `no_grad`."""
    width = {torch.no_grad: 20, torch.inference_mode: 28}[mode]  # a structure that no other test has surveyed
    config = AutoConfig.for_model("gpt2", n_embd=width, n_layer=2, n_head=2, n_positions=16, vocab_size=50)
    model = AutoModelForCausalLM.from_config(config).eval()
    with mode():
        atlas = Atlas(model)
    assert atlas.n_heads(1) == 2
    assert atlas.path("z", 1) == "transformer.h.1.attn.c_proj"
