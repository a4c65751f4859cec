"""Rows of tables in memory: pandas, polars and pyarrow tables, HuggingFace data sets, lists of rows.

What a table is its methods tell, so that none of their packages need be there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from entangle.data.arrow import class_names, named, table_rows
from entangle.data.labels import ClassName
from entangle.errors import EntangleError

Rows = Iterator[tuple[str, Mapping[str, Any]]]


def is_table(source: Any) -> bool:
    """Whether it is rows with named columns, in memory.

    Example:
        >>> is_table([{"text": "good morning", "label": 0}]), is_table(["good morning"]), is_table("posts.csv")
        (True, False, False)
    """
    if isinstance(source, str | bytes):
        return False
    if isinstance(source, Mapping):
        return bool(source) and all(is_table(part) for part in source.values())
    if isinstance(source, Sequence):
        return bool(source) and isinstance(source[0], Mapping)
    return any(
        hasattr(source, name) for name in ("itertuples", "iter_rows", "to_batches", "column_names", "collect_schema")
    )


def table_name(source: Any) -> str:
    """What to call it in messages: the kind of table."""
    return "the list of rows" if isinstance(source, Sequence) else f"the {type(source).__name__}"


def frame_rows(source: Any) -> Rows:
    """The rows of a table in memory, with the words that name each.

    Names of class labels, of pandas' ordered categories and of polars' Enum keep the order that the data give them.

    Args:
        source: A pandas or polars frame, a pyarrow table, a `datasets.Dataset` or `DatasetDict` (whose splits become
            the column `split`), or a list of dicts.

    Raises:
        EntangleError: No such table, one without rows, or one with two columns of one name.
    """
    any_row = False
    for row in _rows(source):
        any_row = True
        yield row
    if not any_row:
        raise EntangleError(f"{table_name(source)} holds no rows")


def _rows(source: Any) -> Rows:
    if isinstance(source, Mapping):
        for part, rows in source.items():
            for where, fields in _rows(rows):
                yield f"{part} {where}", {"split": str(part), **fields}
    elif isinstance(source, Sequence):
        for number, fields in enumerate(source):
            if not isinstance(fields, Mapping):
                raise EntangleError(
                    f"row {number} is a {type(fields).__name__}, not a mapping with fields: leave it out"
                )
            yield f"row {number}", fields
    elif hasattr(source, "collect_schema") and not hasattr(source, "iter_rows"):
        raise EntangleError(f"{table_name(source)} is not there yet: pass frame.collect()")
    elif hasattr(source, "iter_rows"):
        yield from _polars(source)
    elif hasattr(source, "itertuples"):
        yield from _pandas(source)
    elif hasattr(source, "to_batches"):
        yield from table_rows(source, "row")
    else:
        names = class_names(source.features)
        for number, fields in enumerate(source):
            yield f"row {number}", named(fields, names)


def _pandas(frame: Any) -> Rows:
    columns = [str(name) for name in frame.columns]
    if len(set(columns)) < len(columns):
        raise EntangleError(f"the frame names a column twice ({', '.join(columns)}): each column needs its own name")
    orders: list[tuple[str, ...] | None] = []
    values: list[list[Any]] = []
    for position in range(len(columns)):
        column = frame.iloc[:, position]
        categories: Any = getattr(column.dtype, "categories", ())
        given = getattr(column.dtype, "ordered", False) and all(isinstance(name, str) for name in categories)
        orders.append(tuple(categories) if given else None)
        missing = column.isna().tolist()
        plain = column.cat.codes.tolist() if given else column.astype(object).tolist()
        values.append([None if gone else value for value, gone in zip(plain, missing, strict=True)])
    for number, row in enumerate(zip(*values, strict=True)):
        yield f"row {number}", dict(zip(columns, map(_named, row, orders), strict=True))


def _polars(frame: Any) -> Rows:
    orders: list[tuple[str, ...] | None] = []
    for dtype in frame.dtypes:
        categories = getattr(dtype, "categories", None) if type(dtype).__name__ == "Enum" else None
        orders.append(None if categories is None else tuple(categories))
    for number, row in enumerate(frame.iter_rows()):
        cells = (
            value if order is None or value is None else ClassName.of(order, order.index(value))
            for value, order in zip(row, orders, strict=True)
        )
        yield f"row {number}", dict(zip(frame.columns, cells, strict=True))


def _named(value: Any, order: tuple[str, ...] | None) -> Any:
    """A cell, which of a categorical column is a number; numbers of numpy as Python's."""
    if order is not None and value is not None:
        return ClassName.of(order, int(value))
    return value.item() if hasattr(value, "item") and not isinstance(value, str) else value
