"""Rows of a file, a folder or a HuggingFace data set, each with the words that name it in an error."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from entangle.data.arrow import ARROW_SUFFIXES, arrow_rows, dataset_rows
from entangle.data.frames import frame_rows, is_table
from entangle.errors import EntangleError

Row = tuple[str, Mapping[str, Any]]
"""Where the row is ("data.jsonl line 3") and its fields."""

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
LINES = ".txt"  # without a name for anything: texts alone
SUFFIXES = (*TEXT_SUFFIXES, *ARROW_SUFFIXES)
_PART = re.compile(r"(?:^|[^a-z])(train|valid|validation|val|dev|test)(?:ing)?(?![a-z])", re.IGNORECASE)


def rows(source: Any) -> Iterator[Row]:
    """The rows of a file, a folder, a HuggingFace data set or a table in memory.

    A file is JSON lines, a JSON list of objects, CSV, TSV, Parquet, Arrow or Feather, each also as .gz, or .txt with a
    text per line, the column `text`. A folder is what `save_to_disk` wrote, of which only the data that it names are
    read, or one of such files but text, whose names say their splits. A data set is named `owner/name`,
    `owner/name:config` or `owner/name:config:split`; without a split, all of them are read, each row with the name of
    its split in the column `split`. Numbers of a ClassLabel become its names.

    Raises:
        EntangleError: Where there is no such file or data set, it is empty, or a line cannot be read.
    """
    if not isinstance(source, str | Path):
        if is_table(source):
            return frame_rows(source)
        raise EntangleError(
            f"data are a file, a folder, the id of a data set, or a table (pandas, polars, pyarrow, datasets, a list "
            f"of dicts), but a {type(source).__name__} arrived"
        )
    path = Path(source)
    if path.is_dir():
        plain = _plain_files(path)
        return _folder_rows(path, plain) if plain else dataset_rows(str(path))
    if path.exists():
        return _file_rows(path)
    if _looks_like_a_file(str(source)):
        raise EntangleError(
            f"no file {path}: give a JSONL or CSV file (.gz or not), or the id of a HuggingFace data set"
        )
    name, _, rest = str(source).partition(":")
    config, _, split = rest.partition(":")
    return dataset_rows(name, config or None, split or None)


def _looks_like_a_file(source: str) -> bool:
    name = source.removesuffix(".gz")
    return (
        name != source
        or name.endswith((*SUFFIXES, LINES))
        or source.startswith((".", "/", "~"))
        or source.count("/") > 1
    )


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _plain_files(folder: Path) -> list[Path]:
    """The files of a folder that this module reads itself; none where it is for `datasets` to say what they are."""
    if any((folder / name).exists() for name in ("dataset_dict.json", "state.json", "README.md")):
        return []
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return files if all(_kind(path) in SUFFIXES for path in files) else []


def _folder_rows(folder: Path, files: list[Path]) -> Iterator[Row]:
    parts = {path: _PART.search(path.name) for path in files}
    for path, part in parts.items():
        for where, fields in _file_rows(path):
            yield where, {"split": part[1].lower(), **fields} if part and any(parts.values()) else fields


def _file_rows(path: Path) -> Iterator[Row]:
    kind = _kind(path)
    if kind not in (*SUFFIXES, LINES):
        raise EntangleError(
            f"{path} must end in one of {', '.join((*SUFFIXES, LINES))} (or that and .gz) to say what it is"
        )
    has_rows = False
    try:
        for row in _rows_of(path, kind):
            has_rows = True
            yield row
    except UnicodeDecodeError as error:
        raise EntangleError(f"{path} is not UTF-8 (byte {error.object[error.start]:#04x}): save it as UTF-8") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise EntangleError(f"{path} ends in .gz but is no whole gzip file ({error}): compress it again") from None
    except OSError as error:
        raise EntangleError(f"cannot read {path}: {error.strerror or error}") from None
    if not has_rows:
        raise EntangleError(f"{path} holds no rows")


def _rows_of(path: Path, kind: str) -> Iterator[Row]:
    if kind in ARROW_SUFFIXES:
        yield from arrow_rows(path, kind)
        return
    with _open(path) as file:
        if kind == LINES:
            lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(file, start=1))
            yield from ((f"{path} line {number}", {"text": line}) for number, line in lines if line.strip())
        elif kind in (".csv", ".tsv"):
            yield from _csv_rows(path, file, kind)
        elif kind == ".json" and file.read(4096).lstrip()[:1] == "[":
            file.seek(0)
            yield from _json_list(path, file)
        else:
            file.seek(0)
            yield from _json_rows(path, file)


def _open(path: Path) -> TextIO:
    # utf-8-sig: spreadsheets write a byte-order mark, which would become part of the first column's name.
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _json_rows(path: Path, file: TextIO) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            where = f"{path} line {number}"
            yield where, _object(_parsed(line, where, "write one object per line"), where)


def _json_list(path: Path, file: TextIO) -> Iterator[Row]:
    items = _parsed(file.read(), str(path), "write a list of objects, or one object per line")
    for number, fields in enumerate(items, start=1):
        where = f"{path} item {number}"
        yield where, _object(fields, where)


def _parsed(text: str, where: str, advice: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=partial(_fields, where))
    except EntangleError:
        raise
    except (ValueError, RecursionError) as error:
        raise EntangleError(f"{where} is not JSON ({str(error)[:120]}): {advice}") from None


def _fields(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, in which no field may be there twice: which of two labels is meant, nobody can know."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise EntangleError(f"{where} has a field twice ({twice!r}): each field needs its own name")
    return fields


def _object(fields: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(fields, dict):
        raise EntangleError(
            f"{where} is a JSON {type(fields).__name__}, not an object with fields: write one object per line"
        )
    return fields


def _csv_rows(path: Path, file: TextIO, kind: str) -> Iterator[Row]:
    tabs = kind == ".tsv"
    delimiter = "\t" if tabs else _delimiter(file.readline())
    file.seek(0)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # The TSV files of the trade are not quoted, and a text in them may begin with a quotation mark.
    reader = csv.reader(file, delimiter=delimiter, strict=True, quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
    try:
        columns = next(reader, [])
        if len(set(columns)) < len(columns):
            raise EntangleError(f"{path} names a column twice ({', '.join(columns)}): each column needs its own name")
        for values in reader:
            # Rows have their own number, since a quoted text may hold line breaks.
            where = f"{path} line {reader.line_num}"
            if not values:
                continue
            if len(values) != len(columns):
                advice = (
                    "texts in TSV hold no tab and no line break; write JSONL or CSV where they do"
                    if tabs
                    else f"quote texts that hold a {delimiter!r}"
                )
                raise EntangleError(
                    f"{where} has {'more' if len(values) > len(columns) else 'fewer'} fields than the {len(columns)} "
                    f"columns: {advice}"
                )
            if tabs:
                _refuse_quoting(values, columns, where)
            elif delimiter == "\t":
                _refuse_swallowed(values, columns, where)
            yield where, dict(zip(columns, values, strict=True))
    except csv.Error as error:
        raise EntangleError(f"{path} line {reader.line_num} is not CSV ({error})") from None


def _refuse_quoting(values: list[str], columns: list[str], where: str) -> None:
    """TSV is read without quoting, so a file that is quoted would give texts with quotation marks too many."""
    for value in (*values, *columns):
        inside = value[1:-1]
        quoted = len(value) > 1 and value[0] == value[-1] == '"'
        if quoted and (value in columns or ('"' in inside and '"' not in inside.replace('""', ""))):
            raise EntangleError(
                f"{where} looks quoted ({value[:40]!r}), but quotation marks are text in TSV: name the file .csv, "
                "which may be parted by tabs and is quoted"
            )


def _refuse_swallowed(values: list[str], columns: list[str], where: str) -> None:
    """A text that begins with a quotation mark, in a file that is not quoted, takes in the rows after it."""
    for value in values:
        lines = value.splitlines()
        if len(lines) > 1 and any(line.count("\t") == len(columns) - 1 for line in lines):
            raise EntangleError(
                f"{where}: one quoted text holds what look like whole rows ({value[:40]!r}...): if the file is not "
                "quoted, name it .tsv, where quotation marks are text"
            )


def _delimiter(header: str) -> str:
    """The character that parts the columns: the commonest of comma, semicolon and tab in the first line."""
    return max((",", ";", "\t"), key=header.count)
