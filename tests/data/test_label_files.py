"""What is read is what was written, in every format and dialect; what could be read in two ways is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import entangle as en
from entangle.data import in_order, load_labelled, load_texts, texts_of
from entangle.errors import EntangleError

ROWS = [{"text": f"post {i}", "label": i % 2} for i in range(20)]
TOXIC = ["toxic", "clean"]  # a ClassLabel's own order


def tsv(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in ("text\tlabel", *lines)))
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two splits as `save_to_disk` writes it, and one split alone, with a ClassLabel."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("saved")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=TOXIC)})
    columns = {"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]}
    data = datasets.Dataset.from_dict(columns, features=features)
    parts = {"train": data.select(range(14)), "test": data.select(range(14, 20))}
    datasets.DatasetDict(parts).save_to_disk(folder / "both")
    data.save_to_disk(folder / "one")
    data.to_parquet(folder / "rows.parquet")
    loaded = datasets.load_from_disk(folder / "both")["train"]
    loaded.map(lambda row: {"text": row["text"].upper()})  # leaves a cache file in the folder
    assert list((folder / "both" / "train").glob("cache-*.arrow"))
    return folder


@pytest.mark.parametrize("name", ["both", "one", "rows.parquet"])
def test_a_class_label_keeps_its_names_and_its_order(saved: Path, name: str) -> None:
    data = load_labelled(saved / name)
    assert data.texts == [row["text"] for row in ROWS]
    assert (data.label_names, data.labels.tolist()) == (("toxic", "clean"), [row["label"] for row in ROWS])
    assert load_labelled(saved / name, positive="toxic").labels.tolist() == [1 - row["label"] for row in ROWS]


def test_the_splits_of_a_saved_data_set_are_kept(saved: Path) -> None:
    assert load_labelled(saved / "both").splits == ["train"] * 14 + ["test"] * 6
    assert load_labelled(saved / "one").splits is None


def test_a_class_label_below_zero_is_a_missing_label(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=TOXIC)})
    rows = {"text": ["a", "b", "c"], "label": [0, 1, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(EntangleError, match="row 2 has an empty 'label'"):
        load_labelled(tmp_path / "a.parquet")


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "feather"])
def test_every_format_gives_the_same_texts(tmp_path: Path, kind: str, zipped: str) -> None:
    frame = pd.DataFrame(ROWS)
    path = tmp_path / f"rows.{kind}"
    write = {
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "json": lambda: path.write_text(json.dumps(ROWS, indent=1)),
        "csv": lambda: frame.to_csv(path, index=False, lineterminator="\r\n", encoding="utf-8-sig"),
        "tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        "parquet": lambda: frame.to_parquet(path),
        "feather": lambda: frame.to_feather(path),
    }
    write[kind]()
    if zipped:
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    data = load_labelled(f"{path}{zipped}")
    assert data.sha256 == load_labelled(saved_as_lines(tmp_path)).sha256


def saved_as_lines(folder: Path) -> Path:
    path = folder / "plain.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_quotation_marks_are_text_in_tsv(tmp_path: Path) -> None:
    lines = ["plain\t0", '"so it begins\t1', 'in "the" middle\t0', 'it ends here"\t1', '"all of it"\t0', 'odd " one\t1']
    data = load_labelled(tsv(tmp_path / "a.tsv", *lines))
    assert data.texts == [line.split("\t")[0] for line in lines]
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['"he said ""hi"" to me"\t1', "b\t0"], "line 2 looks quoted .*: name the file .csv"),
        (['"one', 'text"\t1', "b\t0"], "line 2 has fewer fields .*no tab and no line break"),
        (['"one\ttext"\t1', "b\t0"], "line 2 has more fields"),
    ],
)
def test_tsv_that_is_quoted_after_all_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(EntangleError, match=message):
        load_labelled(tsv(tmp_path / "a.tsv", *lines))
    quoted = load_labelled(tsv(tmp_path / "a.csv", *lines))  # tabs may part a CSV, which is quoted
    assert len(quoted) == 2


def test_a_csv_that_is_not_quoted_does_not_swallow_rows(tmp_path: Path) -> None:
    lines = ["plain\t0", '"so it begins\t1', "in the middle\t0", 'it ends here"\t1', "last\t0"]
    with pytest.raises(EntangleError, match="line 5: one quoted text holds what look like whole rows"):
        load_labelled(tsv(tmp_path / "a.csv", *lines))


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_half_a_character_is_refused_with_its_row(tmp_path: Path, kind: str) -> None:
    rows = ['{"text": "fine \\ud83d\\ude00", "label": 1}', '{"text": "cut \\ud83d off", "label": 0}']
    path = tmp_path / f"a.{kind}"
    path.write_text("\n".join(rows) if kind == "jsonl" else f"[{', '.join(rows)}]")
    for load in (load_labelled, load_texts):
        with pytest.raises(EntangleError, match=r"(line|item) 2: 'text' holds half a character \('\\ud83d'") as caught:
            load(path)
        assert str(caught.value).isascii()


@pytest.mark.parametrize("texts", [pd.DataFrame({"text": ["a", "b"]}), {"text": ["a", "b"]}, {"a", "b"}, "a", b"a", 3])
def test_texts_in_no_order_or_under_a_name_are_refused(texts: Any) -> None:
    for door in (texts_of, in_order):
        with pytest.raises(EntangleError, match="texts must be") as caught:
            door(texts)
        assert "\n" not in str(caught.value)
    for good in (pd.Series(["a", "b"], index=[7, 3]), np.array(["a", "b"]), ("a", "b"), iter(["a", "b"])):
        assert texts_of(good) == ["a", "b"]


def test_half_a_character_is_refused_at_every_door_that_takes_texts() -> None:
    texts = ["fine", "cut \ud83d off"]
    labels = [0, 1]
    for door in (
        lambda: en.LinearToxicityScorer.fit(texts * 10, labels * 10),
        lambda: en.evaluation.CachedScorer(en.LinearToxicityScorer(np.zeros(2**19, np.float32), 0.0))(texts),
        lambda: en.probes.bag_of_words(texts * 10, labels * 10, en.probes.three_way(labels * 10)),
    ):
        with pytest.raises(EntangleError, match="text 1 holds half a character"):
            door()


def test_an_astral_character_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "🎈", "label": 1}) + "\n" + json.dumps({"text": "b", "label": 0}) + "\n")
    assert load_labelled(path).texts == ["🎈", "b"]


def test_a_folder_of_files_reads_them_as_files_and_names_its_splits(tmp_path: Path) -> None:
    folder = tmp_path / "posts"
    folder.mkdir()
    tsv(folder / "my_train.tsv", '"a\t0', "b\t1", "c\t0")
    tsv(folder / "dev-00000-of-00001.tsv", "d\t1", 'e"\t0')
    data = load_labelled(folder)
    assert sorted(zip(data.texts, data.splits, strict=True)) == [
        ('"a', "train"), ("b", "train"), ("c", "train"), ("d", "dev"), ('e"', "dev")
    ]  # fmt: skip


def test_columns_that_are_not_there_are_named_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Text, label\na,1\nb,0\n")
    with pytest.raises(EntangleError, match="no 'text': its columns are 'Text', ' label'; name the column 'Text'"):
        load_labelled(path)
    with pytest.raises(EntangleError, match=r"no 'label': .*; name the column ' label'"):
        load_labelled(path, text="Text")
    assert load_labelled(path, text="Text", label=" label").labels.tolist() == [1, 0]


def test_what_was_left_out_is_noted_and_whether_it_stood_in_another_split(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": text, "label": int(text > "b"), "split": split}
            for text, split in (("a", "train"), ("c", "train"), ("a", "test"), ("c", "train"))]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (note,) = load_labelled(path, drop_duplicates=True).notes
    assert "2 of 4 texts" in note
    assert "1 of them stood in another split" in note
    assert load_labelled(saved_as_lines(tmp_path)).notes == ()


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_field_that_is_there_twice_is_refused_with_its_line(tmp_path: Path, suffix: str) -> None:
    lines = [f'{{"text": "text {i}", "label": {i % 2}}}' for i in range(6)]
    label, other = '{"text": "a", "label": 1, "label": 0}', '{"text": "a", "more": {"x": 1, "x": 1}, "label": 1}'
    for i, bad in ((2, label), (4, other)):
        rows = [*lines[:i], bad, *lines[i:]]
        path = tmp_path / f"twice.{suffix}"
        path.write_text("\n".join(rows) if suffix == "jsonl" else f"[{','.join(rows)}]")
        with pytest.raises(EntangleError, match="has a field twice") as caught:
            load_labelled(path)
        assert "\n" not in str(caught.value)
        assert suffix == "json" or f"line {i + 1}" in str(caught.value)
    path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]")
    assert len(load_labelled(path).texts) == 6
