"""Each turn of a conversation, whatever the template makes of it; told apart from what only looks like it."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from entangle.activations import Turn, collect
from entangle.activations.inputs.chat import generated_span, read_conversations, turn_span
from entangle.errors import EntangleError

CHATML = (
    "{% for m in messages %}{{ '<s>' + m.role + ' ' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '</s>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '</s>' }}{% endif %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant ' }}{% endif %}"
)
UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# The system's message goes into the first user's; the user's alone would be written otherwise; contents are trimmed.
FOLDED = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '<s>[ ' + (system + ' | ' if loop.first and system else '') }}"
    "{{ m.content | trim + ' ]' }}"
    "{% else %}{{ ' ' + m.content | trim + '</s>' }}{% endif %}{% endfor %}"
)
# Thoughts are kept in the last answer only.
THINKING = (
    "{% for m in messages %}{% set said = m.content if loop.last else m.content.split('</think>')[-1] %}"
    "{{ '<s>' + m.role + ' ' + said + '</s>' }}{% endfor %}"
)
CONVERSATIONS = [
    [
        {"role": "system", "content": "fox"},
        {"role": "user", "content": "user"},  # also what the header says
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "dog"},
        {"role": "assistant", "content": "over the"},
    ],
    [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "a cat"}],
    [{"role": "user", "content": " looked at "}, {"role": "assistant", "content": "the moon"}],
]


@pytest.fixture
def tokenizer(tiny_tokenizer):
    def with_template(template):
        tokenizer = deepcopy(tiny_tokenizer)
        tokenizer.chat_template = template
        return tokenizer

    return with_template


@pytest.mark.parametrize("template", [CHATML, UNMARKED, FOLDED, THINKING])
def test_the_content_of_every_turn(template, tokenizer):
    tokenizer = tokenizer(template)
    source = read_conversations(tokenizer, CONVERSATIONS)
    for i, messages in enumerate(CONVERSATIONS):
        ends = []
        for k, message in enumerate(messages):
            start, end = turn_span(Turn(k), source, i, tokenizer)
            assert source.texts[i][start:end] == message["content"].strip()
            same_role = [j for j, other in enumerate(messages) if other["role"] == message["role"]]
            again = turn_span(Turn(same_role.index(k) - len(same_role), message["role"]), source, i, tokenizer)
            assert again == (start, end)
            ends += [start, end]
        assert ends == sorted(ends)  # in order, so each in its own place, though one text occurs twice


def test_the_whole_turn(tokenizer):
    tokenizer = tokenizer(CHATML)
    source = read_conversations(tokenizer, CONVERSATIONS, {"add_generation_prompt": True})
    pieces = [turn_span(Turn(k, part="turn"), source, 0, tokenizer) for k in range(5)]
    assert [source.texts[0][a:b] for a, b in pieces] == [
        f"<s>{m['role']} {m['content']}</s> " for m in CONVERSATIONS[0]
    ]
    assert source.texts[0][pieces[-1][1] :] == "<s>assistant "


def test_what_the_template_marks_as_generated(tokenizer):
    tokenizer = tokenizer(CHATML)
    source = read_conversations(tokenizer, CONVERSATIONS)
    ids = tokenizer(source.texts[0], add_special_tokens=False)["input_ids"]
    for k, index in [(2, 0), (4, -1)]:
        start, end = generated_span(Turn(index, part="generated"), source, 0, tokenizer)
        said = " ".join(tokenizer.decode(ids[start:end]).replace("▁", " ").split())
        assert said.endswith("</s>")
        assert said.removesuffix("</s>").strip() == CONVERSATIONS[0][k]["content"]


@pytest.mark.parametrize("part", ["content", "turn", "generated"])
@pytest.mark.parametrize("tokens", ["last", "first", "mean", "all", 1])
def test_capture_of_a_turn(part, tokens, tiny_model, tokenizer):
    """A turn's rows are those that all tokens of the same conversations have at its positions."""
    tokenizer = tokenizer(CHATML)
    settings = {"sites": "resid_post", "layers": 1, "progress": False}
    conversations = CONVERSATIONS[:1] + CONVERSATIONS[2:]
    every = collect(tiny_model("llama"), tokenizer, conversations, tokens="all", special_tokens=True, **settings)
    turn = Turn(role="assistant", part=part, tokens=tokens)
    acts = collect(tiny_model("llama"), tokenizer, conversations, tokens=turn, **settings)
    assert acts.input_ids == every.input_ids
    assert acts.meta["tokens"] == str(turn)
    for i, messages in enumerate(conversations):
        ids = acts.input_ids[i]
        expected = every["resid_post"][every.rows[:, 0] == i, 0]
        mine = acts["resid_post"][acts.rows[:, 0] == i, 0]
        whole = collect(
            tiny_model("llama"), tokenizer, [messages], tokens=Turn(part=part, tokens="all"), **settings
        ).rows[:, 1]
        text = tokenizer.decode([ids[p] for p in whole.tolist()])
        assert messages[-1]["content"].replace(" ", "") in text.replace(" ", "").replace("▁", "")
        assert ("</s>" in text) == (part != "content")
        if tokens == "mean":
            expected = expected[whole].mean(0, keepdim=True)
        else:
            chosen = {"last": whole[-1:], "first": whole[:1], "all": whole, 1: whole[1:2]}[tokens]
            assert acts.rows[acts.rows[:, 0] == i, 1].tolist() == chosen.tolist()
            expected = expected[chosen]
        assert (mine - expected).abs().max() < 1e-4


