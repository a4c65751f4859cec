"""The scorer protocol: what any scorer may return, its cache, and several scorers beside each other."""

import threading

import numpy as np
import pytest

from entangle.errors import EntangleError
from entangle.evaluation import CachedScorer, Scorer, score, scorer_agreement


class Exclaiming:
    """Share of exclamation marks; counts the texts it was asked for."""

    name = "exclaiming"

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return np.array([text.count("!") / len(text) for text in texts])


def test_a_class_with_a_name_is_a_scorer():
    assert isinstance(Exclaiming(), Scorer)


def test_blank_texts_score_zero_and_are_not_asked_about():
    scorer = Exclaiming()
    np.testing.assert_array_equal(score(scorer, ["a!", " ", "", "!!"]), [0.5, 0, 0, 1])
    assert scorer.asked == ["a!", "!!"]
    assert score(scorer, []).shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1, np.inf])
def test_scores_outside_the_unit_interval_are_refused(bad):
    def broken(texts):
        return np.array([0.5, bad])

    with pytest.raises(EntangleError, match=r"'broken' must return scores in \[0, 1\].*text 2"):
        score(broken, ["a", "", "b"])


def test_another_number_of_scores_is_refused():
    with pytest.raises(EntangleError, match="one score for each of 2 texts"):
        score(lambda texts: np.zeros(3), ["a", "b"])


def test_a_scorer_without_a_name_is_refused():
    class Nameless:
        def __call__(self, texts):
            return np.zeros(len(texts))

    with pytest.raises(EntangleError, match="needs a name"):
        CachedScorer(Nameless())


def test_the_cache_asks_once_for_each_text_and_outlives_the_process(tmp_path):
    texts = ["one!", "two!!", "one!"]
    scorer = Exclaiming()
    cached = CachedScorer(scorer, tmp_path / "scores.db")
    first = cached(texts)
    np.testing.assert_array_equal(first, Exclaiming()(texts))
    assert scorer.asked == ["one!", "two!!"]

    again = Exclaiming()
    np.testing.assert_array_equal(CachedScorer(again, tmp_path / "scores.db")([*texts, "new!"])[:3], first)
    assert again.asked == ["new!"]


def test_scorers_of_different_names_do_not_share_scores(tmp_path):
    shouting, flat = Exclaiming(), Exclaiming()
    flat.name = "flat"
    CachedScorer(shouting, tmp_path / "scores.db")(["a!"])
    CachedScorer(flat, tmp_path / "scores.db")(["a!"])
    assert flat.asked == ["a!"]


def test_agreement_of_a_scorer_with_itself_its_reverse_and_noise():
    rng = np.random.default_rng(0)
    a = rng.random(400)
    texts = [f"text {i}" for i in range(400)]
    table = scorer_agreement({"a": a, "reverse": 1 - a, "noise": rng.random(400)}, texts).set_index(["first", "second"])
    assert table.loc[("a", "reverse"), "rank_correlation"] == pytest.approx(-1)
    assert table.loc[("a", "reverse"), "same_side"] == 0
    assert abs(table.loc[("a", "noise"), "rank_correlation"]) < 0.15
    text, high, low = table.loc[("a", "reverse"), "disagreements"][0]
    assert abs(high - low) == max(abs(2 * a - 1))
    assert text == texts[int(np.argmax(abs(2 * a - 1)))]


def test_agreement_needs_two():
    with pytest.raises(EntangleError, match="two scorers"):
        scorer_agreement({"a": np.zeros(3)}, ["x", "y", "z"])
    with pytest.raises(EntangleError, match=r"'b' has scores of shape \(2,\)"):
        scorer_agreement({"a": np.zeros(3), "b": np.zeros(2)}, ["x", "y", "z"])


class Fitted:
    name = "fitted"

    def __init__(self, level):
        self.level, self.asked = level, 0

    def __call__(self, texts):
        self.asked += len(texts)
        return np.full(len(texts), self.level)


def test_a_scorer_fitted_anew_is_asked_anew(tmp_path):
    scorer = Fitted(0.25)
    cached = CachedScorer(scorer, tmp_path / "scores.db")
    assert cached(["a", "b"]).tolist() == cached(["a", "b"]).tolist() == [0.25, 0.25]
    assert scorer.asked == 2  # that it counts does not make it another scorer
    scorer.level = 0.75
    assert cached(["a"]).tolist() == [0.75]
    assert CachedScorer(Fitted(0.5), tmp_path / "scores.db")(["a"]).tolist() == [0.5]


def test_two_functions_of_one_name_do_not_share_scores(tmp_path):
    def constant(level):
        return lambda texts: np.full(len(texts), level)

    for level in (0.0, 1.0):
        assert CachedScorer(constant(level), tmp_path / "scores.db")(["a"]).tolist() == [level]


def test_a_scorer_that_nothing_tells_from_another_is_refused():
    class Service:
        name = "service"

        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, texts):
            return np.zeros(len(texts))

    with pytest.raises(EntangleError, match=r"'service' cannot be kept.*content\(\)"):
        CachedScorer(Service())
    Service.content = lambda self: "version 1"
    assert CachedScorer(Service())(["a"]).tolist() == [0]
    assert score(Fitted(0.5), ["a"]).tolist() == [0.5]
