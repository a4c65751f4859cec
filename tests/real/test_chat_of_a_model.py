"""A pretrained model that answers in turns: its template, its stop, and what a judge made of it knows."""

from __future__ import annotations

import pytest

import entangle as en
from entangle.activations import answer_ends, prompt_tokens
from entangle.evaluation import continuations

pytestmark = pytest.mark.real

ASKED = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
STATEMENTS = [
    *("Paris is in France.", "Two and two make four.", "Ice is frozen water.", "A dog is an animal."),
    *("Paris is in Japan.", "Two and two make nine.", "Ice is melted iron.", "A dog is a kind of metal."),
]


@pytest.fixture(scope="module")
def chat(tokenizer):
    if not tokenizer.chat_template:
        pytest.skip("this model does not answer in turns")
    return tokenizer


def test_a_question_is_written_by_its_template_and_answered_to_its_end(model, chat):
    encoded = chat.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert prompt_tokens(chat, [ASKED]) == [list(encoded["input_ids"])]
    assert len(answer_ends(chat)) == 1
    (said,) = continuations(model, chat, [ASKED], top_p=1e-6, max_new_tokens=24, progress=False)
    assert len(chat(said[0], add_special_tokens=False)["input_ids"]) < 24  # it stopped by itself
    assert "Paris" in said[0]


def test_a_judge_tells_what_everybody_knows_and_is_asked_in_both_orders(model, chat):
    judge = en.JudgeScorer(model, chat, "Is the following statement true?")
    p, mass = judge.ask(STATEMENTS)
    assert p.shape == (8, 2)
    assert mass.mean() > 0.5  # it answers with the answers
    assert p[:4].mean() > p[4:].mean()
