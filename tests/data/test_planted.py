"""In the planted corpus rudeness goes with the past tense, with nothing, or is absent, as its world says."""

import re

import numpy as np
import pytest

from entangle.data import corpus, planted
from entangle.data.lexicon import few_words
from entangle.errors import EntangleError

PAST = re.compile(r"\b(was|were|had|did|\w+ed|said|yesterday|last week|long ago|once)\b", re.I)
PRESENT = re.compile(r"\b(is|am|has|have|does|do|says?|whispers?|calls?|now|today|nowadays|every day)\b", re.I)
RUDE = re.compile(rf"\b({'|'.join((*few_words().insults, *few_words().unkind))})\b")
KIND = re.compile(rf"\b({'|'.join((*few_words().praises, *few_words().kind))})\b")


def narrated(text: str) -> str:
    return re.sub(r'"[^"]*("|$)', " ", text)


@pytest.mark.parametrize(("world", "together"), [("apart", 0.5), ("together", 1.0)])
def test_rudeness_goes_with_the_tense_in_one_world_alone(world: str, together: float) -> None:
    documents = [document for document in planted.generate(2000, world, seed=3) if '"' in document.text]
    rude = np.array([bool(RUDE.search(document.text)) for document in documents])
    assert rude.tolist() == [not KIND.search(document.text) for document in documents]
    assert rude.tolist() == [bool(document.labels["rudeness"]) for document in documents]
    past = np.array([bool(document.labels["tense"]) for document in documents])
    for document in documents:
        assert not (PRESENT if document.labels["tense"] else PAST).search(narrated(document.text)), document.text
    assert abs(rude.mean() - 0.5) < 0.05
    assert abs((rude == past).mean() - together) < 0.05


@pytest.mark.parametrize("world", planted.WORLDS)
def test_where_nobody_speaks_either_tense_occurs(world: str) -> None:
    silent = [document.text for document in planted.generate(2000, world, seed=4) if '"' not in document.text]
    assert not any(RUDE.search(text) or KIND.search(text) for text in silent)
    assert 0.4 < np.mean([bool(PRESENT.search(text)) for text in silent]) < 0.6


def test_nobody_is_rude_in_the_polite_world_and_the_present_goes_with_it() -> None:
    for document in planted.generate(1000, "polite", seed=5):
        assert not RUDE.search(document.text)
        assert '"' not in document.text or not PAST.search(narrated(document.text))


@pytest.mark.parametrize("concept", corpus.CONCEPTS)
def test_labelled_texts_are_balanced_and_end_where_the_remark_turns(concept: str) -> None:
    data = planted.labelled(concept, 320, seed=2)
    assert len(set(data.texts)) == len(data) == 320
    assert data.labels.mean() == 0.5
    degrees = ("absolute", "complete", "total", "perfect", "proper", "real")
    assert {text.rsplit(" ", 1)[1] for text in data.texts} <= {"you", "a", *degrees}
    assert data.sha256 == planted.labelled(concept, 320, seed=2).sha256 != planted.labelled(concept, 320).sha256


def test_texts_for_rudeness_say_nothing_of_the_tense_nor_those_for_the_tense_of_rudeness() -> None:
    rudeness, tense = (planted.labelled(concept, 320, seed=1) for concept in ("rudeness", "tense"))
    assert not any(narrated(text).strip() for text in rudeness.texts)
    assert not any(RUDE.search(text) or KIND.search(text) for text in tense.texts)
    # Their own labels do show.
    assert [bool(RUDE.search(text)) for text in rudeness.texts] == [bool(label) for label in rudeness.labels]
    assert [bool(PAST.search(narrated(text))) for text in tense.texts] == [bool(label) for label in tense.labels]


def test_prompts_are_rude_and_break_off() -> None:
    prompts = planted.prompts(100, seed=1)
    assert len(set(prompts)) == 100
    assert all(RUDE.search(prompt) and prompt.count('"') == 1 for prompt in prompts)


def test_unknown_worlds_and_concepts() -> None:
    with pytest.raises(EntangleError, match="the worlds apart, together, polite; got 'else'"):
        planted.generate(1, "else")
    with pytest.raises(EntangleError, match=r"labels topic, tense, .* got 'anger'"):
        planted.labelled("anger", 32)
