"""How often a concept occurs in sets of texts: by planted truth, by scorer and by probe, and compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import entangle as en
from entangle.data import LabelledTexts
from entangle.errors import EntangleError
from entangle.evaluation import Prevalences, ProbeScorer, prevalence


class Errs:
    """Sees the word "rude", but for a share of texts that it gets wrong, by their number."""

    name = "errs"

    def __init__(self, misses: int, alarms: int) -> None:
        self.misses, self.alarms = misses, alarms  # one in so many

    def __call__(self, texts: list[str]) -> np.ndarray:
        found = []
        for text in texts:
            number, rude = int(text.split()[0]), "rude" in text
            found.append(0.9 if (rude and number % self.misses) or (not rude and number % self.alarms == 0) else 0.1)
        return np.array(found)


def texts_of(n: int, share: float, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{rng.integers(10**6)} {'rude' if rng.uniform() < share else 'kind'}" for _ in range(n)]


LABELLED = texts_of(600, 0.5, seed=9)
VALIDATION = LABELLED, [int("rude" in text) for text in LABELLED]


def test_the_truth_is_found_through_the_scorers_errors() -> None:
    sets = {"data": texts_of(2000, 0.05, 1), "plain": texts_of(2000, 0.2, 2)}
    frame = prevalence(Errs(5, 10), sets, VALIDATION).to_frame().set_index("texts")
    for name, share in (("data", 0.05), ("plain", 0.2)):
        row = frame.loc[name]
        assert row["prevalence_low"] <= share <= row["prevalence_high"]
        assert not row["flagged_low"] <= share <= row["flagged_high"]  # what it flags says otherwise
    assert frame["sensitivity"].to_numpy() == pytest.approx([0.8, 0.8], abs=0.05)
    assert frame["specificity"].to_numpy() == pytest.approx([0.9, 0.9], abs=0.05)


def test_more_often_than_its_data_is_a_tested_statement() -> None:
    sets = {"data": texts_of(1500, 0.05, 1), "plain": texts_of(1500, 0.2, 2), "again": texts_of(1500, 0.05, 3)}
    found = prevalence(Errs(5, 10), sets, VALIDATION)
    table = found.comparisons().set_index(["first", "second"])
    assert table.loc[("plain", "data"), "verdict"] == "more often in plain than in data"
    assert table.loc[("again", "plain"), "verdict"] == "less often in again than in plain"
    assert table.loc[("again", "data"), "verdict"] == "no difference is seen between again and data"
    assert table.loc[("plain", "data"), "difference_low"] <= 0.15 <= table.loc[("plain", "data"), "difference_high"]
    assert "errs: more often in plain than in data" in found.describe()
    assert "more often in plain" in found._repr_html_()


def test_lists_are_prompts_and_pairs_must_be_of_the_same() -> None:
    rows = [texts_of(4, 0.9 if k % 3 == 0 else 0.05, k) for k in range(60)]
    flat = [text for row in rows for text in row]
    found = prevalence(Errs(5, 10), {"flat": flat, "by prompt": rows}, VALIDATION).to_frame()
    assert found["groups"].tolist() == [240, 60]
    width = found["prevalence_high"] - found["prevalence_low"]
    assert width[1] > 1.2 * width[0]
    with pytest.raises(EntangleError, match="'a' and 'b' are paired but of different prompts"):
        prevalence(Errs(5, 10), {"a": rows, "b": rows[1:]}, VALIDATION, paired=[("a", "b")])


def test_error_rates_of_each_set_and_the_same_for_the_same_texts() -> None:
    sets = {"data": texts_of(400, 0.3, 1), "plain": texts_of(400, 0.3, 2)}
    other = texts_of(300, 0.5, 8), [int("rude" in text) for text in texts_of(300, 0.5, 8)]
    found = prevalence(Errs(5, 10), sets, {"data": VALIDATION, "plain": other})
    assert found.to_frame()["positives"].nunique() == 2
    one = prevalence(Errs(5, 10), sets, VALIDATION)
    assert one.flags["errs"]["data"].errors == one.flags["errs"]["plain"].errors


def test_a_probe_counts_as_a_scorer_does() -> None:
    model, tokenizer, texts, labels, *_ = en.example()
    probe = ProbeScorer.fit(model, tokenizer, texts[:48], labels[:48], layer=1)
    scorer = en.LinearToxicityScorer.fit(texts[:48], labels[:48])
    data = LabelledTexts.of(texts[72:], labels[72:], name="rude", label_names=("polite", "rude"))
    found = prevalence({"probe": probe, "words": scorer}, {"data": texts[48:72]}, data)
    for row in found.to_frame().to_dict("records"):
        assert row["prevalence_low"] <= 0.5 <= row["prevalence_high"]
    assert en.evaluation.scorer_key(probe) == en.evaluation.scorer_key(probe)


def test_saved_and_loaded_it_says_the_same(tmp_path: Any) -> None:
    rows = [texts_of(2, 0.3, k) for k in range(20)]
    both = {"errs": Errs(5, 10), "less": Errs(7, 30)}  # which share the groups of the texts
    found = prevalence(both, {"a": rows, "b": rows}, VALIDATION, paired=[("a", "b")])
    found.save(tmp_path / "saved")
    loaded = Prevalences.load(tmp_path / "saved")
    assert loaded.to_frame().equals(found.to_frame())
    assert loaded.comparisons().equals(found.comparisons())
    np.testing.assert_allclose(loaded.plot().containers[0].lines[0].get_xdata(), found.to_frame()["prevalence"][:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": {}}, "a scorer and a set of texts by name; got none"),
        ({"texts": {"a": ["1 rude"]}}, "two texts or prompts with texts at least; 'a' has 1"),
        ({"scorer": Errs(1, 1)}, r"better than a coin, sensitivity \+ specificity above 1; got 0 \+ 0"),
        ({"threshold": 1.0}, "a score from 0 to below 1; got 1.0"),
        ({"validation": {"b": VALIDATION}}, "no labelled texts for 'a'"),
        ({"validation": LABELLED}, "validation is LabelledTexts, or a pair of texts and labels"),
        ({"paired": [("a", "x")]}, r"paired names pairs of a; got \('a', 'x'\)"),
    ],
)
def test_what_cannot_be_counted_is_one_clear_line(arguments: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"scorer": Errs(5, 10), "texts": {"a": texts_of(20, 0.5)}, "validation": VALIDATION}
    options |= arguments
    with pytest.raises(EntangleError, match=message) as caught:
        prevalence(options.pop("scorer"), options.pop("texts"), options.pop("validation"), **options)
    assert "\n" not in str(caught.value)


def test_error_rates_that_cannot_be_those_of_the_texts_are_noticed() -> None:
    harmless = [text for text in texts_of(800, 0.0) if int(text.split()[0]) % 10]  # on which it never errs
    found = prevalence(Errs(5, 10), {"a": harmless, "b": texts_of(800, 0.1)}, VALIDATION)
    frame = found.to_frame().set_index("texts")
    assert frame["holds"].tolist() == [False, True]
    assert frame.loc["a", ["prevalence", "prevalence_low", "prevalence_high"]].tolist() == [0, 0, 1]
    assert "the scorer errs otherwise on these texts" in found.describe()


def test_one_set_has_nothing_to_compare() -> None:
    with pytest.raises(EntangleError, match="two sets of texts or more"):
        prevalence(Errs(5, 10), {"a": texts_of(20, 0.5)}, VALIDATION).comparisons()


def test_equal_counts_on_other_labelled_texts_are_other_errors(tmp_path: Any) -> None:
    """A scorer that is right on two small sets has the same rates on both by luck, and no errors in common."""
    never, sets = Errs(10**7, 10**7), {"data": texts_of(300, 0.3, 1), "plain": texts_of(300, 0.4, 2)}
    labelled = [([f"{k + 20 * n} {'rude' if k % 2 else 'kind'}" for k in range(1, 21)], [1, 0] * 10) for n in (0, 1)]
    shared = prevalence(never, sets, labelled[0])
    own = prevalence(never, sets, dict(zip(sets, labelled, strict=True)))
    assert own.flags["errs"]["data"].errors == own.flags["errs"]["plain"].errors
    again = prevalence(never, sets, dict.fromkeys(sets, labelled[0]))
    wide, narrow, same = (each.comparisons().iloc[0] for each in (own, shared, again))
    assert wide["difference"] == narrow["difference"]
    assert wide["difference_low"] < narrow["difference_low"]
    assert wide["p"] > narrow["p"] == same["p"]
    own.save(tmp_path / "own")
    assert Prevalences.load(tmp_path / "own").comparisons().equals(own.comparisons())
