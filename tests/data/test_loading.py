"""Files that can be used load as they are; files that cannot are refused with one line that names the row."""

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entangle.data import load_labelled, load_texts
from entangle.errors import EntangleError

ROWS = [
    {"text": "one", "label": 1, "balanced": True, "split": "train"},
    {"text": "two", "label": 0, "balanced": True, "split": "test"},
    {"text": "three", "label": 0, "balanced": False, "split": "train"},
    {"text": "four", "label": 1, "balanced": True, "split": "train"},
]


def jsonl(path: Path, rows: list[object]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path | str, **options: object) -> str:
    with pytest.raises(EntangleError) as error:
        load_labelled(path, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_jsonl_keeps_texts_labels_and_splits(tmp_path: Path, name: str) -> None:
    data = load_labelled(jsonl(tmp_path / name, ROWS))
    assert data.texts == ["one", "two", "three", "four"]
    assert data.labels.tolist() == [1, 0, 0, 1]
    assert data.splits == ["train", "test", "train", "train"]
    assert (data.name, data.label_names, len(data)) == ("rows", ("0", "1"), 4)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_of_any_delimiter_equals_the_same_rows_as_jsonl(tmp_path: Path, delimiter: str) -> None:
    rows = [{"text": 'a "quoted", thing;\nand a line', "label": 1}, {"text": "Zürich 🎈\tx", "label": 0}]
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    from_csv, from_jsonl = load_labelled(path), load_labelled(jsonl(tmp_path / "rows.jsonl", rows))
    assert from_csv.texts == from_jsonl.texts
    assert from_csv.sha256 == from_jsonl.sha256


def test_hash_depends_on_texts_labels_and_order(tmp_path: Path) -> None:
    flipped = [{**row, "label": 1 - row["label"]} for row in ROWS]
    hashes = [load_labelled(jsonl(tmp_path / "a.jsonl", rows)).sha256 for rows in (ROWS, flipped, ROWS[::-1], ROWS)]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]


@pytest.mark.parametrize("wanted", [True, "true", "True"])
def test_where_selects_rows(tmp_path: Path, wanted: object) -> None:
    data = load_labelled(jsonl(tmp_path / "a.jsonl", ROWS), where={"balanced": wanted})
    assert data.texts == ["one", "two", "four"]


@pytest.mark.parametrize(
    ("negative", "positive"),
    [(0, 1), (False, True), ("0", "1"), (0.0, 1.0), ("false", "true"), ("polite", "rude")],
)
def test_labels_of_every_kind(tmp_path: Path, negative: object, positive: object) -> None:
    rows = [{"text": "a", "label": negative}, {"text": "b", "label": positive}, {"text": "c", "label": negative}]
    assert load_labelled(jsonl(tmp_path / "a.jsonl", rows)).labels.tolist() == [0, 1, 0]


def test_positive_names_the_label_that_becomes_one(tmp_path: Path) -> None:
    rows = [{"text": str(i), "label": name} for i, name in enumerate(["rude", "polite", "silent"])]
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert "have 3 values: 'polite' (1), 'rude' (1), 'silent' (1)" in refused(path)
    data = load_labelled(path, positive="rude")
    assert (data.labels.tolist(), data.label_names) == ([1, 0, 0], ("not rude", "rude"))
    assert "have no 'loud' to call positive" in refused(path, positive="loud")


def test_limit_keeps_the_shares_and_the_order(tmp_path: Path) -> None:
    rows = [{"text": str(i), "label": int(i % 4 == 0)} for i in range(400)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    first, again, other = (load_labelled(path, limit=100, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 100
    assert first.labels.mean() == 0.25
    assert list(map(int, first.texts)) == sorted(map(int, first.texts))
    assert first.sha256 == again.sha256 != other.sha256


def test_duplicates_are_refused_or_dropped(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*ROWS, ROWS[0], ROWS[1]])
    message = refused(path)
    assert "2 of 6 texts occur more than once" in message
    assert "line 1" in message
    assert "line 5" in message
    assert "--drop-duplicates" in message
    assert load_labelled(path, drop_duplicates=True).texts == ["one", "two", "three", "four"]


@pytest.mark.parametrize("drop_duplicates", [True, False])
def test_conflicting_labels_are_named_and_never_dropped(tmp_path: Path, drop_duplicates: bool) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*ROWS, {**ROWS[0], "label": 0}])
    message = refused(path, drop_duplicates=drop_duplicates)
    assert "line 1" in message
    assert "line 5" in message
    assert "same text labelled '1' and '0'" in message


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"text": "a"}], "line 1 has no 'label': its columns are 'text'; rename the one that is meant to 'label'"),
        ([{"text": "a", "label": 1}, {"label": 0}], "line 2 has no 'text'"),
        ([{"text": " \n", "label": 1}], "line 1: 'text' is empty"),
        ([{"text": None, "label": 1}], "line 1: 'text' must be text, not NoneType"),
        ([{"text": ["a"], "label": 1}], "must be text, not list"),
        ([{"text": "a", "label": None}], "empty 'label'"),
        ([{"text": "a", "label": ""}], "empty 'label'"),
        ([{"text": "a", "label": float("nan")}], "must be one of two labels, not nan"),
        ([{"text": "a", "label": [1]}], "must be one of two labels, not [1]"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 1}], "only the label '1' (2 rows)"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], "only the label 'x' (2 rows)"),
        ([{"text": "a", "label": 0}, {"text": "b", "label": 2}, {"text": "c", "label": 1}], "have 3 values"),
        (
            [{"messages": [{"role": "user", "content": "a"}], "label": 1}],
            "conversations go where prompts are asked for",
        ),
        ([[1, 2]], "line 1 is a JSON list"),
        ([], "holds no rows"),
    ],
)
def test_unusable_rows(tmp_path: Path, rows: list[object], expected: str) -> None:
    assert expected in refused(jsonl(tmp_path / "a.jsonl", rows))


