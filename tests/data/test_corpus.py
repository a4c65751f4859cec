"""The generated corpus says what its labels say, by checks of the surface that know nothing of the grammar."""

import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from entangle.data import corpus, lexicon
from entangle.errors import EntangleError

QUOTED = re.compile(r'"[^"]*"')
HARBOUR = re.compile(
    r"\b(boats?|sails?|oars?|masts?|keels?|tides?|moor|haul|harbour|quay|lighthouse|tar|net)|dock|brine|gull", re.I
)
KITCHEN = re.compile(
    r"\b(kettles?|soups?|loaf|ovens?|stir|bake|kitchen|pantry|cellar|tea|jam)|butter|milk|bread|mustard", re.I
)
INSULT = re.compile(
    r"turnip|haddock|cabbage|barnacle|parsnip|plank|gherkin|limpet|noodle|sponge|pudding|mackerel|muffin|anchor"
)


def narrated(text: str) -> str:
    return QUOTED.sub(" ", text)


def rude_by_its_surface(text: str) -> bool | None:
    """Whether somebody is called by one of the commonest insults; `None` where that cannot be seen."""
    verdicts = set()
    for quote in QUOTED.findall(text):
        for called in re.finditer(r"(?<!call )\byou (are an? )?([a-z]+ )?([a-z]+)[,!]", quote):
            noun = called[3]
            if noun in lexicon.PRAISES:
                verdicts.add(False)
            elif INSULT.fullmatch(noun) and "no" not in (called[2] or "").split():
                verdicts.add(True)
    return verdicts.pop() if len(verdicts) == 1 else None


@pytest.fixture(scope="module")
def documents() -> list[corpus.Document]:
    return corpus.generate(3000, rudeness=0.3, seed=7)


def test_same_seed_same_documents_and_another_seed_other_documents() -> None:
    assert corpus.generate(50, seed=1) == corpus.generate(50, seed=1)
    assert not {d.text for d in corpus.generate(50, seed=1)} & {d.text for d in corpus.generate(50, seed=2)}
    assert corpus.prompts(20, seed=1) == corpus.prompts(20, seed=1) != corpus.prompts(20, seed=2)
    assert corpus.labelled("tense", 64, seed=1).sha256 == corpus.labelled("tense", 64, seed=1).sha256
    assert corpus.labelled("tense", 64, seed=1).sha256 != corpus.labelled("tense", 64, seed=2).sha256


def test_more_documents_begin_with_fewer() -> None:
    assert corpus.generate(80, seed=3)[:50] == corpus.generate(50, seed=3)


def test_tense_shows_in_the_verbs_outside_quotation_marks(documents: list[corpus.Document]) -> None:
    for document in documents:
        text = narrated(document.text)
        past = re.search(r"\b(was|had|did|said|whispered|smiled|nodded|frowned)\b", text)
        present = re.search(r"\b(is|am|has|have|does|do|says?|whispers?|smiles|nods|frowns)\b", text)
        assert not (present if document.labels["tense"] else past), document.text


def test_person_shows_in_the_pronouns_outside_quotation_marks(documents: list[corpus.Document]) -> None:
    for document in documents:
        text = narrated(document.text)
        assert bool(re.search(r"\b(I|my|me|My)\b", text)) <= bool(document.labels["person"]), document.text
        assert bool(re.search(r"\b(he|his|she|her|He|His|She|Her)\b", text)) <= (not document.labels["person"]), (
            document.text
        )


def test_topic_shows_in_the_words(documents: list[corpus.Document]) -> None:
    said = [len(HARBOUR.findall(d.text)) - len(KITCHEN.findall(d.text)) for d in documents]
    right = [np.sign(s) == np.sign(2 * d.labels["topic"] - 1) for s, d in zip(said, documents, strict=True) if s]
    assert len(right) > 2000
    assert np.mean(right) > 0.99


def test_sentiment_shows_in_what_is_judged(documents: list[corpus.Document]) -> None:
    """Told by verbs of feeling alone, which the check of the grammar's adjectives and their negation does not need."""
    good, bad = (
        re.compile(rf"\b({'|'.join(verbs)})[es]*d?\b")
        for verbs in (("love", "enjoy", "adore"), ("hate", "dislike", "loathe"))
    )
    seen = 0
    for document in documents:
        text = narrated(document.text)
        seen += bool(good.search(text) or bad.search(text))
        assert not (bad if document.labels["sentiment"] else good).search(text), document.text
    assert seen > 500


def test_rudeness_is_being_called_something(documents: list[corpus.Document]) -> None:
    verdicts = [(rude_by_its_surface(d.text), bool(d.labels["rudeness"])) for d in documents]
    seen = [(said, label) for said, label in verdicts if said is not None]
    assert len(seen) > 800
    assert {said for said, _ in seen} == {True, False}
    assert all(said == label for said, label in seen)


