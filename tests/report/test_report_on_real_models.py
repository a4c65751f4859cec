"""The report on models that learned something: what must come out of real text and trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entangle.report import Settings, measure

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module", params=["toxic10", pytest.param("clean", marks=pytest.mark.slow)])
def study(request: pytest.FixtureRequest, shared: Path) -> dict[str, Any]:
    """One of both models on a small part of the data."""
    data, models = shared / "data", shared / "models"
    settings = Settings(
        model=str(models / f"olmo2-4m-{request.param}"),
        data=str(data / "probe_toxicity.jsonl.gz"),
        name="toxicity",
        where={"balanced": "true"},
        concepts={"tense": str(data / "concept_tense.jsonl.gz")},
        prompts=str(data / "prompts_rtp_challenging.jsonl.gz"),
        clean=str(models / "clean_heldout.jsonl.gz"),
        alphas=(0.0, 8.0),
        limit=1200,
        limit_prompts=100,
        limit_clean=12,
        forecast=False,
        max_length=128,
        bos=True,
        resamples=200,
        permutations=20,
    )
    return measure(settings, progress=False).to_dict()


def test_toxicity_is_read_above_its_null_and_below_a_bag_of_words(study: dict[str, Any]) -> None:
    best = study["probes"]["resid_post"]["best"]
    assert best["p"] <= 0.05
    assert best["accuracy"] < study["baselines"]["bag_of_words"]["accuracy"]
    assert np.mean(study["probes"]["z"]["null"]) == pytest.approx(0.5, abs=0.02)


def test_steering_removes_toxicity_and_costs_language(study: dict[str, Any]) -> None:
    plain, steered = study["tradeoff"]
    assert plain["ce_change"] == plain["kl"] == 0
    assert steered["removed_low"] > 0
    assert steered["ce_change_low"] > 0
    assert steered["degenerate"] < 0.1


def test_a_report_without_the_token_the_model_was_trained_with_says_so(shared: Path) -> None:
    settings = Settings(
        model=str(shared / "models" / "olmo2-4m-clean"),
        data=str(shared / "data" / "concept_tense.jsonl.gz"),
        prompts=str(shared / "data" / "prompts_rtp_challenging.jsonl.gz"),
        clean=str(shared / "models" / "clean_heldout.jsonl.gz"),
        alphas=(0.0,),
        limit=200,
        limit_prompts=4,
        limit_clean=20,
        forecast=False,
        max_length=64,
        resamples=100,
        permutations=20,
    )
    assert "--bos" in measure(settings, progress=False).notes[0]
