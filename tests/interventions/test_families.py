"""Scopes in every family that generates: the same text as when every token is computed from the whole of it anew."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from whole import SCOPES, generated, prompts, whole

import zoo
from entangle.models import Atlas

# One of each kind of memory: keys and values, sliding windows, compressed, recurrent, convolutions, mixtures of them.
KINDS = ["bloom", "deepseek_v3", "falcon", "gemma3_text", "gpt_oss", "granitemoehybrid", "lfm2_moe", "qwen3_moe"]
SLOW = {"falcon_h1", "kimi_linear", "nemotron_h"}  # minutes, in plain PyTorch


def generating(family):
    """A tiny model of the family with its first block's output to edit; skips where there is none."""
    try:
        # BERT and its kin look both ways unless told to decode, and what looks both ways has no cache to go on from.
        decodes = {"is_decoder": True} if hasattr(AutoConfig.for_model(family), "is_decoder") else {}
        model = zoo.tiny(family, AutoModelForCausalLM, **decodes)
        place = Atlas(model).place("resid_post", 0)
    except Exception as error:  # a family that needs sizes or a package of its own
        pytest.skip(f"no tiny model, or no residual stream in it: {error}"[:100])
    if place.side != "output" or place.turn is not None or place.layout != "batch pos" or not model.can_generate():
        pytest.skip("its blocks are shared, or it does not generate")
    model.generation_config.eos_token_id = None
    return model


def check(family):
    model, ids, n_new = generating(family), prompts(2, 6), 3
    try:
        plain, anew = generated(model, None, ids, n_new)[0], whole(model, None, ids, n_new)
    except (RuntimeError, IndexError, TypeError, AttributeError) as error:
        pytest.skip(f"it does not generate from ids alone: {error}"[:100])
    if not torch.equal(plain, anew):
        pytest.skip("with its cache and without it says different things, also unsteered")
    for tokens in SCOPES:
        assert torch.equal(generated(model, tokens, ids, n_new)[0], whole(model, tokens, ids, n_new)), tokens


@pytest.mark.parametrize("family", KINDS)
def test_the_tokens_named_are_edited_whatever_the_model_remembers_by(family):
    check(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(CAUSAL) - set(KINDS) - SLOW))
def test_the_tokens_named_are_edited_in_every_family(family):
    check(family)
