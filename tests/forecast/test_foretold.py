"""The forecast of a concept: an effect where there is one, none where labels are drawn, and one page from the shell."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import entangle as en
from entangle import cli
from entangle.forecast import foretell

ANIMALS, PLACES = (
    ("cat", "dog", "fox", "moon"),
    ("mat", "moon", "dog", "quick", "lazy", "brown", "over", "sat", "jumps"),
)
TOLD = [f"the {a} sat on the {b}" for a in ANIMALS for b in PLACES]
OTHER = [f"quick {a} jumps over {b} and" for a in ANIMALS for b in PLACES]
CLEAN = [f"a {b} looked at the {a}" for a in ANIMALS for b in PLACES[:5]]
TEXTS, LABELS = TOLD + OTHER, [0] * len(TOLD) + [1] * len(OTHER)


def test_a_concept_has_a_limit_and_labels_that_are_drawn_have_none(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    drawn = np.random.default_rng(0).permutation(LABELS).tolist()
    concepts = {"order": (TEXTS, LABELS), "drawn": (TEXTS, drawn)}
    told = foretell(tiny_model("llama"), tiny_tokenizer, concepts, CLEAN, layers=[0, 1], max_length=16, progress=False)
    frame = told.to_frame()
    assert list(frame.loc[frame["concept"] == "order", "method"]) == ["natural", "CAA", "natural", "CAA", "ITI"]
    natural = frame[frame["method"] == "natural"].set_index("concept")
    assert (natural.loc["order", "limit_low"] > 0).all()
    assert (natural.loc["drawn", "limit_low"] == 0).all()
    assert natural.loc["order", "limit"].min() > 2 * natural.loc["drawn", "limit"].max()
    order, nothing = told.answer()
    assert order.startswith("order: a constant shift is cheapest at resid_post of layer")
    assert "CAA at layer" in order
    assert "ITI buys" in order
    assert nothing.startswith("drawn: no shift was found that changes it")
    # What a method costs for one effect is what its share of the limit says.
    rows = frame[frame["price"].notna()]
    np.testing.assert_allclose(rows["price"], (0.1 / (rows["efficiency"] * rows["limit"])) ** 2 / 2)


def test_texts_too_few_are_refused(tiny_model, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    with pytest.raises(en.EntangleError, match="32 texts of each class; few has 4 of class 1"):
        foretell(model, tiny_tokenizer, {"few": (TEXTS[:40], LABELS[:40])}, CLEAN, progress=False)
    with pytest.raises(en.EntangleError, match="0 or 1"):
        foretell(model, tiny_tokenizer, {"odd": (TEXTS, [2 * label for label in LABELS])}, CLEAN, progress=False)
    with pytest.raises(en.EntangleError, match="got none"):
        foretell(model, tiny_tokenizer, {}, CLEAN, progress=False)


def test_the_shell_writes_one_page_with_the_answer_first(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    rows = [json.dumps({"text": text, "label": label}) for text, label in zip(TEXTS, LABELS, strict=True)]
    (tmp_path / "order.jsonl").write_text("\n".join(rows))
    (tmp_path / "clean.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in CLEAN))
    words = ["forecast", str(tmp_path / "model"), str(tmp_path / "order.jsonl")]
    with pytest.raises(SystemExit):
        cli.main([*words, "--out", str(tmp_path / "out")])
    assert "add --clean FILE" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stop:
        cli.main(
            [*words, "--clean", str(tmp_path / "clean.jsonl"), "--max-length", "16", "--out", str(tmp_path / "out")]
        )
    assert stop.value.code in (0, None)
    page, numbers = (tmp_path / "out" / "forecast.html").read_text(), tmp_path / "out" / "forecast.json"
    answer = json.loads(numbers.read_text())["answer"]
    assert answer[0].startswith("order: ")
    assert page.index(answer[0]) < page.index("<svg")
    assert page.count("<script") == 1  # the page's own
    assert not re.search(r'(src|href)="https?:|url\(https?:|@import', page)
