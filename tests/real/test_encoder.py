"""A pretrained encoder, which reads both ways and writes nothing: all that asks for no text holds on it too."""

from __future__ import annotations

import pytest
import torch

import entangle as en
from entangle.data import corpus
from entangle.evaluation import continuations

pytestmark = pytest.mark.real

SHORT = ["The cat sat on the mat.", "Rain", "What did they say about the harbour when the boats came in"]


@pytest.fixture(scope="module")
def labelled():
    return corpus.labelled("sentiment", 160, seed=3)


def test_its_hooks_read_and_write_what_it_computes(encoder):
    model, tokenizer = encoder
    assert en.verify(model, tokenizer, texts=SHORT[:2]).passed


@pytest.mark.parametrize("batch_tokens", [8, 4096])
def test_what_is_captured_is_what_transformers_returns(encoder, batch_tokens):
    model, tokenizer = encoder
    acts = en.collect(
        model, tokenizer, SHORT, sites="resid_post", tokens="all", batch_tokens=batch_tokens, progress=False
    )
    for i, row in enumerate(tokenizer(SHORT).input_ids):
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        own = acts.rows[:, 0] == i
        for layer in range(en.Atlas(model).n_layers):
            theirs = hidden[layer + 1][0, acts.rows[own, 1]]
            torch.testing.assert_close(acts["resid_post"][own, layer], theirs, atol=1e-4, rtol=1e-4)


def test_a_concept_that_is_erased_is_read_by_no_linear_probe(encoder, labelled):
    model, tokenizer = encoder
    last = en.Atlas(model).n_layers - 1
    options = {"sites": "resid_post", "layers": [last], "tokens": "last", "progress": False}
    texts, y = list(labelled.texts), torch.as_tensor(labelled.labels)
    plain = en.collect(model, tokenizer, texts, **options)["resid_post"]
    erase = en.Erase.fit(plain[:, 0], y, layer=last)
    with en.steer(model, erase):
        erased = en.collect(model, tokenizer, texts, **options)["resid_post"]
    apart = [(x[y == 1].mean(0) - x[y == 0].mean(0)).norm() for x in (plain, erased)]
    assert apart[1] < 1e-4 * apart[0]


def test_a_study_of_it_is_smaller_and_says_why(encoder, labelled):
    model, tokenizer = encoder
    tense = corpus.labelled("tense", 160, seed=4)
    few = {"n_resamples": 100, "n_permutations": 20, "progress": False}
    study = en.study(model, tokenizer, list(labelled.texts), labelled.labels, concepts={"tense": tense}, **few)
    assert study.probes["resid_post"].shape == (6,)
    assert study.probes["z"].shape == (6, 12)
    assert study.entanglement
    assert study.tradeoff is None
    assert study.forecast is None
    assert any("does not generate" in note for note in study.notes)
    assert study.answer()


def test_it_is_not_asked_to_write(encoder):
    model, tokenizer = encoder
    with pytest.raises(en.EntangleError, match="generate"):
        continuations(model, tokenizer, SHORT[:1], progress=False)
