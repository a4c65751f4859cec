"""`verify` passes on sound models, and fails where something between hook and model is not as it seems."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import AutoModel

import zoo
from entangle.errors import EntangleError
from entangle.models import Atlas
from entangle.models.rounding import rounded_at_random
from entangle.verify import verify

TEXTS = ["the quick brown fox", "a cat sat on the mat and looked at the moon", "jumps"]


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_every_check_holds(causal_lm, tiny_tokenizer):
    before = n_hooks(causal_lm)
    report = verify(causal_lm, tiny_tokenizer, texts=TEXTS)
    assert report.passed
    assert [check.passed for check in report.checks].count(None) <= 2
    assert len(report.to_frame()) == len(report.checks)
    assert "FAILED" not in str(report)
    assert n_hooks(causal_lm) == before


def test_encoder(tiny_model, tiny_tokenizer):
    assert verify(tiny_model("bert"), tiny_tokenizer, texts=TEXTS).passed


def test_wrong_place_is_noticed(tiny_model, tiny_tokenizer):
    """The control: an atlas that takes q_proj for the output projection does not pass."""
    from dataclasses import replace

    model = tiny_model("llama")
    atlas = Atlas(model)
    sites = tuple(dict(layer) for layer in atlas._found)
    sites[1]["z"] = replace(sites[1]["z"], path="model.layers.1.self_attn.q_proj")
    atlas._found = sites
    report = verify(model, tiny_tokenizer, texts=TEXTS, atlas=atlas, raises=False)
    failed = {check.name for check in report.checks if check.passed is False}
    assert failed == {"z through its projection is attn_out", "adding a vector moves what it should"}
    with pytest.raises(EntangleError, match="failed verification"):
        verify(model, tiny_tokenizer, texts=TEXTS, atlas=atlas)


@pytest.mark.parametrize(("site", "part"), [("mlp_post", "mlp.down_proj"), ("mlp_out", "mlp")])
def test_a_hook_in_the_layer_beside_is_noticed(site, part, tiny_model, tiny_tokenizer):
    """It fires as often, and sees tensors of the same shape that depend on padding as little."""
    from dataclasses import replace

    model = tiny_model("llama")
    atlas = Atlas(model)
    sites = tuple(dict(layer) for layer in atlas._found)
    sites[1][site] = replace(sites[1][site], path=f"model.layers.0.{part}")
    atlas._found = sites
    report = verify(model, tiny_tokenizer, texts=TEXTS, atlas=atlas, raises=False)
    failed = {check.name for check in report.checks if check.passed is False}
    assert failed == {"mlp_post through its projection is mlp_out", "adding a vector moves what it should"}


@pytest.mark.parametrize(("model_type", "bypassed"), [("llama", False), ("bert", True)])
def test_a_stream_that_takes_the_other_way_is_noticed(model_type, bypassed, tiny_model, tiny_tokenizer):
    """An edit of resid_mid is added again at the end of the layer only where the residual stream goes round the MLP."""
    from dataclasses import replace

    model = tiny_model(model_type)
    atlas = Atlas(model)
    assert all(atlas.place("resid_mid", layer).bypassed is not bypassed for layer in atlas.layers("resid_mid"))
    sites = tuple(dict(layer) for layer in atlas._found)
    sites[1]["resid_mid"] = replace(sites[1]["resid_mid"], bypassed=bypassed)
    atlas._found = sites
    report = verify(model, tiny_tokenizer, texts=TEXTS, atlas=atlas, raises=False)
    failed = {check.name for check in report.checks if check.passed is False}
    assert failed == {"adding a vector moves what it should"}


class Unmasked(nn.Module):
    """A model that looks at its padding."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.main_input_name = model, model.config, "input_ids"

    def forward(self, input_ids, attention_mask=None):
        return self.model(input_ids, attention_mask=torch.ones_like(input_ids))


def test_a_model_that_sees_padding_is_noticed(tiny_model, tiny_tokenizer):
    report = verify(Unmasked(tiny_model("bert")), tiny_tokenizer, texts=TEXTS, raises=False)
    failed = [check.name for check in report.checks if check.passed is False]
    assert "a padded batch equals each text alone" in failed


def test_compiled_is_refused(tiny_model, tiny_tokenizer):
    with pytest.raises(EntangleError, match=r"compile"):
        verify(torch.compile(tiny_model("gpt2")), tiny_tokenizer)


def test_equal_lengths_are_refused(tiny_model, tiny_tokenizer):
    with pytest.raises(EntangleError, match="different lengths"):
        verify(tiny_model("gpt2"), tiny_tokenizer, texts=["a cat", "a cat"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert"])
def test_half_precision_is_held_to_its_own_noise(model_type, dtype, tiny_model, tiny_tokenizer):
    """The bound is measured, not chosen; a model that looks at its padding is still noticed above it."""
    model = deepcopy(tiny_model(model_type)).to(dtype)
    report = verify(model, tiny_tokenizer, texts=TEXTS)
    floor = next(check for check in report.checks if check.name == "noise floor")
    bounded = [check for check in report.checks if check.allowed is not None and check is not floor]
    assert torch.finfo(dtype).eps / 2 < floor.measured < 0.25
    assert {check.allowed for check in bounded} == {2 * floor.measured}
    assert f"{floor.measured:.1e}" in str(report)
    if model_type == "bert":
        report = verify(Unmasked(model), tiny_tokenizer, texts=TEXTS, raises=False)
        failed = [check.name for check in report.checks if check.passed is False]
        assert failed == ["a padded batch equals each text alone"]


def test_rounding_at_random_moves_little_and_leaves_nothing(tiny_model):
    model, ids = deepcopy(tiny_model("llama")), torch.arange(3, 10)[None]
    before = n_hooks(model)  # transformers may have left some of its own
    with torch.no_grad():
        plain = model(ids).logits
        with rounded_at_random(model, 0):
            moved = model(ids).logits
            assert n_hooks(model) > before
        with rounded_at_random(model, 0):
            assert torch.equal(model(ids).logits, moved)
        assert n_hooks(model) == before
        assert torch.equal(model(ids).logits, plain)
    assert 0 < (moved - plain).abs().max() < 1e-4 * plain.abs().max()


@pytest.mark.parametrize(
    ("family", "stack"), [("t5", "encoder"), ("t5", "decoder"), ("vit", None), ("hubert", None), ("albert", None)]
)
def test_other_kinds_of_model(family, stack, tiny_tokenizer):
    model = zoo.tiny(family, AutoModel)
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.model_max_length = 512  # T5 has no limit of its own
    report = verify(model, tokenizer, atlas=Atlas(model, stack=stack))
    checked = {check.name for check in report.checks if check.passed}
    assert {"a padded batch equals each text alone", "z through its projection is attn_out"} <= checked
    assert "resid_post is hidden_states[layer + 1]" in checked
