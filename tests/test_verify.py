"""`verify` passes on sound models, and fails where something between hook and model is not as it seems."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from entangle.errors import EntangleError
from entangle.models import Atlas
from entangle.verify import verify

TEXTS = ["the quick brown fox", "a cat sat on the mat and looked at the moon", "jumps"]


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_every_check_holds(causal_lm, tiny_tokenizer):
    before = n_hooks(causal_lm)
    report = verify(causal_lm, tiny_tokenizer, texts=TEXTS)
    assert report.passed
    assert [check.passed for check in report.checks].count(None) <= 1
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
    assert {check.name for check in report.checks if check.passed is False} == {"z through its projection is attn_out"}
    with pytest.raises(EntangleError, match="failed verification"):
        verify(model, tiny_tokenizer, texts=TEXTS, atlas=atlas)


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
