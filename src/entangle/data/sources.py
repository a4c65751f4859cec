"""Rows of a file or of a HuggingFace data set, each with the words that name it in an error."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from entangle.errors import EntangleError

Row = tuple[str, Mapping[str, Any]]
"""Where the row is ("data.jsonl line 3") and its fields."""

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")


def rows(source: str | Path) -> Iterator[Row]:
    """The rows of a JSONL, CSV or TSV file (each also as .gz), or else of the HuggingFace data set of that name or
    folder.

    A data set is named `owner/name`, `owner/name:config` or `owner/name:config:split`; without a split, all of them
    are read, each row with the
    name of its split in the column `split`.

    Raises:
        EntangleError: where there is no such file or data set, it is empty, or a line cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        return _dataset_rows(str(path))
    if path.exists():
        return _file_rows(path)
    if _looks_like_a_file(str(source)):
        raise EntangleError(
            f"no file {path}: give a JSONL or CSV file (.gz or not), or the id of a HuggingFace data set"
        )
    name, _, rest = str(source).partition(":")
    config, _, split = rest.partition(":")
    return _dataset_rows(name, config or None, split or None)


def _looks_like_a_file(source: str) -> bool:
    name = source.removesuffix(".gz")
    return name != source or name.endswith(SUFFIXES) or source.startswith((".", "/", "~")) or source.count("/") > 1


def _file_rows(path: Path) -> Iterator[Row]:
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind not in SUFFIXES:
        raise EntangleError(f"{path} must end in one of {', '.join(SUFFIXES)} (or that and .gz) to say what it is")
    found = False
    try:
        with _open(path) as file:
            parsed = _json_rows(path, file) if kind in (".jsonl", ".json") else _csv_rows(path, file, kind)
            for row in parsed:
                found = True
                yield row
    except UnicodeDecodeError as error:
        raise EntangleError(f"{path} is not UTF-8 (byte {error.object[error.start]:#04x}): save it as UTF-8") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise EntangleError(f"{path} ends in .gz but is no whole gzip file ({error}): compress it again") from None
    except OSError as error:
        raise EntangleError(f"cannot read {path}: {error.strerror or error}") from None
    if not found:
        raise EntangleError(f"{path} holds no rows")


def _open(path: Path) -> TextIO:
    # utf-8-sig: spreadsheets write a byte-order mark, which would become part of the first column's name.
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _json_rows(path: Path, file: TextIO) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            fields = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise EntangleError(f"{where} is not JSON ({error}): write one object per line") from None
        if not isinstance(fields, dict):
            raise EntangleError(
                f"{where} is a JSON {type(fields).__name__}, not an object with fields: write one object per line"
            )
        yield where, fields


def _csv_rows(path: Path, file: TextIO, kind: str) -> Iterator[Row]:
    delimiter = "\t" if kind == ".tsv" else _delimiter(file.readline())
    file.seek(0)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(file, delimiter=delimiter, strict=True)
    try:
        columns = reader.fieldnames or []
        if len(set(columns)) < len(columns):
            raise EntangleError(f"{path} names a column twice ({', '.join(columns)}): each column needs its own name")
        for fields in reader:
            # Rows have their own number, since a quoted text may hold line breaks.
            where = f"{path} line {reader.line_num}"
            if None in fields or None in fields.values():
                raise EntangleError(
                    f"{where} has {'more' if None in fields else 'fewer'} fields than the {len(columns)} columns: "
                    f"quote texts that hold a {delimiter!r}"
                )
            yield where, fields
    except csv.Error as error:
        raise EntangleError(f"{path} line {reader.line_num} is not CSV ({error})") from None


def _delimiter(header: str) -> str:
    """The character that parts the columns: the commonest of comma, semicolon and tab in the first line."""
    return max((",", ";", "\t"), key=header.count)


def _dataset_rows(name: str, config: str | None = None, split: str | None = None) -> Iterator[Row]:
    from datasets import IterableDatasetDict, load_dataset

    try:
        loaded = load_dataset(name, config, split=split, streaming=True)
        parts = dict(loaded) if isinstance(loaded, IterableDatasetDict) else {split: loaded}
    except (
        Exception
    ) as error:  # datasets and the hub raise errors of many kinds: whichever it is, the data cannot be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EntangleError(
            f"{name!r} is neither a file nor a HuggingFace data set that can be loaded ({reason})"
        ) from None
    for part, rows_of_part in parts.items():
        for number, fields in enumerate(rows_of_part):
            yield f"{name} {part} row {number}", {"split": part, **fields}