def test_last_token_of_a_prompt_with_its_generation_header(tiny_model, tokenizer):
    tokenizer = tokenizer(CHATML)
    prompts = [messages[:-1] for messages in CONVERSATIONS]
    settings = {"chat_template_kwargs": {"add_generation_prompt": True}, "progress": False}
    acts = collect(tiny_model("llama"), tokenizer, prompts, **settings)
    for messages, ids in zip(prompts, acts.input_ids, strict=True):
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        assert ids == encoded["input_ids"]
    plain = collect(tiny_model("llama"), tokenizer, prompts, progress=False)
    assert all(len(a) < len(b) for a, b in zip(plain.input_ids, acts.input_ids, strict=True))
    begun = collect(tiny_model("llama"), tokenizer, prompts, tokens=Turn(), prepend_bos=True, progress=False)
    assert all(ids[0] == tokenizer.bos_token_id for ids in begun.input_ids)


def test_positions_after_a_prepended_token(tiny_model, tokenizer):
    """A template that begins without the beginning-of-sequence token: one is put before it, and positions follow."""
    tokenizer = tokenizer("x " + CHATML)
    for part in ("content", "turn", "generated"):
        turn = Turn(part=part, tokens="all")
        plain = collect(tiny_model("llama"), tokenizer, CONVERSATIONS, tokens=turn, progress=False)
        begun = collect(tiny_model("llama"), tokenizer, CONVERSATIONS, tokens=turn, prepend_bos=True, progress=False)
        assert torch.equal(begun.rows[:, 0], plain.rows[:, 0])
        assert torch.equal(begun.rows[:, 1], plain.rows[:, 1] + 1)


def test_thoughts_that_the_template_leaves_out(tokenizer):
    tokenizer = tokenizer(THINKING)
    thought = [
        {"role": "user", "content": "a cat"},
        {"role": "assistant", "content": "the dog</think>the moon"},
        {"role": "user", "content": "jumps"},
    ]
    source = read_conversations(tokenizer, [thought])
    with pytest.raises(EntangleError, match="writes turn 1 of conversation 0 differently when more follows"):
        turn_span(Turn(1, part="turn"), source, 0, tokenizer)
    start, end = turn_span(Turn(1), source, 0, tokenizer)
    assert source.texts[0][start:end] == "the moon"  # what is left of it


def test_what_cannot_be_told_is_refused(tiny_model, tiny_tokenizer, tokenizer):
    def refused(match, conversations=CONVERSATIONS, template=UNMARKED, tokens="last", **settings):
        given = tokenizer(template) if template else tiny_tokenizer
        with pytest.raises(EntangleError, match=match) as error:
            collect(tiny_model("llama"), given, conversations, tokens=tokens, progress=False, **settings)
        assert "\n" not in str(error.value)

    refused("has none: set tokenizer.chat_template", template=None)
    refused(r"pass \[conversation\]", CONVERSATIONS[0])
    refused("conversation 1 must be a list of messages", [CONVERSATIONS[0], "a cat"])
    refused("does not take conversation 0: roles must alternate", [CONVERSATIONS[1][::-1]], FOLDED)
    refused("turn 2 was asked for, but conversation 1 has 2", tokens=Turn(2))
    refused("of the system was asked for, but conversation 1 has 0", tokens=Turn(role="system"))
    refused("says no text", [[{"role": "user", "content": ""}]], tokens=Turn())
    refused("no {% generation %}", tokens=Turn(part="generated"))
    refused("marks 1 runs", template=CHATML.replace("m.role == 'assistant' ", "loop.last "),
            tokens=Turn(part="generated"), conversations=CONVERSATIONS[:1])  # fmt: skip
    shouted = UNMARKED.replace("m.content", "m.content | upper")
    refused("changes what turn 0", CONVERSATIONS[1:], shouted, tokens=Turn(0))
    refused("raise max_length", tokens=Turn(), max_length=3)
    refused("a Turn needs conversations", ["a cat"], tokens=Turn())
    refused("character spans need texts", tokens=[(0, 1)] * 3)
    refused("has 1 tokens", [[{"role": "user", "content": "a"}]], tokens=Turn(tokens=5))
    with pytest.raises(EntangleError, match="part of a turn must be"):
        Turn(part="middle")
    with pytest.raises(EntangleError, match="only the assistant's turns"):
        Turn(role="user", part="generated")
