"""One edit, four ways to apply it: hooks, weights, lm-evaluation-harness and TransformerLens give the same logits."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from entangle.interventions import ITI, Ablate, AddDirection, steer, transformer_lens_hooks
from entangle.models import Atlas

TYPES = ["gpt2", "gpt_neox", "llama", "olmo2", "qwen3", "gemma3_text", "mistral", "phi", "qwen2"]
SHARED = ["olmo2-4m-clean", "olmo2-4m-toxic10"]
CLOSE = {"atol": 1e-4, "rtol": 0}
ALPHA = 3


def some_iti(model, k=6):
    atlas = Atlas(model)
    generator = torch.Generator().manual_seed(0)
    everywhere = list(itertools.product(atlas.layers("z"), range(atlas.n_heads(0))))
    directions = torch.nn.functional.normalize(torch.randn(k, atlas.d_head(0), generator=generator), dim=1)
    chosen = torch.randperm(len(everywhere), generator=generator)[:k].tolist()
    return ITI([everywhere[i] for i in chosen], directions, torch.rand(k, generator=generator) + 0.5)


@pytest.fixture
def checkpoint(tiny_model, tiny_tokenizer, tmp_path):
    """A tiny model as a directory that any tool can load."""

    def save(model_type):
        folder = tmp_path / model_type
        tiny_model(model_type).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def harness_logits(folder, edit, model, ids, tmp_path, alpha=ALPHA):
    """Of lm-evaluation-harness's own steered model, loaded from a checkpoint and our file."""
    pytest.importorskip("lm_eval", reason="needs lm_eval")
    from lm_eval.models.hf_steered import SteeredModel

    path = edit.export(tmp_path / "steer.pt", format="lm-eval", model=model, alpha=alpha)
    theirs = SteeredModel(pretrained=str(folder), steer_path=str(path), device="cpu", dtype="float32")
    return theirs._model_call(ids)


def lens_logits(folder, edit, model, ids, alpha=ALPHA):
    """Of TransformerLens's bridge, loaded from a checkpoint and run with our hooks; without them, the plain model's."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(bridge(ids), logits(model, ids), **CLOSE)
        return bridge.run_with_hooks(ids, fwd_hooks=transformer_lens_hooks(edit, model, alpha=alpha))


@pytest.mark.parametrize("model_type", TYPES)
def test_iti_on_tiny_models(tiny_model, checkpoint, tmp_path, model_type):
    model, folder = tiny_model(model_type), checkpoint(model_type)
    iti, ids = some_iti(model), torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))
    with steer(model, iti, alpha=ALPHA):
        hooks = logits(model, ids)
    assert (hooks - logits(model, ids)).abs().max() > 0.3
    torch.testing.assert_close(logits(iti.bake(model, ALPHA), ids), hooks, **CLOSE)
    torch.testing.assert_close(harness_logits(folder, iti, model, ids, tmp_path), hooks, **CLOSE)
    torch.testing.assert_close(lens_logits(folder, iti, model, ids), hooks, **CLOSE)


@pytest.mark.shared
@pytest.mark.parametrize("name", SHARED)
def test_iti_on_trained_models(shared, tmp_path, name):
    folder = shared / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(["<|endoftext|>The ship came into the harbour at night."] * 2)
    ids = torch.tensor(ids["input_ids"])
    iti = some_iti(model, k=30)
    with steer(model, iti, alpha=8):
        hooks = logits(model, ids)
    assert (hooks - logits(model, ids)).abs().max() > 1
    iti.bake(model, 8).save_pretrained(tmp_path / "baked")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "baked").eval()
    torch.testing.assert_close(logits(stock, ids), hooks, **CLOSE)
    torch.testing.assert_close(harness_logits(folder, iti, model, ids, tmp_path, alpha=8), hooks, **CLOSE)
    torch.testing.assert_close(lens_logits(folder, iti, model, ids, alpha=8), hooks, **CLOSE)


@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "resid_post"])
def test_vectors_at_module_outputs_in_the_harness(tiny_model, checkpoint, tmp_path, site):
    model, folder = tiny_model("gpt_neox"), checkpoint("gpt_neox")
    ids = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))
    edit = AddDirection(torch.randn(32, generator=torch.Generator().manual_seed(1)), site, 1)
    with steer(model, edit, alpha=ALPHA):
        hooks = logits(model, ids)
    torch.testing.assert_close(harness_logits(folder, edit, model, ids, tmp_path), hooks, **CLOSE)


@pytest.mark.parametrize("site", ["z", "mlp_out", "resid_post"])
def test_maps_in_transformer_lens(tiny_model, checkpoint, site):
    model, folder = tiny_model("llama"), checkpoint("llama")
    ids = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))
    edit = Ablate(torch.randn(Atlas(model).size(site, 1), generator=torch.Generator().manual_seed(1)), site, 1)
    with steer(model, edit):
        hooks = logits(model, ids)
    torch.testing.assert_close(lens_logits(folder, edit, model, ids, alpha=1), hooks, **CLOSE)
