"""Tables in memory are read as files of them are: columns found or named, labels in the order that the data state."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from entangle import EntangleError
from entangle.data import is_table, load_labelled, load_texts
from entangle.study.texts import StudyTexts

TEXTS = [f"text number {i}" for i in range(8)]
NAMES = ["zealous", "calm"] * 4
RECORDS = [{"text": text, "label": name} for text, name in zip(TEXTS, NAMES, strict=True)]


def as_classes(column="label"):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), column: datasets.ClassLabel(names=["zealous", "calm"])}
    )
    codes = [["zealous", "calm"].index(name) for name in NAMES]
    return datasets.Dataset.from_dict({"text": TEXTS, column: codes}, features=features)


def test_every_kind_of_table_gives_the_same_texts_and_labels(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    frame = pd.DataFrame(RECORDS)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(RECORDS))
    expected = load_labelled(path)
    for table in (RECORDS, frame, pa.Table.from_pylist(RECORDS)):
        found = load_labelled(table)
        assert found.texts == expected.texts
        assert np.array_equal(found.labels, expected.labels)
        assert found.label_names == expected.label_names == ("calm", "zealous")  # of names, alphabetical
        assert load_texts(table) == TEXTS


def test_polars_frames_are_read():
    polars = pytest.importorskip("polars", reason="needs polars")
    frame = polars.DataFrame(RECORDS)
    assert load_labelled(frame).label_names == ("calm", "zealous")
    stated = frame.with_columns(polars.col("label").cast(polars.Enum(["zealous", "calm"])))
    assert load_labelled(stated).label_names == ("zealous", "calm")
    assert load_labelled(frame).texts == TEXTS
    with pytest.raises(EntangleError, match=r"pass frame\.collect"):
        load_labelled(frame.lazy())


def test_the_order_of_labels_is_the_one_that_the_data_state():
    stated = pd.DataFrame(RECORDS).astype({"label": pd.CategoricalDtype(["zealous", "calm"], ordered=True)})
    assert load_labelled(stated).label_names == ("zealous", "calm")
    turned = pd.DataFrame(RECORDS).astype({"label": pd.CategoricalDtype(["zealous", "calm"])})
    assert load_labelled(turned).label_names == ("calm", "zealous")  # no order is stated
    found = load_labelled(as_classes())
    assert found.label_names == ("zealous", "calm")
    assert found.labels.tolist() == [0, 1] * 4


def test_splits_of_a_dict_of_data_sets_are_kept():
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    whole = as_classes()
    parts = datasets.DatasetDict(train=whole.select(range(6)), test=whole.select([6, 7]))
    found = load_labelled(parts)
    assert found.splits == ["train"] * 6 + ["test"] * 2
    assert found.texts == TEXTS


def test_columns_are_found_by_their_names_in_the_trade_and_said():
    frame = pd.DataFrame({"id": range(8), "sentence": TEXTS, "target": NAMES})
    found = load_labelled(frame)
    assert found.texts == TEXTS
    assert any("'sentence' was read" in note for note in found.notes)
    assert any("'target' was read" in note for note in found.notes)
    assert load_labelled(pd.DataFrame(RECORDS)).notes == ()
    by_class = as_classes("mood").rename_column("text", "content")
    assert load_labelled(by_class).label_names == ("zealous", "calm")
    two = frame.assign(comment=TEXTS)
    with pytest.raises(EntangleError, match="has no 'text': its columns are"):
        load_labelled(two)
    assert load_labelled(two, text="comment").texts == TEXTS
    with pytest.raises(EntangleError, match="has no 'body'"):
        load_labelled(frame, text="body")


def test_a_study_takes_tables():
    given = StudyTexts.of(
        "mood", pd.DataFrame(RECORDS), clean=pd.DataFrame({"text": TEXTS}), concepts={"b": as_classes()}
    )
    assert given.labelled.texts == given.clean == given.concepts["b"].texts == TEXTS


def test_tables_that_cannot_be_read_are_one_line():
    frame = pd.DataFrame(RECORDS)
    cases = {
        r"row 2 has an empty 'label'": frame.assign(label=[*NAMES[:2], None, *NAMES[3:]]),
        r"row 1: 'text' must be text": frame.assign(text=[TEXTS[0], 3, *TEXTS[2:]]),
        r"holds no rows": frame.iloc[:0],
        r"names a column twice": pd.concat([frame, frame[["label"]]], axis=1),
        r"row 1 is a str": [RECORDS[0], "row"],
        r"but a float arrived": 3.5,
    }
    for match, table in cases.items():
        with pytest.raises(EntangleError, match=match) as caught:
            load_labelled(table)
        assert "\n" not in str(caught.value)
    assert not is_table(TEXTS)
    assert not is_table("file.csv")
    assert not is_table((TEXTS, NAMES))
