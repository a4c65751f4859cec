"""Rows of Arrow tables: Parquet, Arrow and Feather files, what `save_to_disk` wrote, and data sets of the hub."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from entangle.data.labels import ClassName
from entangle.errors import EntangleError

ARROW_SUFFIXES = (".parquet", ".arrow", ".feather")


def arrow_rows(path: Path, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a Parquet, Arrow or Feather file.

    Raises:
        EntangleError: Where the file is not what its name says.
    """
    import pyarrow as pa
    from pyarrow import parquet

    content = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    try:
        if kind == ".parquet":
            table = parquet.read_table(io.BytesIO(content))
        else:
            is_file = content[:6] == b"ARROW1"
            reader = pa.ipc.open_file if is_file else pa.ipc.open_stream
            table = reader(pa.BufferReader(content)).read_all()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EntangleError(f"{path} is no whole {kind[1:]} file ({reason[:120]}): write it again") from None
    yield from table_rows(table, f"{path} row")


def table_rows(table: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a table of pyarrow, each with its number after the words `where`."""
    names = class_names(_features(table.schema))
    number = 0
    for batch in table.to_batches():
        for fields in batch.to_pylist():
            yield f"{where} {number}", named(fields, names)
            number += 1


def dataset_rows(
    name: str, config: str | None = None, split: str | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a HuggingFace data set, in a folder or on the hub.

    Args:
        name: The folder or the id.
        config: Which of its configurations.
        split: Which split; by default all of them.

    Raises:
        EntangleError: Where it cannot be had, whatever `datasets` says of it.
    """
    from datasets import IterableDatasetDict, load_dataset

    try:
        if (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file():
            parts = _saved(name)
        else:
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
        names = class_names(rows_of_part.features)
        of_split = {} if part is None else {"split": part}
        for number, fields in enumerate(rows_of_part):
            yield " ".join(filter(None, [name, part, f"row {number}"])), {**of_split, **named(fields, names)}


def _saved(folder: str) -> dict[str | None, Any]:
    """The splits of what `save_to_disk` wrote: the files that it names, and none that lie beside them."""
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(folder)
    return dict(loaded) if isinstance(loaded, DatasetDict) else {None: loaded}


def class_names(features: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """The names of the columns that are class labels."""
    return {
        column: tuple(feature.names)
        for column, feature in (features or {}).items()
        if type(feature).__name__ == "ClassLabel"
    }


def named(fields: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> Mapping[str, Any]:
    """A row with the names of its class labels; a label below 0 is a missing one."""
    if not names:
        return fields
    codes = {column: fields[column] for column in names if isinstance(fields.get(column), int)}
    return {**fields, **{column: ClassName.of(names[column], number) for column, number in codes.items()}}


def _features(schema: Any) -> Mapping[str, Any] | None:
    """What `datasets` wrote of the columns, where it wrote the file."""
    if b"huggingface" not in (schema.metadata or {}):
        return None
    from datasets import Features

    features: Mapping[str, Any] = Features.from_arrow_schema(schema)
    return features
