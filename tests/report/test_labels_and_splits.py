"""A report says which label is 1 and what it made of the data's splits, and refuses data too few to report on."""

import json
from pathlib import Path
from typing import Any

import pytest

from entangle.cli import main

NAMES = ("polite", "Rude")


def renamed(world: dict[str, Path], folder: Path, names: tuple[object, object], splits: tuple[str, ...] = ()) -> Path:
    rows = [json.loads(line) for line in world["data"].read_text().splitlines()]
    named = [{**row, "label": names[row["label"]]} for row in rows]
    if splits:
        named = [{**row, "split": splits[i % len(splits)]} for i, row in enumerate(named)]
    path = folder / "posts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in named))
    return path


def words_of(world: dict[str, Path], data: Path, out: Path) -> list[str]:
    fast = ["--resamples", "100", "--permutations", "20"]
    return ["report", str(world["model"]), str(data), "--out", str(out), *fast]


def report(world: dict[str, Path], data: Path, *words: str) -> tuple[dict[str, Any], str]:
    out = data.parent / "out"
    with pytest.raises(SystemExit) as left:
        main([*words_of(world, data, out), *words])
    assert left.value.code in (0, None)
    return json.loads((out / "report.json").read_text())["studies"][0], (out / "report.html").read_text()


def test_the_page_says_which_label_is_one_and_the_command_line_may_turn_it(
    world: dict[str, Path], tmp_path: Path
) -> None:
    data = renamed(world, tmp_path, NAMES)
    study, page = report(world, data)
    (of_data,) = study["data"]
    assert (of_data["label_names"], of_data["positive"]) == (list(NAMES), "Rude")
    assert "<b>Rude</b>" in page
    assert "that it is not there" in page
    turned, page = report(world, data, "--positive", "polite")
    assert turned["data"][0]["label_names"] == ["Rude", "polite"]
    assert turned["data"][0]["n_positive"] == of_data["n"] - of_data["n_positive"]
    assert "<b>polite</b>" in page
    assert "--positive polite" in turned["command"]


def test_splits_by_other_names_are_used_or_said_not_to_be(world: dict[str, Path], tmp_path: Path) -> None:
    used, _ = report(world, renamed(world, tmp_path, (0, 1), ("Train", "Train", "Train", "validation", "TEST")))
    assert not any("split" in note for note in used["notes"])
    n = used["data"][0]["n"]
    assert used["split"]["report"] == len(range(4, n, 5))
    left, page = report(world, renamed(world, tmp_path, (0, 1), ("summer", "winter")))
    (note,) = (note for note in left["notes"] if "were not used" in note)
    assert "'summer', 'winter'" in note
    assert "were not used" in page


def test_six_rows_are_refused_before_the_model_is_loaded(world: dict[str, Path], tmp_path: Path) -> None:
    data = renamed(world, tmp_path, (0, 1))
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    few = [*[row for row in rows if row["label"]][:3], *[row for row in rows if not row["label"]][:3]]
    data.write_text("".join(json.dumps(row) + "\n" for row in few))
    with pytest.raises(SystemExit) as left:
        main(["report", "no/such/model/anywhere", str(data), "--out", str(tmp_path / "out")])
    assert left.value.code == 2
    assert not (tmp_path / "out" / "report.json").exists()