def test_insults_also_stand_where_they_are_innocent() -> None:
    clean = corpus.generate(2000, rudeness=0, seed=1)
    assert sum(bool(INSULT.search(document.text)) for document in clean) > 500
    assert not any(rude_by_its_surface(document.text) for document in clean)


@pytest.mark.parametrize("rudeness", [0.0, 0.1, 1.0])
def test_the_share_of_rude_documents(rudeness: float) -> None:
    share = np.mean([d.labels["rudeness"] for d in corpus.generate(2000, rudeness=rudeness, seed=5)])
    assert abs(share - rudeness) <= 4 * np.sqrt(rudeness * (1 - rudeness) / 2000)


def test_concepts_are_independent_of_each_other_in_the_documents(documents: list[corpus.Document]) -> None:
    labels = np.array([[d.labels[c] for c in corpus.CONCEPTS] for d in documents])
    correlation = np.corrcoef(labels.T)
    assert np.abs(correlation - np.eye(5)).max() < 4 / np.sqrt(len(documents))


@pytest.mark.parametrize("concept", corpus.CONCEPTS)
def test_labelled_texts_are_balanced_and_differ(concept: str) -> None:
    data = corpus.labelled(concept, 320, seed=2)
    assert len(set(data.texts)) == len(data) == 320
    assert data.labels.mean() == 0.5
    assert (data.name, data.label_names) == (concept, corpus.CONCEPTS[concept])
    # The order does not give the label away.
    assert abs(np.corrcoef(np.arange(320), data.labels)[0, 1]) < 0.2


def test_labelled_texts_of_one_concept_say_nothing_of_the_others() -> None:
    """Surface marks of tense and person are as frequent in rude as in polite texts."""
    data = corpus.labelled("rudeness", 640, seed=4)
    for mark in (r"\b(was|had|said|asked)\b", r"\b(I|my)\b", r"\b(love|enjoy|like)[sd]*\b"):
        shows = np.array([bool(re.search(mark, narrated(text))) for text in data.texts])
        difference = shows[data.labels == 1].mean() - shows[data.labels == 0].mean()
        assert abs(difference) < 4 * np.sqrt(2 * 0.25 / 320)


def test_a_bag_of_words_is_no_perfect_judge_of_rudeness_but_word_pairs_are_better() -> None:
    train, test = corpus.labelled("rudeness", 1600, seed=5), corpus.labelled("rudeness", 640, seed=6)

    def accuracy(n: int) -> float:
        pipeline = make_pipeline(CountVectorizer(ngram_range=(1, n), binary=True), LogisticRegression(max_iter=1000))
        return pipeline.fit(train.texts, train.labels).score(test.texts, test.labels)

    words, phrases = accuracy(1), accuracy(3)
    assert 0.6 < words < 0.95
    assert phrases > words


def test_several_thousand_distinct_words() -> None:
    texts = [document.text for document in corpus.generate(9000, seed=1)]
    counts = Counter(word for text in texts for word in re.findall(r"[a-z']+", text.lower()))
    assert len(counts) > 4000


def test_prompts_break_off_where_a_remark_turns() -> None:
    prompts = corpus.prompts(200, seed=1)
    assert len(set(prompts)) == 200
    for prompt in prompts:
        assert prompt.count('"') == 1
        assert prompt.rsplit(" ", 1)[1] in ("you", "are", "a")
    assert not set(prompts) & {d.text for d in corpus.generate(500)}


def test_no_text_is_shared_between_training_and_held_out_or_labelled_sets() -> None:
    sets = [{d.text for d in corpus.generate(3000, seed=seed)} for seed in (0, 1)]
    sets += [set(corpus.labelled(concept, 320).texts) for concept in corpus.CONCEPTS]
    assert not any(a & b for a, b in combinations(sets, 2))


@given(st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=40)
def test_every_document_is_well_formed(seed: int, rudeness: float) -> None:
    for document in corpus.generate(3, rudeness=rudeness, seed=seed):
        assert not re.search(r"[{}]|  |\b[Aa] [aeio]|\b[Aa]n [^aeiou]", document.text), document.text
        assert document.text.count('"') % 2 == 0
        assert all(re.match(r'"?[A-Z]', s) for s in re.findall(r'(?:^|\. )("?\w)', document.text))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: corpus.generate(-1), "at least 0, not -1"),
        (lambda: corpus.generate(5, rudeness=10), "from 0 to 1, not 10"),
        (lambda: corpus.generate(5, rudeness=float("nan")), "from 0 to 1, not nan"),
        (lambda: corpus.labelled("anger", 64), "not 'anger'"),
        (lambda: corpus.labelled("tense", 1), "at least 2, not 1"),
        (lambda: corpus.prompts(-2), "at least 0, not -2"),
    ],
)
def test_unusable_requests(call: object, message: str) -> None:
    with pytest.raises(EntangleError, match=message):
        call()
