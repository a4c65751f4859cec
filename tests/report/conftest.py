"""A world small enough to report on in seconds: a tiny model in a folder, and labelled text in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from entangle.data import corpus


def write_rows(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> dict[str, Path]:
    """Paths: `model`, `encoder`, labelled `data` and `tense`, `prompts`, `clean`."""
    folder = tmp_path_factory.mktemp("world")
    tiny_tokenizer.model_max_length = 64
    for name, model_type in (("model", "olmo2"), ("encoder", "bert")):
        tiny_model(model_type).save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    for name in ("rudeness", "tense"):
        texts = corpus.labelled(name, 120, seed=3)
        rows = [{"text": t[:40], "label": y} for t, y in zip(texts.texts, texts.labels.tolist(), strict=True)]
        unique = list({row["text"]: row for row in rows}.values())
        write_rows(folder / f"{name}.jsonl", unique)
    write_rows(folder / "prompts.jsonl", [{"text": text[:30]} for text in corpus.prompts(6, seed=1)])
    write_rows(folder / "clean.jsonl", [{"text": d.text[:50]} for d in corpus.generate(6, rudeness=0.0, seed=9)])
    names = {"data": "rudeness.jsonl", "tense": "tense.jsonl", "prompts": "prompts.jsonl", "clean": "clean.jsonl"}
    return {name: folder / path for name, path in {"model": "model", "encoder": "encoder", **names}.items()}


@pytest.fixture(scope="session")
def words(world: dict[str, Path]) -> list[str]:
    """The words after `entangle` of a whole report that takes seconds."""
    return [
        *["report", str(world["model"]), str(world["data"]), "--concept", f"tense={world['tense']}"],
        *["--prompts", str(world["prompts"]), "--clean", str(world["clean"]), "--alphas", "0,4"],
        *["--resamples", "100", "--permutations", "20", "--max-new-tokens", "4"],
    ]
