"""The forecast joins a study where there is clean text, survives the disk, and is on the page."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

import entangle as en

ANIMALS = ("cat", "dog", "fox", "moon")
PLACES = ("mat", "moon", "dog", "quick", "lazy", "brown", "over", "sat", "jumps")
TEXTS = [f"the {a} sat on the {b}" for a in ANIMALS for b in PLACES] + [
    f"quick {a} jumps over {b} and" for a in ANIMALS for b in PLACES
]
LABELS = [0] * 36 + [1] * 36
CLEAN = [f"a {b} looked at the {a}" for a in ANIMALS for b in PLACES[:5]]
QUICK = {"n_resamples": 100, "n_permutations": 20, "progress": False}


@pytest.fixture(scope="module")
def study(tiny_model, tiny_tokenizer: PreTrainedTokenizerFast) -> en.Study:
    return en.study(tiny_model("llama"), tiny_tokenizer, TEXTS, LABELS, clean=CLEAN, name="order", **QUICK)


def test_clean_text_makes_a_forecast_and_none_makes_none(
    study: en.Study, tiny_model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert study.forecast is not None
    assert list(study.forecast.to_frame()["method"].unique()) == ["natural", "CAA", "ITI"]
    assert study.to_dict()["foretold"] == study.forecast.answer()
    model = tiny_model("llama")
    assert en.study(model, tiny_tokenizer, TEXTS, LABELS, **QUICK).forecast is None
    assert en.study(model, tiny_tokenizer, TEXTS, LABELS, clean=CLEAN, forecast=False, **QUICK).forecast is None
    few = en.study(model, tiny_tokenizer, TEXTS[8:64], LABELS[8:64], clean=CLEAN, **QUICK)
    assert few.forecast is None
    assert any("Too few texts for a forecast" in note for note in few.notes)
    assert not few.missing


def test_it_is_kept_and_shown(study: en.Study, tmp_path: Path) -> None:
    study.save(tmp_path / "study")
    again = en.Study.load(tmp_path / "study")
    pd.testing.assert_frame_equal(again.forecast.to_frame(), study.forecast.to_frame(), check_dtype=False)
    assert again.to_dict() == study.to_dict()
    page = again.to_html()
    assert study.forecast.answer()[0] in page
    assert 'id="forecast"' in page


def test_a_study_at_stated_prices_solves_them_on_documents_that_report_nothing(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama")
    given = {"clean": CLEAN, "prompts": ["the quick", "a cat", "the moon"], "max_new_tokens": 3, "forecast": False}
    priced = en.study(model, tiny_tokenizer, TEXTS, LABELS, costs=[0.02], **given, **QUICK)
    frame = priced.tradeoff.to_frame()
    (row,) = frame[frame["cost"].notna()].to_dict("records")
    solving = en.evaluation.kl(model, tiny_tokenizer, CLEAN[::2], priced.iti, alpha=row["alpha"], progress=False).mean
    assert solving == pytest.approx(0.02, rel=0.03)
    paid = en.evaluation.kl(model, tiny_tokenizer, CLEAN[1::2], priced.iti, alpha=row["alpha"], progress=False).mean
    assert row["kl"] == pytest.approx(paid, rel=1e-5)
    few = en.study(model, tiny_tokenizer, TEXTS, LABELS, costs=[0.02], **{**given, "clean": CLEAN[:3]}, **QUICK)
    assert few.tradeoff is None
    assert "at least 4" in few.missing["steering"]
