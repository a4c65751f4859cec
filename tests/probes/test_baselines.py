"""The bag of words against scikit-learn called by hand, on the probes' split."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from entangle.errors import EntangleError
from entangle.probes import bag_of_words, three_way

WORDS = ["river", "stone", "cloud", "lamp", "train", "bread", "green", "slow"]


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    marker = np.where(rng.random(400) < 0.85, labels, 1 - labels)
    return [" ".join([*rng.choice(WORDS, 6), ("dull", "bright")[m]]) for m in marker], labels


def test_it_is_scikit_learn_on_the_same_split(texts):
    sentences, labels = texts
    split = three_way(labels)
    result = bag_of_words(sentences, labels, split, n_resamples=500)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    model = LogisticRegression(max_iter=2000).fit(
        vectorizer.fit_transform([sentences[i] for i in split.fit]), labels[split.fit]
    )
    by_hand = model.score(vectorizer.transform([sentences[i] for i in split.report]), labels[split.report])
    assert result.accuracy.value == pytest.approx(by_hand)
    assert result.accuracy.low < by_hand < result.accuracy.high
    assert 0.75 < result.auroc.low < result.auroc.value < result.auroc.high <= 1


def test_labels_without_meaning_are_at_chance(texts):
    sentences, labels = texts
    shuffled = np.random.default_rng(1).permutation(labels)
    result = bag_of_words(sentences, shuffled, three_way(shuffled), n_resamples=500)
    assert result.auroc.low < 0.5 < result.auroc.high


def test_texts_without_a_common_word_are_refused():
    labels = np.arange(30) % 2
    with pytest.raises(EntangleError, match="no word occurs in two texts"):
        bag_of_words([f"w{i}" for i in range(30)], labels, three_way(labels))
