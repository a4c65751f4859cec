"""Hooks in TransformerLens at the names we give act where ours do, on every family that both know."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import zoo
from entangle import AddDirection, Atlas, AtlasError, collect, steer
from entangle.interventions import transformer_lens_hooks
from entangle.models.atlas import ADDED_NAMES, HOOK_NAMES, hook_name

FAMILIES = ["olmo2", "gemma2", "gemma3_text", "llama", "gpt2", "gpt_neox", "qwen2", "qwen3", "mistral", "phi"]
NORMED = {"olmo2", "gemma2", "gemma3_text"}  # a norm lies between projection and residual stream
BY_DEFAULT = {"olmo2", "gpt_neox"}
IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def families():
    return [pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.slow) for name in FAMILIES]


@pytest.fixture(params=families())
def pair(request, tmp_path, tiny_tokenizer):
    """A family's name, a tiny model of it, and the same in a bridge."""
    bridges = pytest.importorskip("transformer_lens.model_bridge", reason="needs transformer-lens")
    model = zoo.tiny(request.param, AutoModelForCausalLM)
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    return request.param, model, bridges.TransformerBridge.boot_transformers(str(tmp_path), device="cpu")


def test_edits_and_names_agree_at_every_site(pair):
    family, model, bridge = pair
    atlas = Atlas(model)
    with torch.no_grad():
        plain, theirs = model(IDS).logits, bridge(IDS)
        torch.testing.assert_close(theirs, plain, rtol=0, atol=1e-4)
        _, cache = bridge.run_with_cache(IDS)
        for site in atlas.sites:
            generator = torch.Generator().manual_seed(1)
            edit = AddDirection(torch.randn(atlas.size(site, 1), generator=generator), site, 1)
            with steer(model, edit, alpha=2):
                ours = model(IDS).logits
            hooks = transformer_lens_hooks(edit, model, alpha=2)
            assert (ours - plain).abs().max() > 1e-2
            assert (bridge.run_with_hooks(IDS, fwd_hooks=hooks) - ours).abs().max() < 1e-4
            here = collect(model, None, {"input_ids": IDS}, sites=site, layers=1, tokens="all", progress=False)[site]
            names = [f"blocks.1.{name}" for name, other in (HOOK_NAMES | ADDED_NAMES).items() if other == site]
            for name in (name for name in names if name in cache):
                same = (cache[name].reshape(-1) - here.reshape(-1)).abs().max() < 1e-4 * max(1, here.abs().max())
                if name.split(".")[-1] in ADDED_NAMES and family in NORMED:
                    assert not same  # the control: the tensor after the norm is another one
                    with pytest.raises(AtlasError, match="no site here"):
                        atlas.resolve(name)
                else:
                    assert same
                    assert atlas.resolve(name) == (site, 1)
            assert hook_name(site, 1) in cache
