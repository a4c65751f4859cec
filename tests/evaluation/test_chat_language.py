"""Language measured on conversations: on all of them, or on what one role says, also after an instruction."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import entangle as en
from chatting import ANSWERED, FEW_SHOT, SYSTEM, TEMPLATES, TOLD, chat_model, chat_tokenizer, conversations
from entangle.errors import EntangleError
from entangle.evaluation import (
    Language,
    Prompt,
    Subject,
    Witness,
    applied,
    behaviours,
    cross_entropy,
    kl,
    language_shift,
    score,
    strength_for,
    tradeoff,
)
from entangle.evaluation.language.generation import Sampling, sample
from entangle.evaluation.methods.mixing import Mixed, Reader

QUIET = {"progress": False}
LATER = [{"role": "user", "content": "an old house"}, {"role": "assistant", "content": "by the river at the moon"}]


def said_by(tokenizer, messages, role):
    """Token ids of a conversation and the positions of what a role says, found in the text."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places, start = [], 0
    for message in messages:
        a = text.index(message["content"], start)
        start = a + len(message["content"])
        if message["role"] == role:
            places += [p for p, (x, y) in enumerate(read["offset_mapping"]) if x < start and a < y]
    return read["input_ids"], places


def nats(ids, places):
    logp = chat_model()(torch.tensor([ids])).logits[0].log_softmax(-1).double()
    return sum(-logp[p - 1, ids[p]].item() for p in places)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("role", ["assistant", "user"])
def test_only_what_a_role_says_is_counted_after_all_that_comes_before(template, role):
    tokenizer = chat_tokenizer(template)
    documents = [ANSWERED, LATER]
    measured = cross_entropy(chat_model(), tokenizer, documents, turns=role, **QUIET)
    for i, messages in enumerate(documents):
        ids, places = said_by(tokenizer, messages, role)
        assert measured.tokens[i] == len(places)
        assert measured.values[i] == pytest.approx(nats(ids, places), rel=1e-4)
    whole = cross_entropy(chat_model(), tokenizer, documents, **QUIET)
    for i, messages in enumerate(documents):
        ids, _ = said_by(tokenizer, messages, role)
        assert whole.tokens[i] == len(ids) - 1
        assert whole.values[i] == pytest.approx(nats(ids, range(1, len(ids))), rel=1e-4)


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_instruction_is_read_in_its_place_and_the_same_tokens_are_compared(template):
    tokenizer = chat_tokenizer(template)
    shift = language_shift(chat_model(), tokenizer, [ANSWERED, LATER], Prompt("Be kind. "), turns="assistant", **QUIET)
    for i, messages in enumerate((ANSWERED, LATER)):
        first, *rest = messages
        told = [{"role": "system", "content": "Be kind."}, *messages]
        if template not in SYSTEM:
            told = [{**first, "content": "Be kind. " + first["content"]}, *rest]
        ids, places = said_by(tokenizer, messages, "assistant")
        assert shift.plain_nats[i] == pytest.approx(nats(ids, places), rel=1e-4)
        ids, places = said_by(tokenizer, told, "assistant")
        assert shift.nats[i] == pytest.approx(nats(ids, places), rel=1e-4)
        assert shift.tokens[i] == len(places)


def test_an_instruction_that_is_shorter_than_the_template_s_own_moves_nothing():
    tokenizer, model = chat_tokenizer("chatml"), chat_model()
    own = "<|im_start|>system\nby the old river at the moon, very far away, an old house<|im_end|>\n"
    tokenizer.chat_template = f"{{% if messages[0].role != 'system' %}}{own}{{% endif %}}" + tokenizer.chat_template
    documents = [ANSWERED, LATER]
    shift = language_shift(model, tokenizer, documents, Prompt("Be kind."), turns="assistant", **QUIET)
    for i, messages in enumerate(documents):
        ids, places = said_by(tokenizer, messages, "assistant")
        told, later = said_by(tokenizer, [{"role": "system", "content": "Be kind."}, *messages], "assistant")
        assert len(told) < len(ids)
        assert shift.plain_nats[i] == pytest.approx(nats(ids, places), rel=1e-4)
        assert shift.nats[i] == pytest.approx(nats(told, later), rel=1e-4)
        assert shift.tokens[i] == len(places) == len(later)
    both = kl(model, tokenizer, documents, Prompt("Be kind."), turns="assistant", batch_tokens=64, **QUIET)
    np.testing.assert_allclose(both.values, shift.kl)


