"""What is compared over shares is what was measured: planted effects are found, and absent ones are not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entangle.composition import Composition, Measurement, Recipe, Source, TrainedModel
from entangle.composition.comparing.claims import FAILS, HOLDS, UNKNOWN, claims, flat_verdict, verdict
from entangle.composition.comparing.comparison import Comparison
from entangle.composition.comparing.intervals import crossed_mean
from entangle.composition.recipe.sources import Labelled
from entangle.errors import EntangleError
from entangle.metrics import Estimate

SHARES, SEEDS = (0.0, 0.05, 0.1), (0, 1, 2)
N_PROMPTS, N_DOCUMENTS, N_TEXTS = 60, 30, 200


def measured(share: float, seed: int, effect: float) -> dict[str, Any]:
    """A model in which, with the share, heads read better, the plain text is worse, and the steered one better."""
    rng = np.random.default_rng([seed, round(1000 * share)])
    items = np.random.default_rng(0)  # prompts and documents are the same for all models
    base, tokens = items.uniform(0.2, 0.6, N_PROMPTS), items.integers(50, 200, N_DOCUMENTS)
    nats = tokens * items.normal(4, 0.2, N_DOCUMENTS)

    def condition(method: str, alpha: float, shift: float, paid: float) -> dict[str, Any]:
        return {
            "method": method,
            "alpha": alpha,
            "scores": np.clip(base + shift + rng.normal(0, 0.02, N_PROMPTS), 0, 1).tolist(),
            "nats": (nats + tokens * (paid + rng.normal(0, 0.01))).tolist(),
            "degenerate": 0.0,
            "error": "",
        }

    heads = 0.6 + 2 * effect * share + 0.02 * rng.standard_normal((4, 5))
    # Texts are hard or easy for every head of every model alike.
    own = np.random.default_rng([seed, round(1000 * share), 1])
    hits = 0.6 + 2 * effect * share + items.normal(0, 0.05, N_TEXTS) + own.normal(0, 0.05, N_TEXTS)
    return {
        "heads": {"accuracy": heads.tolist(), "layers": [0, 1, 2, 3], "hits": hits.tolist()},
        "stream": {"best_accuracy": float(heads.max())},
        "bag_of_words": 0.9,
        "entanglement": {"layer": 2, "rows": [{"concept": "toxicity", "entanglement": 0.3, "partner": "tense"}]},
        "prompts": {"one": [0, 20], "two": [20, N_PROMPTS]},
        "tokens": tokens.tolist(),
        "conditions": [
            condition("", 0.0, effect * share, 0.0),
            condition("ITI", 4.0, -0.1 - effect * share, 0.2),
        ],
    }


def composed(effect: float, *, shares: tuple[float, ...] = SHARES, seeds: tuple[int, ...] = SEEDS) -> Composition:
    source = Source(documents=1)
    prompts = {"one": source, "two": source}
    recipe = Recipe(
        source, source, source, shares=shares, seeds=seeds, measure=Measurement(Labelled(concept="tense"), prompts)
    )
    models = tuple(
        TrainedModel(Path(cell.name), cell.share, cell.seed, {}, "", measured(cell.share, cell.seed, effect))
        for cell in recipe.cells
    )
    return Composition(recipe, models)


def test_planted_effects_are_found() -> None:
    found = Comparison.of(composed(effect=1.0))
    assert found.probe_tests["seeds_mean"] == pytest.approx(1 / 216, abs=0.02)
    assert found.probe_tests["heads_t"] < 0.01
    assert found.probe_tests["rise"]["value"] == pytest.approx(0.2, abs=0.02)
    said = {claim.claim: claim.verdict for claim in claims(found)}
    assert list(said.values())[1:4] == [HOLDS] * 3
    steered = found.steering.query("method == 'ITI' and share == 0.1").iloc[0]
    assert steered["removed"] == pytest.approx(0.3, abs=0.02)
    assert steered["paid"] == pytest.approx(0.2, abs=0.03)
    assert steered["against_first_low"] < steered["against_first"] == pytest.approx(-0.1, abs=0.02)


def test_where_there_is_no_effect_none_is_found() -> None:
    found = Comparison.of(composed(effect=0.0))
    assert found.probe_tests["seeds_mean"] > 0.02
    assert [claim.verdict for claim in claims(found)][1:4] == [UNKNOWN] * 3


def test_an_opposite_effect_does_not_hold() -> None:
    assert [claim.verdict for claim in claims(Comparison.of(composed(effect=-1.0)))][1:4] == [FAILS] * 3


def test_tables_have_a_row_for_every_share_and_condition() -> None:
    found = Comparison.of(composed(effect=1.0))
    assert found.capability["share"].tolist() == found.probes["share"].tolist() == list(SHARES)
    assert found.capability["difference"].iloc[0] == 0
    assert len(found.steering) == len(SHARES) * 2
    assert found.prompt_sets == ["all prompts", "one", "two"]
    one, two = (found.steering.iloc[0][name] for name in ("one", "two"))
    assert (20 * one + 40 * two) / 60 == pytest.approx(found.steering.iloc[0]["toxicity"])
    assert len(found.entanglement) == len(SHARES) * len(SEEDS)


def test_only_seeds_that_have_every_share_are_compared() -> None:
    whole = composed(effect=1.0)
    assert Comparison.of(Composition(whole.recipe, whole.models[:-1])).seeds == [0, 1]
    for too_few in (Composition(whole.recipe, whole.models[:2]), composed(1.0, shares=(0.0,))):
        with pytest.raises(EntangleError, match="a measured model of every share"):
            Comparison.of(too_few)


@pytest.mark.parametrize(
    ("low", "high", "rises", "said"),
    [(0.1, 0.2, True, HOLDS), (-0.2, -0.1, True, FAILS), (-0.2, -0.1, False, HOLDS), (-0.1, 0.1, True, UNKNOWN)],
)
def test_a_verdict_is_the_side_of_zero(low: float, high: float, rises: bool, said: str) -> None:
    assert verdict(Estimate(0.0, low, high), rises=rises, n_seeds=2) == said
    assert verdict(Estimate(0.0, low, high), rises=rises, n_seeds=1) == UNKNOWN


def test_the_rise_of_the_heads_knows_that_texts_are_shared() -> None:
    """Heads that agree say nothing of other texts: over texts the interval is far wider than over heads."""
    comparison = Comparison.of(composed(effect=0.0))
    rise = Estimate(**comparison.probe_tests["rise"])
    texts = np.array([[each["heads"]["hits"] for each in comparison.at(share)] for share in (0.0, 0.1)])
    assert tuple(rise) == pytest.approx(tuple(crossed_mean(texts[1] - texts[0], bounds=(-1, 1))))


def test_models_measured_before_texts_were_kept_have_no_verdict_on_probes() -> None:
    models = composed(effect=1.0)
    for model in models.models:
        assert model.measured is not None
        del model.measured["heads"]["hits"]
    comparison = Comparison.of(models)
    assert comparison.probe_tests["rise"]["value"] == pytest.approx(0.2, abs=0.02)
    assert np.isnan(comparison.probe_tests["rise"]["low"])
    assert claims(comparison)[2].verdict == UNKNOWN


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.01, 0.02, HOLDS), (0.01, 0.04, HOLDS), (-0.01, 0.06, UNKNOWN), (0.06, 0.09, FAILS), (-0.2, -0.06, FAILS)],
)
def test_flat_is_a_change_within_the_margin_and_nothing_else(low: float, high: float, said: str) -> None:
    estimate = Estimate((low + high) / 2, low, high)
    assert flat_verdict(estimate, within=0.05, n_seeds=3) == said
    assert flat_verdict(estimate, within=0.05, n_seeds=1) == UNKNOWN
    assert flat_verdict(estimate, within=1.0, n_seeds=2) == HOLDS
    unknown = Estimate(0.0, float("nan"), float("nan"))
    assert flat_verdict(unknown, within=0.05, n_seeds=3) == UNKNOWN


def flat_studies(rng: np.random.Generator, seeds: int, change: float, n: int = 400) -> list[tuple[str, bool]]:
    """Verdicts, and whether the rule of before, a difference below the seeds' own spread, says that it is flat."""
    verdicts = []
    for _ in range(n):
        documents = rng.normal(0, 0.5, 100)
        first, last = (
            4 + shift + documents + rng.normal(0, 0.01, (seeds, 1)) + rng.normal(0, 0.03, (seeds, 100))
            for shift in (0.0, change)
        )
        noise = max(first.mean(1).std(ddof=1), last.mean(1).std(ddof=1))
        difference = crossed_mean(last - first)
        verdicts.append((flat_verdict(difference, within=0.05, n_seeds=seeds), abs(difference.value) < noise))
    return verdicts


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_a_flat_study_is_not_refuted_and_a_change_of_the_margin_is_not_called_flat(seeds: int) -> None:
    rng = np.random.default_rng(0)
    flat = flat_studies(rng, seeds, 0.0)
    assert np.mean([said == FAILS for said, _ in flat]) <= 0.01
    assert np.mean([not before for _, before in flat]) > 0.1  # the control: what was refuted before
    at_margin = flat_studies(rng, seeds, 0.05)
    for verdict_there in (HOLDS, FAILS):
        assert np.mean([said == verdict_there for said, _ in at_margin]) <= (0.08 if seeds == 2 else 0.05)
    if seeds == 4:
        assert np.mean([said == HOLDS for said, _ in flat]) > 0.9
        assert np.mean([said == FAILS for said, _ in flat_studies(rng, seeds, 0.15)]) > 0.9


def test_the_price_is_told_where_intervals_over_seeds_lie_apart() -> None:
    steered = Comparison.of(composed(effect=1.0)).steering.query("method == 'ITI' and share == 0.1").iloc[0]
    assert steered["removed_per_nat"] == pytest.approx(1.5, abs=0.2)
    assert [claims(Comparison.of(composed(effect)))[-1].verdict for effect in (1.0, 0.0, -1.0)] == [
        HOLDS,
        UNKNOWN,
        FAILS,
    ]