def test_where_that_nothing_meets_or_no_column_has(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    assert "no row" in refused(path, where={"split": "valid"})
    assert "line 1 has no 'colour'" in refused(path, where={"colour": "red"})


@pytest.mark.parametrize("limit", [1, 0, -3])
def test_limits_without_room_for_both_classes(tmp_path: Path, limit: int) -> None:
    assert "at least 2" in refused(jsonl(tmp_path / "a.jsonl", ROWS), limit=limit)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "\xff", "label": 1}\n', "not UTF-8 (byte 0xff)"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.csv", b"", "holds no rows"),
        ("a.csv", b"text,label\n", "holds no rows"),
        ("a.csv", b"text,label\na,1,2\n", "line 2 has more fields than the 2 columns"),
        ("a.csv", b"text,label\na\n", "line 2 has fewer fields"),
        ("a.csv", b'text,label\n"a,1\n', "is not CSV"),
        ("a.csv", b"text,text\na,1\n", "names a column twice"),
        ("a.jsonl.gz", b"plain", "no whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a", "label": 1}\n' * 99, mtime=0)[:-12], "no whole gzip file"),
        ("a.parquet", b"x", "no whole parquet file"),
        ("a.arrow", b"ARROW1 and no more", "no whole arrow file"),
        ("a.xlsx", b"x", "must end in one of"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert expected in refused(path)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    assert "no file" in refused(tmp_path / "nowhere.jsonl")
    assert "no file" in refused("nowhere.csv.gz")
    assert "neither a file nor a HuggingFace data set" in refused(tmp_path)


def test_a_folder_is_a_data_set_whose_parts_are_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "posts"
    folder.mkdir()
    for part, rows in (("train", ROWS[:2]), ("test", ROWS[2:])):
        jsonl(folder / f"{part}.jsonl", [{key: row[key] for key in ("text", "label")} for row in rows])
    data = load_labelled(folder)
    assert sorted(zip(data.texts, data.labels.tolist(), data.splits or [], strict=True)) == [
        ("four", 1, "test"),
        ("one", 1, "train"),
        ("three", 0, "test"),
        ("two", 0, "train"),
    ]


def test_a_data_set_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert "neither a file nor a HuggingFace data set" in refused("nobody/no-such-data-set")


def test_a_text_file_is_a_text_a_line_and_has_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b'\xef\xbb\xbfone, "two"\r\n\r\n  three\n')
    assert load_texts(path) == ['one, "two"', "  three"]
    assert "line 1 has no 'label'" in refused(path)


def test_load_texts(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    assert load_texts(path) == ["one", "two", "three", "four"]
    assert load_texts(path, limit=2) == ["one", "two"]
    assert load_texts(path, field="split", where={"label": 0}) == ["test", "train"]
    with pytest.raises(EntangleError, match="at least 1"):
        load_texts(path, limit=0)
    assert load_texts(path, at_most={"label": 0}) == ["two", "three"]
    with pytest.raises(EntangleError, match="'split' must be a number to compare with 3, not 'train'"):
        load_texts(path, at_most={"split": 3})
    with pytest.raises(EntangleError, match="has label <= -1"):
        load_texts(path, at_most={"label": -1})
    with pytest.raises(EntangleError, match="has no 'body'"):
        load_texts(path, field="body")


TEXTS = st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=8, unique=True)


@given(TEXTS)
def test_any_unicode_survives_jsonl_and_csv(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("texts")
    labels = np.arange(len(texts)) % 2
    rows = [{"text": text, "label": int(label)} for text, label in zip(texts, labels, strict=True)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_labelled(folder / "a.jsonl").texts == texts
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["text", "label"], quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    (folder / "a.csv").write_bytes(buffer.getvalue().encode())
    assert load_labelled(folder / "a.csv").texts == texts


@given(st.binary(max_size=200), st.sampled_from(["a.jsonl", "a.csv", "a.jsonl.gz"]))
def test_any_bytes_load_or_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(content)
    assert refused(path)


@pytest.mark.shared
def test_real_probe_data(shared: Path) -> None:
    data = load_labelled(shared / "data" / "probe_toxicity.jsonl.gz", where={"balanced": "true"})
    assert (len(data), data.labels.mean()) == (15_964, 0.5)
    assert data.splits is not None
    assert set(data.splits) == {"train", "valid", "test"}
    for concept in ("sentiment", "subjectivity", "tense", "topic"):
        assert len(load_labelled(shared / "data" / f"concept_{concept}.jsonl.gz", limit=500)) == 500
    assert len(load_texts(shared / "models" / "clean_heldout.jsonl.gz", limit=300)) == 300