class SaidAfter:
    """A decoding that says what the model would say after an instruction: `Prompt`, by way of a second reading."""

    def __init__(self, text):
        self.decoding = Mixed((Reader(prefix=text),), lambda plain, instructed: instructed)

    @contextmanager
    def applied(self, model, tokenizer, alpha):
        yield Subject(model, tokenizer, decoding=self.decoding)


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_another_reader_is_told_stands_where_an_instruction_does(template):
    tokenizer, model = chat_tokenizer(template), chat_model()
    read = {"turns": "assistant", **QUIET}
    told, beside = (
        language_shift(model, tokenizer, [ANSWERED, LATER], method, **read)
        for method in (Prompt("Be kind. "), SaidAfter("Be kind. "))
    )
    assert beside.nats == pytest.approx(told.nats, rel=1e-5)
    assert beside.kl == pytest.approx(told.kl, rel=1e-4)
    before = language_shift(model, tokenizer, [ANSWERED, LATER], SaidAfter("Be very kind. "), **read)
    assert not np.allclose(before.nats, told.nats, rtol=1e-4)  # what it is told does matter
    asked, sampling = [LATER[:1], *conversations(template)], Sampling(max_new_tokens=6, samples=2)
    one = sample(Subject(model, tokenizer, prefix="Be kind. "), asked, sampling, progress=False)
    other = sample(Subject(model, tokenizer, decoding=SaidAfter("Be kind. ").decoding), asked, sampling, progress=False)
    assert other == one
    assert one != sample(Subject(model, tokenizer), asked, sampling, progress=False)


def test_kl_counts_the_same_tokens_and_is_nothing_without_a_change():
    tokenizer, model = chat_tokenizer("chatml"), chat_model()
    edit = en.AddDirection(torch.ones(32), "resid_post", 0)
    documents = [ANSWERED, LATER]
    assert kl(model, tokenizer, documents, edit, alpha=0, turns="assistant", **QUIET).values.sum() == 0
    part = kl(model, tokenizer, documents, edit, alpha=1, turns="assistant", **QUIET)
    every = kl(model, tokenizer, documents, edit, alpha=1, **QUIET)
    assert (part.values > 0).all()
    assert (part.values < every.values).all()
    assert (part.tokens < every.tokens).all()
    # Cut after the first answer, only that one counts.
    ids, places = said_by(tokenizer, ANSWERED, "assistant")
    cut = cross_entropy(model, tokenizer, [ANSWERED], turns="assistant", max_length=places[3] + 1, **QUIET)
    assert cut.tokens[0] == 4
    assert cut.values[0] == pytest.approx(nats(ids, places[:4]), rel=1e-4)


def test_what_else_moved_and_what_it_costs_are_read_on_the_same_tokens():
    tokenizer, model, kind = chat_tokenizer("chatml"), chat_model(), Prompt("Be kind. ")
    documents, prices = [ANSWERED, LATER], [TOLD + LATER[1:], FEW_SHOT[:2]]
    shift = language_shift(model, tokenizer, documents, kind, turns="assistant", **QUIET)
    with applied(kind, model, tokenizer, 1) as subject:
        witness = Witness(subject, progress=False)
        read = Language(documents, turns="assistant").measure(witness)
        with pytest.raises(EntangleError, match="changes tokens that are measured"):
            Language([TOLD]).measure(witness)
    np.testing.assert_allclose(read, shift.nats / shift.tokens)
    assert not np.allclose(read, shift.plain_nats / shift.tokens)
    tasks = {"language": Language(documents, turns="assistant")}
    at = {"turns": "assistant", **QUIET}
    moved = behaviours(model, tokenizer, {"kind": kind}, tasks, alpha=1, null=0, texts=prices, **at)
    assert moved.changed[0].kl == pytest.approx(kl(model, tokenizer, prices, kind, **at).mean)
    edit = en.AddDirection(torch.ones(32), "resid_post", 0)
    alpha = strength_for(model, tokenizer, edit, prices, kl=0.01, turns="assistant")
    assert kl(model, tokenizer, prices, edit, alpha=alpha, **at).mean == pytest.approx(0.01, rel=0.04)
    assert kl(model, tokenizer, prices, edit, alpha=alpha, **QUIET).mean != pytest.approx(0.01, rel=0.04)


