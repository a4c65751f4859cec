"""Conversations as prompts: the template's own tokens, one beginning, its stops, and scopes that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor

import entangle as en
from chatting import (
    ANSWERED,
    ASKED,
    BEGUN,
    ENDS,
    FEW_SHOT,
    KINDS,
    SYSTEM,
    TEMPLATES,
    TOLD,
    chat_model,
    chat_tokenizer,
    conversations,
)
from entangle.activations import answer_ends, prompt_tokens, turn_mask
from entangle.errors import EntangleError
from entangle.evaluation import Prompt, Sampling, Subject, continuations, prompt_rows
from entangle.evaluation.language.generation import sample
from entangle.models import batch_of


def by_template(tokenizer, messages, **arguments):
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, **arguments
    )
    return list(encoded["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_tokens_are_those_of_the_template_with_one_beginning_at_most(template, kind):
    tokenizer = chat_tokenizer(template, kind)
    prompts = conversations(template)
    rows = prompt_tokens(tokenizer, prompts)
    assert rows == [by_template(tokenizer, messages) for messages in prompts]
    begin = tokenizer.bos_token_id
    assert [row.count(begin) for row in rows] == [int(template in BEGUN)] * len(rows)
    begun = prompt_tokens(tokenizer, prompts, prepend_bos=True)
    assert [row.count(begin) for row in begun] == [1] * len(rows)
    assert [row[-len(plain) :] for row, plain in zip(begun, rows, strict=True)] == rows
    # What the template wrote, given as text, is no other prompt where it wrote a beginning.
    if template in BEGUN:
        written = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in prompts]
        assert prompt_tokens(tokenizer, written) == rows


def test_tools_of_all_prompts_or_of_one_are_told_by_the_template():
    tokenizer = chat_tokenizer("llama3")
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    expected = by_template(tokenizer, ASKED, tools=tools)
    assert expected != by_template(tokenizer, ASKED)
    assert prompt_tokens(tokenizer, [ASKED], chat_template_kwargs={"tools": tools}) == [expected]
    rows = prompt_tokens(tokenizer, [{"messages": ASKED, "tools": tools}, ASKED, "a cat"])
    assert rows[:2] == [expected, by_template(tokenizer, ASKED)]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_last_token_of_each_role(template):
    for kind in ("begins", "bare"):
        tokenizer = chat_tokenizer(template, kind)
        messages = [*TOLD, {"role": "assistant", "content": "very far away"}] if template in SYSTEM else ANSWERED
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        for role in {message["role"] for message in messages}:
            content = [message["content"] for message in messages if message["role"] == role][-1]
            end = text.index(content) + len(content)
            expected = len(tokenizer(text[:end], add_special_tokens=False)["input_ids"]) - 1
            acts = en.collect(
                chat_model(), tokenizer, [messages], sites="resid_post", tokens=en.Turn(role=role), progress=False
            )
            assert acts.rows.tolist() == [[0, expected]]
            assert acts.input_ids[0] == list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_mark_that_ends_an_answer_is_found(template):
    for kind in KINDS:
        tokenizer = chat_tokenizer(template, kind)
        assert answer_ends(tokenizer) == [tokenizer.convert_tokens_to_ids(ENDS[template])]


def changed_positions(model, tokenizer, rows, scope, steps=3):
    """Which tokens of prompts and greedy continuations an edit after the first block changed: [row, column]."""
    edit = en.AddDirection(torch.ones(32), "resid_post", 0)
    seen = []
    handle = model.model.layers[1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True
    )
    batch = batch_of(model, tokenizer, rows, side="left")
    batch.pop("position_ids", None)
    try:
        with en.steer(model, edit, alpha=3.0, tokens=scope):
            ids = model.generate(**batch, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, pad_token_id=0)
        steered = torch.cat(seen, 1)
        seen.clear()
        mask = torch.cat([batch["attention_mask"], torch.ones(len(rows), steps, dtype=torch.long)], 1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        model(input_ids=ids, attention_mask=mask, position_ids=positions)
    finally:
        handle.remove()
    change = steered - seen[0][:, : steered.shape[1]]
    size = change.abs().amax(-1)
    real = mask[:, : steered.shape[1]].bool()
    assert bool(((size < 1e-3) | (size > 0.1))[real].all())  # nothing in between: edited, or not
    return (size > 0.1) & real, real


@pytest.mark.parametrize("template", TEMPLATES)
def test_scopes_edit_the_positions_that_they_name(template):
    model, tokenizer = chat_model(), chat_tokenizer(template)
    prompts = conversations(template)
    rows = prompt_tokens(tokenizer, prompts)
    width = max(map(len, rows))

    changed, real = changed_positions(model, tokenizer, rows, "prompt")
    expected = real.clone()
    expected[:, width:] = False
    assert torch.equal(changed, expected)

    changed, real = changed_positions(model, tokenizer, rows, "generated")
    assert torch.equal(changed, real & ~expected)

    for turn in (en.Turn(role="user"), en.Turn(0, role="user", tokens="all"), en.Turn(role="user", tokens="first")):
        mask = turn_mask(tokenizer, prompts, turn)
        assert mask.shape == (len(rows), width)
        changed, _ = changed_positions(model, tokenizer, rows, mask)
        assert torch.equal(changed[:, :width], mask)
        assert not changed[:, width:].any()
        for row, tokens in zip(mask, rows, strict=True):
            said = tokenizer.decode([tokens[p - (width - len(tokens))] for p in row.nonzero().flatten().tolist()])
            if turn.tokens == "all":
                assert said.strip() in ("the cat sat", "where is the moon")
    # The next turn is another.
    assert not (turn_mask(tokenizer, [FEW_SHOT], en.Turn(0)) & turn_mask(tokenizer, [FEW_SHOT], en.Turn(1))).any()


class Dictated:
    """Decoding that says given tokens, whatever the model would."""

    def __init__(self, tokens):
        self.tokens = tokens

    def processor(self, subject, prompts):
        start = max(map(len, prompts))
        tokens = self.tokens

        class Say(LogitsProcessor):
            def __call__(self, input_ids, scores):
                said = torch.full_like(scores, -torch.inf)
                said[:, tokens[input_ids.shape[1] - start]] = 0
                return said

        return Say()


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_ends_where_the_template_would_end_it_and_a_text_does_not(template):
    model, tokenizer = chat_model(), chat_tokenizer(template)
    end = tokenizer.convert_tokens_to_ids(ENDS[template])
    a, b = tokenizer("ab", add_special_tokens=False)["input_ids"][:2]
    subject = Subject(model, tokenizer, decoding=Dictated([a, b, end, a, a]))
    said = sample(subject, [ASKED, "the cat", FEW_SHOT], Sampling(max_new_tokens=5), progress=False)
    answer = tokenizer.decode([a, b])
    assert said[0] == said[2] == [answer]
    assert said[1] == [answer if ENDS[template] == "</s>" else tokenizer.decode([a, b, a, a])]


def test_neither_the_batch_nor_what_is_beside_it_changes_an_answer():
    model, tokenizer = chat_model(), chat_tokenizer("chatml")
    few = {"samples": 2, "max_new_tokens": 5, "progress": False}
    together = continuations(model, tokenizer, [ASKED, "the cat", FEW_SHOT], **few)
    assert continuations(model, tokenizer, [FEW_SHOT], **few) == together[2:]
    assert continuations(model, tokenizer, ["the cat"], **few) == together[1:2]
    assert continuations(model, tokenizer, [ASKED, "the cat", FEW_SHOT], batch_tokens=1, **few) == together


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_instruction_is_the_system_turn_where_there_may_be_one(template):
    model, tokenizer = chat_model(), chat_tokenizer(template)
    with Prompt("Be kind. ").applied(model, tokenizer, 1) as subject:
        rows = prompt_rows(subject, [ASKED], Sampling(max_new_tokens=2))
        told = [{"role": "system", "content": "Be kind."}, *ASKED]
        if template not in SYSTEM:
            told = [{"role": "user", "content": "Be kind. where is the moon"}]
        assert rows == [by_template(tokenizer, told)]
        if template in SYSTEM:
            rows = prompt_rows(subject, [TOLD], Sampling(max_new_tokens=2))
            told = [{"role": "system", "content": "Be kind. by the river"}, *FEW_SHOT]
            assert rows == [by_template(tokenizer, told)]


@pytest.mark.parametrize(
    ("prompts", "error"),
    [
        ([ANSWERED], "conversation 0 ends with the assistant, so there is nothing to answer"),
        ([FEW_SHOT, TOLD], "chat template does not take conversation 1: System role not supported"),
        ([[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]], "roles must alternate"),
        ([[{"content": "a"}]], "prompt 0 must be a string or a list of messages with a role"),
        ([[]], "prompt 0 must be a string or a list of messages with a role"),
        ([{"messages": ASKED, "extra": 1}], "has 'extra' too"),
        (ASKED, "one conversation arrived"),
        ([[{"role": "user", "content": "the cat " * 200}]], "new ones leave room for"),
        (["the cat", ""], "prompt 1 is empty"),
        ([[{"role": "user", "content": "\ud83c"}]], "half a character"),
        ([[{"role": "user", "content": "<bos>"}], "a"], None),
    ],
)
def test_what_cannot_be_answered_is_one_line(prompts, error):
    tokenizer = chat_tokenizer("gemma")
    if error is None:
        continuations(chat_model(), tokenizer, prompts, max_new_tokens=2, progress=False)
        return
    with pytest.raises(EntangleError, match=error) as caught:
        continuations(chat_model(), tokenizer, prompts, max_new_tokens=2, progress=False)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_template_and_one_that_begins_twice_are_refused():
    tokenizer = chat_tokenizer("gemma")
    tokenizer.chat_template = "{{ bos_token + bos_token }}{{ messages[0].content }}"
    with pytest.raises(EntangleError, match="begins twice"):
        continuations(chat_model(), tokenizer, [ASKED], progress=False)
    tokenizer.chat_template = None
    with pytest.raises(EntangleError, match="chat template, and this one has none"):
        continuations(chat_model(), tokenizer, [ASKED], progress=False)
    own = {"chat_template": "{{ messages[0].content }}"}
    assert len(continuations(chat_model(), tokenizer, [ASKED], chat_template_kwargs=own, progress=False)) == 1


def test_an_answer_that_was_begun_is_gone_on_with_if_asked():
    tokenizer = chat_tokenizer("chatml")
    goes_on = {"continue_final_message": True}
    (row,) = prompt_tokens(tokenizer, [ANSWERED], chat_template_kwargs=goes_on)
    assert tokenizer.decode(row).endswith("very far away")
    assert np.size(row) > 0


@pytest.mark.parametrize("kind", ["begins", "bare"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_put_before_a_whole_conversation_never_parts_the_mark_of_its_first_turn(template, kind):
    """As self-debiasing does; a batch of one kind begins with one special token, which is no beginning of a text."""
    tokenizer = chat_tokenizer(template, kind)
    rows = prompt_tokens(tokenizer, [ASKED, FEW_SHOT])
    (text,) = (tokenizer("rude words ", add_special_tokens=False)["input_ids"],)
    placed, shift = Subject(chat_model(), tokenizer, prefix="rude words ").put_before(rows)
    begun = [tokenizer.bos_token_id] if template in BEGUN or kind == "begins" else []
    for row, each in zip(rows, placed, strict=True):
        rest = row[1:] if template in BEGUN else row
        assert each == [*begun, *text, *rest]
        assert shift == len(each) - len(row)


def test_a_beginning_that_one_text_has_makes_no_difference_to_another():
    subject = Subject(chat_model(), chat_tokenizer("chatml", "bare"), prefix="rude words ")
    begin = subject.tokenizer.bos_token_id
    rows = [[begin, 40, 41], [40, 41, 42]]
    together, shift = subject.put_before(rows)
    alone = [subject.put_before([row]) for row in rows]
    assert together == [placed[0] for placed, _ in alone]
    assert {shift} == {own for _, own in alone}
    assert together[0][0] == begin not in together[1]
