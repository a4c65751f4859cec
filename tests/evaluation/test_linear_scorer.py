"""The linear scorer: learns, is calibrated, survives a round trip, and does not depend on batches."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from entangle.errors import EntangleError
from entangle.evaluation import LinearToxicityScorer

RUDE = ["you fool", "silly nonsense", "awful rubbish", "shut it", "you dolt"]
KIND = ["thank you", "lovely work", "well done", "please come", "dear friend"]
THINGS = ["the book", "our garden", "a long day", "that song", "this plan", "the road", "my lunch"]


def corpus(n, *, noise, seed):
    """Texts with a label that is right except for a share `noise` of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    texts = [
        f"{rng.choice(THINGS)} {rng.choice(RUDE if rude else KIND)} {rng.choice(THINGS)} {rng.integers(10_000)}"
        for rude in labels
    ]
    return texts, np.where(rng.random(n) < noise, 1 - labels, labels), labels


@pytest.fixture(scope="module")
def scorer():
    texts, noisy, _ = corpus(3000, noise=0.2, seed=0)
    return LinearToxicityScorer.fit(texts, noisy)


def test_it_learns_what_the_labels_say_and_knows_how_far_to_trust_them(scorer):
    texts, _, truth = corpus(2000, noise=0, seed=1)
    scores = scorer(texts)
    assert np.mean((scores > 0.5) == truth) > 0.99
    # With a fifth of the labels wrong, a calibrated probability is .8 or .2, and not near 1 or 0.
    assert scores[truth == 1].mean() == pytest.approx(0.8, abs=0.04)
    assert scores[truth == 0].mean() == pytest.approx(0.2, abs=0.04)
    assert scorer.report["n_held_out"] == 600
    assert scorer.report["brier"] == pytest.approx(0.16, abs=0.03)


def test_shuffled_labels_teach_nothing():
    texts, labels, _ = corpus(2000, noise=0, seed=2)
    shuffled = np.random.default_rng(0).permutation(labels)
    scorer = LinearToxicityScorer.fit(texts, shuffled)
    assert scorer.report["auroc"] == pytest.approx(0.5, abs=0.08)
    # Calibration sees that the margins mean nothing.
    assert scorer(texts[:50]).std() < 0.15


def test_a_score_does_not_depend_on_the_batch_or_its_order(scorer):
    texts, _, _ = corpus(200, noise=0, seed=3)
    whole = scorer(texts)
    np.testing.assert_array_equal(whole, np.concatenate([scorer([text]) for text in texts]))
    np.testing.assert_array_equal(whole[::-1], scorer(texts[::-1]))


def test_saving_keeps_every_score_and_pickles_nothing(scorer, tmp_path):
    scorer.save(tmp_path / "scorer")
    loaded = LinearToxicityScorer.load(tmp_path / "scorer")
    texts, _, _ = corpus(100, noise=0, seed=4)
    np.testing.assert_array_equal(loaded(texts), scorer(texts))
    assert loaded.name == scorer.name
    assert loaded.report == scorer.report
    assert sorted(p.name for p in (tmp_path / "scorer").iterdir()) == ["scorer.json", "scorer.safetensors"]


def test_a_scorer_of_the_first_version_loads_and_a_damaged_one_does_not(scorer, tmp_path):
    """It has no checksums but its name, a hash of the bytes of its weights."""

    def write(weights):
        save_file({"weights": weights, "bias": np.array([scorer.bias])}, tmp_path / "scorer.safetensors")

    written = hashlib.sha256(scorer.weights.tobytes() + np.float64(scorer.bias).tobytes()).hexdigest()
    meta = {"format": 1, "kind": "LinearToxicityScorer", "name": f"linear-{written[:8]}", "report": scorer.report}
    (tmp_path / "scorer.json").write_text(json.dumps(meta))
    write(scorer.weights)
    texts, *_ = corpus(20, noise=0.1, seed=9)
    np.testing.assert_array_equal(LinearToxicityScorer.load(tmp_path)(texts), scorer(texts))
    write(scorer.weights * np.float32(1.001))
    with pytest.raises(EntangleError, match="weights are not those"):
        LinearToxicityScorer.load(tmp_path)


def test_names_tell_scorers_apart(scorer):
    texts, labels, _ = corpus(300, noise=0, seed=5)
    assert LinearToxicityScorer.fit(texts, labels).name != scorer.name
    assert LinearToxicityScorer.fit(texts, labels).name == LinearToxicityScorer.fit(texts, labels).name


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(), max_size=5))
def test_any_text_has_a_score(scorer, texts):
    scores = scorer(texts)
    assert scores.shape == (len(texts),)
    assert np.all((scores >= 0) & (scores <= 1))


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a", "b"], [1], "one for each of 2 examples"),
        (["a", "b"], [1, 1], "only the label '1'"),
        (["a", "b", "c"], [0, 1, 2], "labels have 3 values"),
        (["a", "b"], [0, 1], "leaves too few to fit or to report on"),
        ([], [], "no example"),
    ],
)
def test_bad_labels(texts, labels, message):
    with pytest.raises(EntangleError, match=message):
        LinearToxicityScorer.fit(texts, labels)


def test_loading_what_is_no_scorer(tmp_path):
    with pytest.raises(EntangleError, match=r"scorer\.json is missing"):
        LinearToxicityScorer.load(tmp_path)
    (tmp_path / "scorer.json").write_text('{"format": 99, "kind": "LinearToxicityScorer"}')
    with pytest.raises(EntangleError, match="format 99"):
        LinearToxicityScorer.load(tmp_path)


def test_copies_of_a_text_are_never_on_both_sides():
    """Texts that say nothing of their labels, five times each: one that has seen them knows them by heart."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{k}" for k in rng.integers(10_000, size=6)) for _ in range(60)]
    labels = rng.permutation([0, 1] * 30)
    honest = LinearToxicityScorer.fit(texts * 5, np.tile(labels, 5)).report
    assert honest["n_fit"] == 240
    assert honest["n_held_out"] == 60
    assert honest["auroc"] < 0.9
    # What splitting the rows would have said.
    marked = [f"{text} {copy}" for copy in range(5) for text in texts]
    assert LinearToxicityScorer.fit(marked, np.tile(labels, 5)).report["auroc"] > 0.95