def test_what_cannot_be_measured_is_one_line():
    tokenizer, model = chat_tokenizer("chatml"), chat_model()
    with pytest.raises(EntangleError, match="document 0 is a string"):
        cross_entropy(model, tokenizer, ["the cat sat"], turns="assistant", **QUIET)
    with pytest.raises(EntangleError, match="document 1 has no token that the assistant says"):
        cross_entropy(model, tokenizer, [ANSWERED, FEW_SHOT[:1]], turns="assistant", **QUIET)
    with pytest.raises(EntangleError, match="1 of 2 are conversations"):
        cross_entropy(model, tokenizer, [ANSWERED, "the cat"], **QUIET)
    with pytest.raises(EntangleError, match="changes tokens that are measured"):
        language_shift(model, tokenizer, [TOLD], Prompt("Be kind. "), **QUIET)


class Answers:
    """1 where it was handed the conversation that was asked."""

    name = "answers"

    def __call__(self, texts, prompts=None):
        return np.array([float(prompt[-1]["content"] == "the fox ran") for prompt in prompts])


def test_a_sweep_of_conversations(tmp_path):
    tokenizer, model = chat_tokenizer("chatml"), chat_model()
    edit = en.AddDirection(torch.ones(32), "resid_post", 0)
    settings = {
        "prompts": [FEW_SHOT, TOLD],
        "scorer": Answers(),
        "texts": [ANSWERED, LATER],
        "turns": "assistant",
        "max_new_tokens": 4,
        "save_to": tmp_path / "sweep",
        **QUIET,
    }
    sweep = tradeoff(model, tokenizer, {"shift": edit, "prompt": Prompt("Be kind. ")}, alphas=[1], **settings)
    frame = sweep.to_frame(n_resamples=50)
    assert set(frame["method"]) == {"shift", "prompt"}
    assert bool((frame.loc[frame["alpha"] == 1, "kl"] > 0).all())
    assert sweep.plain.shift.tokens.tolist() == [len(said_by(tokenizer, m, "assistant")[1]) for m in (ANSWERED, LATER)]
    said = [text for row in sweep.plain.continuations for text in row]
    assert sweep.plain.scored("answers").ravel().tolist() == [float(bool(text.strip())) for text in said]
    assert any("system: by the river" in prompt for prompt in sweep.samples(n=2)["prompt"])
    again = tradeoff(model, tokenizer, {"shift": edit}, alphas=[1, 2], **settings)
    assert again.plain.continuations == sweep.plain.continuations
    with pytest.raises(EntangleError, match="turns differ"):
        tradeoff(model, tokenizer, {"shift": edit}, alphas=[1], **{**settings, "turns": None})
    with pytest.raises(EntangleError, match="reads documents end to end"):
        tradeoff(model, tokenizer, {"shift": edit}, alphas=[1], packed=16, **{**settings, "save_to": None})
    with pytest.raises(EntangleError, match="1 are in both"):
        tradeoff(model, tokenizer, edit, costs=[0.1], cost_texts=[list(LATER)], **{**settings, "save_to": None})
    assert score(Answers(), ["x"], [FEW_SHOT]).tolist() == [1]


def test_what_is_forecast_and_preferred_after_a_conversation_is_what_it_is_after_the_templates_text():
    tokenizer, model = chat_tokenizer("gemma"), chat_model()
    asked = [
        [{"role": "user", "content": word}] for word in ("cat", "dog", "fox", "moon", "mat", "house", "old", "far")
    ]
    written = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in asked]
    toward, away = ["the cat sat"] * 8, ["a dog ran"] * 8
    contrasts = [
        en.Contrast.fit(model, tokenizer, toward, away, prompts=(prompts, prompts), **QUIET)
        for prompts in (asked, written)
    ]
    assert torch.equal(contrasts[0].gradient, contrasts[1].gradient)
    scores = [en.concepts.preference_ches(model, tokenizer, prompts, toward, away) for prompts in (asked, written)]
    assert torch.equal(scores[0], scores[1])
