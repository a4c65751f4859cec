"""What steering is foretold to cost is compared over shares, at layers that other texts chose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_comparison import SEEDS, composed
from test_experiment import MEASURE, tiny

import entangle as en
from entangle.composition import Composition, Plan, foretold_by_share, run
from entangle.composition.comparing.claims import FAILS, HOLDS, UNKNOWN, claims
from entangle.composition.comparing.comparison import Comparison
from entangle.composition.comparing.foretold import CHOSEN, price_of
from entangle.composition.measuring.foretold import foretold_numbers, pseudo_values
from entangle.errors import EntangleError
from entangle.forecast import Limit
from entangle.metrics import Estimate
from entangle.report.composition.foretold import foretold

FORECAST = {**MEASURE, "forecast": True, "clean_documents": 10, "labelled": {**MEASURE["labelled"], "documents": 140}}


def forecast(share: float, seed: int, effect: float) -> dict[str, Any]:
    """A model in which a shift buys more of toxicity with the share, and of tense the same."""
    texts = np.random.default_rng(0).normal(0, 0.03, (2, 10))  # easy and hard texts, the same for all models
    own = np.random.default_rng([seed, round(1000 * share), 2])
    concepts = {}
    for place, (name, rise) in enumerate({"toxicity": effect * share, "tense": 0.0}.items()):
        folds = [(0.2 + rise + texts[place] + own.normal(0, 0.004, 10)).tolist() for _ in range(3)]
        concepts[name] = {
            "layers": [0, 1, 2],
            "limit": np.mean(folds, axis=1).tolist(),
            "folds": folds,
            "chosen": [1, 2],
            "chosen_folds": np.mean(folds[1:], axis=0).tolist(),
            "chosen_reached": 0.15 + rise + own.normal(0, 0.004),
        }
    rows = [
        {"concept": name, "method": "ITI", "limit": 0.2 + own.normal(0, 0.01), "efficiency": 0.5} for name in concepts
    ]
    return {"unit": 0.1, "rows": rows, "concepts": concepts}


def foretold_models(effect: float) -> Composition:
    models = composed(effect=0.0)
    for model in models.models:
        assert model.measured is not None
        model.measured["forecast"] = forecast(model.share, model.seed, effect)
    return models


@pytest.mark.parametrize(("effect", "said"), [(0.5, HOLDS), (0.0, UNKNOWN), (-0.5, FAILS)])
def test_a_planted_change_of_the_limit_is_found_and_an_absent_one_is_not(effect: float, said: str) -> None:
    comparison = Comparison.of(foretold_models(effect))
    judged = {claim.claim: claim.verdict for claim in claims(comparison)}
    assert [verdict for name, verdict in judged.items() if "cheaper to steer" in name] == [said]
    table = foretold_by_share(comparison)
    largest = table[(table["share"] == 0.1) & (table["layer"] == CHOSEN)].set_index("concept")
    assert largest.loc["toxicity", "against_first"] == pytest.approx(0.1 * effect, abs=0.005)
    low, high = (largest.loc["toxicity", f"reached_against_first_{end}"] for end in ("low", "high"))
    assert low < 0.1 * effect < high
    assert (low > 0, high < 0) == (effect > 0, effect < 0)
    # The control: a concept whose limit does not depend on the share.
    assert largest.loc["tense", "against_first_low"] < 0 < largest.loc["tense", "against_first_high"]
    assert largest.loc["toxicity", "iti_low"] < 0.1 < largest.loc["toxicity", "iti_high"]
    assert len(table) == 3 * 2 * (1 + 3)


def test_texts_that_all_models_share_do_not_blur_a_change() -> None:
    table = foretold_by_share(Comparison.of(foretold_models(0.0)))
    row = table[(table["share"] == 0.1) & (table["layer"] == CHOSEN)].iloc[0]
    assert row["limit_high"] - row["limit_low"] > 4 * (row["against_first_high"] - row["against_first_low"])
    assert len(row["seeds"]) == len(SEEDS)


def test_the_price_is_that_of_the_limit_end_by_end() -> None:
    price = price_of(Estimate(0.2, 0.1, 0.4), unit=0.1)
    assert tuple(price) == pytest.approx((0.125, 0.03125, 0.5))
    assert price_of(Estimate(0.1, -0.1, 0.3), unit=0.1).high == np.inf


def test_pseudo_values_of_a_mean_are_its_parts() -> None:
    parts = np.random.default_rng(0).normal(size=10)
    without = tuple((parts.sum() - part) / 9 for part in parts)
    assert pseudo_values(Limit(parts.mean(), 0, 0, 0, without)) == pytest.approx(parts.tolist())


def test_models_without_a_forecast_have_no_claim_and_no_section() -> None:
    models = foretold_models(0.5)
    assert models.models[0].measured is not None
    assert len(foretold(Comparison.of(models))[0]) == 2
    models.models[0].measured["forecast"] = None
    comparison = Comparison.of(models)
    assert foretold_by_share(comparison).empty
    assert not any("cheaper to steer" in claim.claim for claim in claims(comparison))
    assert foretold(comparison) == ([], [])


def test_a_recipe_that_asks_for_it_has_it_measured(tmp_path: Path) -> None:
    (trained,) = run(tiny(shares=[0.2], measure=FORECAST), tmp_path, progress=False).models
    study = en.Study.load(trained.path / "study")
    numbers = json.loads((trained.path / "measured.json").read_text())["forecast"]
    assert study.forecast is not None
    assert numbers["rows"] == study.forecast.to_dict()["rows"]
    with pytest.raises(EntangleError, match="measure it anew"):
        foretold_numbers(study)
    assert set(numbers["concepts"]) == {"rudeness", "tense"}
    rudeness = numbers["concepts"]["rudeness"]
    # Pseudo-values of what was told by either half, at the layer that the other chose.
    assert len(rudeness["chosen_folds"]) == 10
    assert set(rudeness["chosen"]) <= set(rudeness["layers"]) == {0, 1}
    at_first = rudeness["folds"][rudeness["layers"].index(rudeness["chosen"][0])]
    if len(set(rudeness["chosen"])) == 1:
        assert rudeness["chosen_folds"] == pytest.approx(at_first, abs=1e-5)


def test_too_few_texts_for_a_forecast_are_refused_before_training() -> None:
    few = {**FORECAST, "labelled": {**MEASURE["labelled"], "documents": 40}}
    with pytest.raises(EntangleError, match=r"asks for a forecast.*at least 32"):
        Plan.of(tiny(measure=few))
    Plan.of(tiny(measure={**few, "forecast": False}))  # the control
