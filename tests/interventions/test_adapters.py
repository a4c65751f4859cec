"""Scopes on models that PEFT wraps: adapters in the weights, and virtual tokens before the text."""

from __future__ import annotations

import copy

import pytest
import torch
from whole import SCOPES, generated, prompts, push, whole

import tiny
from entangle.errors import EntangleError
from entangle.interventions import AddDirection, steer

peft = pytest.importorskip("peft")

EDIT = AddDirection(push(), "resid_post", 1)
CONFIGS = {
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
}


def lora():
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    return peft.get_peft_model(copy.deepcopy(tiny.build("llama", 0)), settings).eval()


@pytest.fixture(scope="module", params=CONFIGS)
def virtual(request):
    torch.manual_seed(0)
    return peft.get_peft_model(copy.deepcopy(tiny.build("llama", 0)), CONFIGS[request.param]()).eval()


@pytest.mark.parametrize("merged", [False, True])
def test_a_lora_model_is_followed_with_the_adapter_beside_the_weights_and_in_them(merged):
    model, ids = lora(), prompts(2, 6)
    if merged:
        model.merge_adapter()
    for tokens in SCOPES:
        out, count = generated(model, tokens, ids, 5)
        assert torch.equal(out, whole(model, tokens, ids, 5))
        assert count == 2 * {"prompt": 6, "generated": 4, 3: 7, -2: 6}[tokens]


@pytest.mark.parametrize("outside", [True, False])
def test_the_wrapper_may_be_steered_and_the_model_in_it_run_or_the_other_way_round(outside):
    model, ids = lora(), prompts(2, 6)
    inner = model.get_base_model()
    run, steered = (inner, model) if outside else (model, inner)
    for tokens in SCOPES:
        out, _ = generated(run, tokens, ids, 5, steered=steered)
        assert torch.equal(out, whole(model, tokens, ids, 5))
    assert "generate" not in inner.__dict__
    assert "prepare_inputs_for_generation" not in inner.__dict__


COUNTS = [("prompt", 14), ("generated", 0), (5, 4), (-1, 2), (-9, 14)]


@pytest.mark.parametrize("masked", [True, False])
def test_virtual_tokens_are_part_of_no_prompt(virtual, masked):
    ids = prompts(2, 7)
    batch = {"input_ids": ids, **({"attention_mask": torch.ones_like(ids)} if masked else {})}
    for tokens, count in [*COUNTS, (torch.ones_like(ids).bool(), 14)]:
        with steer(virtual, EDIT, tokens=tokens) as handle, torch.no_grad():
            virtual(**batch)
        assert handle.counts == [count]


def test_the_first_new_token_after_virtual_ones_knows_nothing_of_what_is_generated(virtual):
    ids = prompts(2, 7)

    def first(*edits, tokens="all"):
        with steer(virtual, list(edits), tokens=tokens) as handle:
            out = virtual.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=1,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        return out.logits[0], handle.counts

    plain = first()[0]
    for tokens, count in COUNTS:
        steered, counts = first(EDIT, tokens=tokens)
        assert counts == [count]
        assert torch.equal(plain, steered) == (count == 0)


def test_padding_after_virtual_tokens_is_not_counted(virtual):
    ids, mask = prompts(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    for tokens, count in [("prompt", 11), ("generated", 0), (3, 4 + 1), (-1, 2), (-9, 11)]:
        _, counted = generated(virtual, tokens, ids, 1, attention_mask=mask)
        assert counted == count


def test_generation_after_virtual_tokens_is_followed_or_refused(virtual):
    """Where PEFT and transformers disagree on the cache's name, PEFT puts its virtual tokens before every token."""
    ids = prompts(2, 7)
    for tokens, count in [("prompt", 14), ("generated", 8), (5, 4 + 8), (-1, 2 + 8)]:
        try:
            counted = generated(virtual, tokens, ids, 5)[1]
        except EntangleError as error:
            counted = str(error)
        assert counted == count or "this pass computes: generate has 8 tokens a row so far" in counted


def test_without_its_adapter_a_model_has_no_virtual_tokens(virtual):
    for tokens, count in [("prompt", 14), ("generated", 8), (5, 4 + 8), (-1, 2 + 8)]:
        with virtual.disable_adapter():
            _, counted = generated(virtual, tokens, prompts(2, 7), 5)
        assert counted == count
