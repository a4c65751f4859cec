"""The answer in words follows fixed rules: each boundary is tried on numbers that lie on either side of it."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import pytest

from entangle.study.answer import compared, headline, sentences, steered_row


def estimate(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def row(
    alpha: float, removed: tuple[float, float, float], paid: tuple[float, float, float], **more: Any
) -> dict[str, Any]:
    return {
        "method": "ITI",
        "alpha": alpha,
        "error": "",
        "degenerate": 0.01,
        **estimate("toxicity", 0.3, 0.2, 0.4),
        **estimate("removed", *removed),
        **estimate("ce_change", *paid),
        **estimate("removed_per_nat", 0.5, 0.4, 0.6),
    }


PLAIN = row(0.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
BEST = {"layer": 4, "head": None, "p": 0.01, **estimate("accuracy", 0.7, 0.68, 0.72)}
NUMBERS: dict[str, Any] = {
    "concept": "toxicity",
    "label": "a model",
    "settings": {"seed": 3},
    "split": {"fit": 600, "select": 200, "report": 1200},
    "n_prompts": 500,
    "best_method": None,
    "probes": {
        "resid_post": {"best": BEST, "null_ceiling": 0.53, "n_permutations": 100},
        "z": {"best": {**BEST, "head": 2}, "null_ceiling": 0.55, "n_permutations": 100},
    },
    "baselines": {
        "bag_of_words": {**estimate("accuracy", 0.6, 0.58, 0.62), **estimate("difference", 0.1, 0.06, 0.14)},
    },
    "entanglement": {
        "names": ["toxicity", "tense", "topic"],
        "best_layer": 4,
        "rows": [
            {
                "concept": "toxicity", "layer": 4, "entanglement": 0.4, "low": 0.3, "high": 0.5, "partner": "tense",
                "covariance_percentile": 0.97, "split_half": 0.9, "null_high": 0.2,
                **estimate("variance_share", 0.1, 0.05, 0.2),
            }
        ],
    },
    "tradeoff": [PLAIN, row(4.0, (0.1, 0.05, 0.15), (0.2, 0.1, 0.3)), row(12.0, (0.2, 0.15, 0.25), (0.6, 0.5, 0.7))],
}  # fmt: skip


def changed(path: str, **values: Any) -> dict[str, Any]:
    """The numbers with some of them changed, at keys that dots part."""
    numbers = deepcopy(NUMBERS)
    place: Any = numbers
    for key in path.split("."):
        place = place[int(key) if key.lstrip("-").isdigit() else key]
    place.update(values)
    return numbers


def test_a_whole_study_is_six_sentences_with_a_number_each() -> None:
    found = sentences(NUMBERS)
    assert len(found) == 6
    for sentence in found:
        assert sentence.endswith(".")
        assert re.search(r"\d", sentence)
    for sentence in found[:-1]:
        assert re.search(r"\d \[-?\d\.\d+, -?\d\.\d+\]", sentence)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (changed("probes.resid_post.best", p=0.05), "Toxicity can be read from a model"),
        (changed("probes.resid_post.best", p=0.051), "Toxicity cannot be read from a model"),
        (changed("baselines.bag_of_words", difference_low=0.001), "better than from the words alone"),
        (changed("baselines.bag_of_words", difference_low=-0.001), "no better than from the words alone"),
        (changed("baselines.bag_of_words", difference_low=-0.2, difference_high=-0.001), "worse than from the words"),
        (changed("entanglement.rows.0", covariance_percentile=0.95), "it is more entangled with the 2 other concepts"),
        (changed("entanglement.rows.0", covariance_percentile=0.949), "it is no more entangled"),
        (changed("entanglement.rows.0", covariance_percentile=0.05), "it is less entangled"),
        (changed("entanglement.rows.0", split_half=0.49), "mostly noise"),
        (changed("tradeoff.2", removed_low=0.001), "Steering lowers it: at alpha 12"),
        (changed("tradeoff.2", removed_low=-0.001), "Steering did not lower it: at alpha 12"),
        (changed("tradeoff.2", removed_low=-0.3, removed_high=-0.001), "Steering raised it"),
        (changed("tradeoff.2", degenerate=0.06), "6 % of what it then writes is empty or loops, against 1 %"),
        (changed("tradeoff.2", ce_change_low=0.001), "At alpha 12 it costs 0.600"),
        (changed("tradeoff.2", ce_change_low=0.0), "costs nothing that can be seen"),
        (changed("tradeoff.2", error="not finite"), "Steering lowers it: at alpha 4"),
        (NUMBERS, "so that a nat removes 0.50 [0.40, 0.60]"),
        (NUMBERS, "over 1,200 texts and 500 prompts of this one model"),
    ],
)
def test_each_rule_changes_its_mind_at_its_boundary(numbers: dict[str, Any], words: str) -> None:
    assert words in " ".join(sentences(numbers))


def test_what_was_not_measured_is_not_spoken_of() -> None:
    small = {**NUMBERS, "entanglement": None, "tradeoff": None}
    assert len(sentences(small)) == 3
    text = " ".join(sentences(small))
    for word in ("entangled", "Steering", "nats", "prompts"):
        assert word not in text
    assert "noise" not in " ".join(sentences(NUMBERS))
    assert "empty or loops" not in " ".join(sentences(changed("tradeoff.2", degenerate=0.05)))
    removed_nothing = changed("tradeoff.2", removed_low=-0.1)
    assert "a nat removes" not in " ".join(sentences(removed_nothing))


def test_the_strongest_strength_is_told_in_whatever_order_they_came() -> None:
    turned = {**NUMBERS, "tradeoff": [PLAIN, NUMBERS["tradeoff"][2], NUMBERS["tradeoff"][1]]}
    assert sentences(turned) == sentences(NUMBERS)


def test_the_heads_speak_where_the_residual_stream_was_not_probed() -> None:
    heads = {**NUMBERS, "probes": {"z": NUMBERS["probes"]["z"]}}
    assert "layer 4, head 2" in sentences(heads)[0]


def test_a_row_of_the_table_stands_behind_every_number_of_the_answer() -> None:
    shown = " ".join(f"{row['value']:.3f}" for row in headline(NUMBERS))
    for value in ("0.700", "0.600", "0.100", "0.400", "0.300", "0.200"):
        assert value in shown


def test_the_strongest_strength_is_the_furthest_from_nothing_on_either_side() -> None:
    weak, strong = ({**row, "alpha": -row["alpha"]} for row in NUMBERS["tradeoff"][1:3])
    assert steered_row({**NUMBERS, "tradeoff": [PLAIN, weak, strong]}) is strong


def test_the_best_method_is_told_on_the_prompts_that_did_not_choose_it() -> None:
    best = {
        "method": "CAA", "among": ["ITI", "CAA"], "chosen_on": 250, "n_prompts": 240, "plain": PLAIN,
        "steered": {**row(1.5, (0.25, 0.2, 0.3), (0.1, 0.05, 0.15)), "method": "CAA"},
    }  # fmt: skip
    found = " ".join(sentences({**NUMBERS, "best_method": best}))
    assert "by CAA at alpha 1.5, which 250 other prompts chose among 2 methods at one price, the mean score" in found
    assert "by -0.250 [-0.300, -0.200]" in found
    assert "over 1,200 texts and 240 prompts" in found
    assert "ITI" not in found
    told = [row["where"] for row in headline({**NUMBERS, "best_method": best}) if row["quantity"] == "removed"]
    assert told == ["CAA, alpha 1.5; 240 prompts", "ITI, alpha 4", "ITI, alpha 12"]


def test_what_a_control_of_the_same_price_removes_is_no_merit_of_a_method() -> None:
    best = {
        "method": "CAA", "among": ["ITI", "CAA"], "chosen_on": 250, "n_prompts": 240, "plain": PLAIN,
        "steered": {**row(1.5, (0.25, 0.2, 0.3), (0.1, 0.05, 0.15)), "method": "CAA"}, "control": "random directions",
    }  # fmt: skip
    more = {**NUMBERS, "best_method": {**best, **estimate("beyond_control", 0.2, 0.1, 0.3)}}
    equal = {**NUMBERS, "best_method": {**best, **estimate("beyond_control", 0.1, -0.1, 0.3)}}
    assert "which is more than random directions of the same price (0.200 [0.100, 0.300])." in " ".join(sentences(more))
    told = " ".join(sentences(equal))
    assert "which is no more, as far as can be told, than random directions of the same price (0.100 [-0.100" in told
    quantities = [line["quantity"] for line in headline(more)]
    assert quantities.count("removed beyond random directions") == 1


def test_studies_side_by_side_are_told_apart() -> None:
    dear, cheap = deepcopy(NUMBERS), deepcopy(NUMBERS)
    cheap["label"] = "another"
    cheap["entanglement"]["rows"][0] |= {"covariance_percentile": 0.5, "partner": "topic"}
    cheap["tradeoff"][-1] |= estimate("removed_per_nat", 2.0, 1.5, 2.5)
    entangled, price = compared([cheap, dear])
    assert entangled.startswith("Toxicity is entangled no more than by chance in another (E 0.40, nearest to topic, ")
    assert "and more than by chance in a model (E 0.40, nearest to tense, percentile 97)." in entangled
    assert price.startswith("It is dearest to steer out in a model: ")
    assert "2.00 [1.50, 2.50] in another and 0.50 [0.40, 0.60] in a model" in price
    # Intervals less than a quarter apart say nothing; neither does a price that cannot be seen, or one study.
    cheap["tradeoff"][-1] |= estimate("removed_per_nat", 2.0, 0.751, 2.5)
    assert compared([cheap, dear])[1].startswith("It is dearest to steer out in a model: ")
    cheap["tradeoff"][-1] |= estimate("removed_per_nat", 2.0, 0.749, 2.5)
    assert compared([cheap, dear])[1].startswith("It is not shown to be dearer by a quarter to steer out in one")
    cheap["tradeoff"][-1] |= estimate("ce_change", 0.1, -0.1, 0.2)
    assert compared([cheap, dear]) == [entangled]
    assert compared([dear]) == []
