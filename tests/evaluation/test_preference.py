"""CHES of pairs through a model is the definition on the model's own hidden states."""

from __future__ import annotations

import pytest
import torch

from entangle.concepts.preference import preference_ches
from entangle.errors import EntangleError

PROMPTS = ["the cat", "a quick brown", "the moon"]
GOOD = [" sat on the mat", " fox", " looked at the lazy dog"]
BAD = [" jumps", " fox jumps over", " sat"]


def states(model, tokenizer, prompt, answer):
    begin = tokenizer(prompt)["input_ids"]
    ids = begin + tokenizer(answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    return hidden[len(begin) - 1 : -1]


@pytest.mark.parametrize("model_type", ["gpt2", "olmo2"])
@pytest.mark.parametrize("normalised", [True, False])
def test_agrees_with_the_definition(tiny_model, tiny_tokenizer, model_type, normalised):
    model = tiny_model(model_type)
    found = preference_ches(model, tiny_tokenizer, PROMPTS, GOOD, BAD, length_normalised=normalised, batch_tokens=24)
    for i in range(3):
        h, g = (states(model, tiny_tokenizer, PROMPTS[i], answers[i]) for answers in (GOOD, BAD))
        h, g = (h.mean(0), g.mean(0)) if normalised else (h.sum(0), g.sum(0))
        assert float(found[i]) == pytest.approx(float(h @ g - h @ h), rel=1e-3, abs=1e-3)


def test_equal_answers_score_zero_and_no_hook_is_left(tiny_model, tiny_tokenizer):
    model = tiny_model("olmo2")
    assert preference_ches(model, tiny_tokenizer, PROMPTS, GOOD, GOOD).tolist() == pytest.approx([0] * 3, abs=1e-3)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_bad_pairs_are_one_clear_line(tiny_model, tiny_tokenizer):
    model = tiny_model("olmo2")
    for arguments, message in [((PROMPTS, GOOD, BAD[:2]), "as many"), ((PROMPTS, GOOD, ["", "a", "b"]), "no token")]:
        with pytest.raises(EntangleError, match=message) as caught:
            preference_ches(model, tiny_tokenizer, *arguments)
        assert "\n" not in str(caught.value)
