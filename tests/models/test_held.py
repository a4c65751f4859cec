"""Models that another tool holds are the models in them: recognised by structure, measured as they are."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TextGenerationPipeline

import entangle as en
from entangle.evaluation.language.generation import Sampling, sample
from entangle.models import fingerprint, held, is_bridged, own_tokenizer, underlying

TEXTS = ["the quick brown fox", "a cat sat on the mat and looked", "over the lazy dog", "the moon", "jumps over a cat"]
EDIT = en.AddDirection(torch.linspace(-1, 1, 32), "resid_post", 1)


@pytest.fixture
def pipe(tiny_model, tiny_tokenizer):
    return TextGenerationPipeline(model=tiny_model("llama"), tokenizer=tiny_tokenizer)


@pytest.fixture
def bridge(tiny_model, tiny_tokenizer, tmp_path):
    bridges = pytest.importorskip("transformer_lens.model_bridge", reason="needs transformer-lens")
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    return bridges.TransformerBridge.boot_transformers(str(tmp_path), device="cpu")


def measured(model, tokenizer):
    """What every entry makes of a model, as numbers."""
    ids = tokenizer(TEXTS[0], return_tensors="pt", return_token_type_ids=False).input_ids
    acts = en.collect(model, tokenizer, TEXTS, sites=["z", "resid_post"], progress=False)
    with en.steer(model, EDIT, alpha=0.5), torch.no_grad():
        steered = underlying(model)(ids).logits
    metric = en.ShiftMetric.fit(model, tokenizer, TEXTS * 8, samples=2, layers=[1], progress=False)
    return {
        "z": acts["z"],
        "resid_post": acts["resid_post"],
        "steered": steered,
        "metric": metric.matrix("resid_post", 1),
        "alpha": torch.tensor(en.strength_for(model, tokenizer, EDIT, TEXTS, kl=0.02)),
        "shift": torch.tensor(en.evaluation.language_shift(model, tokenizer, TEXTS, EDIT).kl),
        "ce": torch.tensor(np.asarray(en.evaluation.cross_entropy(model, tokenizer, TEXTS).values)),
    }


def same(one, other, atol=1e-5):
    for name, values in one.items():
        torch.testing.assert_close(other[name], values, rtol=1e-4, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def test_a_pipeline_gives_what_its_model_gives_and_brings_its_tokenizer(pipe, tiny_model, tiny_tokenizer):
    bare = measured(tiny_model("llama"), tiny_tokenizer)
    held_by_pipe = measured(pipe, tiny_tokenizer)
    same(bare, held_by_pipe, atol=0)
    assert torch.equal(en.collect(pipe, None, TEXTS, progress=False)["z"], bare["z"])
    assert en.verify(pipe, None).passed
    assert fingerprint(pipe) == fingerprint(tiny_model("llama"))
    with en.steer(pipe, EDIT, alpha=20), torch.no_grad():
        edited = pipe("the cat", max_new_tokens=4, do_sample=False, return_full_text=False)
    assert edited != pipe("the cat", max_new_tokens=4, do_sample=False, return_full_text=False)


@pytest.mark.slow
def test_a_bridge_gives_what_its_model_gives(bridge, tiny_model, tiny_tokenizer):
    bare = tiny_model("llama")
    same(measured(bare, tiny_tokenizer), measured(bridge, tiny_tokenizer), atol=1e-4)
    assert is_bridged(underlying(bridge))
    assert not is_bridged(bare)
    options = {"max_new_tokens": 6, "progress": False}
    for alpha in (0, 0.5):  # a bridge's model reads no cache, so that it must generate without one
        with en.steer(bare, EDIT, alpha=alpha):
            here = en.evaluation.continuations(bare, tiny_tokenizer, TEXTS, **options)
        with en.steer(bridge, EDIT, alpha=alpha):
            assert en.evaluation.continuations(bridge, tiny_tokenizer, TEXTS, **options) == here
    ways = [en.evaluation.SelfDebias(anti_prompt="over the lazy dog") for _ in range(2)]
    found = []
    for model, way in zip((bare, underlying(bridge)), ways, strict=True):
        with way.applied(model, tiny_tokenizer, 10.0) as subject:
            found.append(sample(subject, TEXTS, Sampling(max_new_tokens=5), progress=False))
    assert found[0] == found[1]


def test_an_adapted_model_gives_what_the_same_weights_give_when_merged(tiny_tokenizer):
    peft = pytest.importorskip("peft", reason="needs peft")
    from transformers import AutoModelForCausalLM

    import zoo

    adapted = peft.get_peft_model(
        zoo.tiny("llama", AutoModelForCausalLM),
        peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False),
    ).eval()
    width = underlying(adapted).config.hidden_size
    edit = en.AddDirection(torch.ones(width), "resid_post", 1)
    here = en.collect(adapted, tiny_tokenizer, TEXTS, sites=["z", "resid_post"], progress=False)
    ids = tiny_tokenizer(TEXTS[0], return_tensors="pt", return_token_type_ids=False).input_ids
    with en.steer(adapted, edit, alpha=0.5), torch.no_grad():
        steered = adapted(ids).logits
    assert en.verify(adapted, tiny_tokenizer).passed
    merged = adapted.merge_and_unload()
    there = en.collect(merged, tiny_tokenizer, TEXTS, sites=["z", "resid_post"], progress=False)
    for site in here.sites:
        torch.testing.assert_close(here[site], there[site], rtol=1e-4, atol=1e-5)
    with en.steer(merged, edit, alpha=0.5), torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, steered, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_study_of_a_pipeline_is_the_study_of_its_model(pipe, tiny_model, tiny_tokenizer):
    texts = [f"{word} {end}" for word in ("the cat", "a dog") for end in TEXTS * 10]
    labels = [0] * 50 + [1] * 50
    settings = {"n_permutations": 20, "n_resamples": 100, "progress": False, "forecast": False}
    texts = [f"{text} {'fox ' * (i % 7 + 1)}{'mat ' * (i // 7)}" for i, text in enumerate(texts)]
    bare = en.study(tiny_model("llama"), tiny_tokenizer, texts, labels, **settings)
    piped = en.study(pipe, None, texts, labels, **settings)
    assert torch.equal(bare.probes["z"].accuracy, piped.probes["z"].accuracy)


@pytest.mark.slow
def test_a_study_of_an_adapted_model_is_the_study_of_its_merged_weights(tiny_model, tiny_tokenizer, monkeypatch):
    peft = pytest.importorskip("peft", reason="needs peft")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bridges"))
    from studies import study_differences

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(deepcopy(tiny_model("llama")), config).eval()
    merged = deepcopy(adapted).merge_and_unload()
    differences = study_differences(merged, tiny_tokenizer, adapted, tiny_tokenizer)
    assert max(differences.values()) < 1e-4, differences
    with adapted.disable_adapter():  # the control: without the adapter it is another model
        differences = study_differences(merged, tiny_tokenizer, adapted, tiny_tokenizer)
    assert max(differences.values()) > 1e-2, differences


def test_what_holds_no_model_is_one_clear_line(tiny_tokenizer):
    for thing in (SimpleNamespace(tokenizer=tiny_tokenizer), 3, "a/path", SimpleNamespace(model="gpt2")):
        with pytest.raises(en.EntangleError, match="a model must be a torch module") as caught:
            en.collect(thing, tiny_tokenizer, TEXTS)
        assert "\n" not in str(caught.value)


def test_a_holder_whose_weights_are_not_there_yet_says_how_to_load_them():
    with torch.device("meta"):
        empty = SimpleNamespace(_module=nn.Linear(2, 2))
    with pytest.raises(en.EntangleError, match="dispatch=True"):
        held(empty)


def test_a_module_is_itself_whatever_it_calls_its_parts():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(2, 2)

    wrapper = Wrapper()
    assert held(wrapper) is wrapper is underlying(wrapper)
    assert held(SimpleNamespace(model=SimpleNamespace(_module=wrapper))) is wrapper
    assert own_tokenizer(wrapper, None) is None
    assert own_tokenizer(SimpleNamespace(tokenizer="its own"), "given") == "given"
