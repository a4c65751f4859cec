"""Labelled and plain texts from files and HuggingFace data sets, refused with one clear line where they cannot be
used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entangle.data.frames import table_name
from entangle.data.labels import ClassName, as_text, read_labels
from entangle.data.sources import rows
from entangle.data.texts import LabelledTexts, refuse_half_characters
from entangle.errors import EntangleError

TEXT, LABEL = "text", "label"
TEXT_NAMES = (
    *("sentence", "content", "document", "comment", "comment_text", "tweet", "review", "utterance", "body"),
    *("message", "post", "passage", "statement"),
)
LABEL_NAMES = ("labels", "class", "target", "category", "y")


def load_labelled(
    source: Any,
    *,
    text: str = "text",
    label: str = "label",
    where: Mapping[str, Any] | None = None,
    limit: int | None = None,
    seed: int = 0,
    drop_duplicates: bool = False,
    positive: str | None = None,
) -> LabelledTexts:
    r"""Texts with one of two labels each, from a JSONL or CSV file (.gz or not) or a HuggingFace data set.

    Labels may be numbers, true and false, or names; which of the two becomes 1 is decided by the rules of
    `entangle.data.labels` unless `positive` says it, and the result tells (`label_names`, `rule`). Where rows have a
    column `split`, it is kept.

    Args:
        source: A file that exists, or else the id of a data set, `owner/name`, `owner/name:config` or
            `owner/name:config:split`; or a table in memory: a pandas or polars frame, a pyarrow table, a
            `datasets.Dataset` or `DatasetDict`, a list of dicts.
        text: The column of the text. Where there is no column `text`, the only one that is called `sentence`,
            `content`, `comment` or the like is read, and a note says so.
        label: The column of the label; likewise, and the only ClassLabel counts.
        where: Keep only rows whose columns have these values, compared as text with true and false in small letters:
            `{"balanced": "true"}`.
        limit: Keep a random sample of this many, in the order of the source and with the shares of the classes kept.
        seed: Seed of that sample.
        drop_duplicates: Keep the first of texts that occur more than once; otherwise they are refused.
        positive: The label that becomes 1, all others becoming 0; the way to use data of more than two classes.

    Raises:
        EntangleError: One line that names file and row, for anything that cannot be used.

    Example:
        >>> rows = '{"text": "you gem", "label": "polite"} {"text": "you turnip", "label": "rude"}'
        >>> _ = Path("rows.jsonl").write_text(rows.replace("} {", "}\n{"))
        >>> data = en.data.load_labelled("rows.jsonl", positive="rude")
        >>> data.texts, data.labels, data.label_names
        (['you gem', 'you turnip'], array([0, 1]), ('polite', 'rude'))
    """
    texts: list[str] = []
    raw: list[Any] = []
    splits: list[str] = []
    places: list[str] = []
    columns: tuple[str, str] | None = None
    for place, fields in rows(source):
        if not _selected(fields, where, place):
            continue
        columns = columns or (_meant(fields, text, TEXT, TEXT_NAMES), _meant(fields, label, LABEL, LABEL_NAMES))
        texts.append(_text(fields, columns[0], place))
        raw.append(_label(fields, columns[1], place))
        splits.append("" if fields.get("split") is None else str(fields["split"]))
        places.append(place)
    if columns is None:
        raise EntangleError(f"no row of {_called(source)} has {_condition(where)}")
    what = f"labels {columns[1]!r} of {_called(source)}"
    labels_read = read_labels(raw, positive=positive, two=True, what=what, places=places)
    names = (labels_read.names[0], labels_read.names[1])
    keep = _without_duplicates(texts, labels_read.codes, places, names, drop=drop_duplicates)
    notes = _duplicates_note(texts, keep, splits, _called(source))
    notes += [
        f"{_called(source)} has no column {asked!r}: {used!r} was read as it."
        for asked, used in zip((text, label), columns, strict=True)
        if asked != used
    ]
    labels = labels_read.codes[keep]
    if limit is not None:
        sampled = _stratified(labels, limit, seed, _called(source))
        keep, labels = keep[sampled], labels[sampled]
    return LabelledTexts.of(
        [texts[i] for i in keep],
        labels,
        name=_name(source),
        label_names=names,
        splits=[splits[i] for i in keep] if any(splits) else None,
        rule=labels_read.rule,
        notes=notes,
    )


def load_texts(
    source: Any,
    *,
    limit: int | None = None,
    field: str = "text",
    where: Mapping[str, Any] | None = None,
    at_most: Mapping[str, float] | None = None,
) -> list[str]:
    """The texts of a file or data set, in order.

    Args:
        source: As for `load_labelled`.
        limit: Only the first of them.
        field: The column of the text.
        where: Keep only rows whose columns have these values, as for `load_labelled`.
        at_most: Keep only rows whose columns are numbers no larger than these.

    Raises:
        EntangleError: One line that names file and row, for anything that cannot be used.

    Example:
        >>> _ = Path("clean.jsonl").write_text('{"text": "a gem"}')
        >>> en.data.load_texts("clean.jsonl")
        ['a gem']
    """
    return [text for text, _ in load_described(source, limit=limit, field=field, where=where, at_most=at_most)]


def load_described(
    source: Any,
    columns: Sequence[str] = (),
    *,
    limit: int | None = None,
    field: str = "text",
    where: Mapping[str, Any] | None = None,
    at_most: Mapping[str, float] | None = None,
) -> list[tuple[str, dict[str, str]]]:
    """The texts of a file or data set in order, each with other columns of its row.

    Args:
        source: As for `load_labelled`.
        columns: Which columns, given back as text; "file", where there is no such column, is the name of the file
            without its ending.
        limit: Only the first of them.
        field: The column of the text.
        where: Keep only rows whose columns have these values, as for `load_labelled`.
        at_most: Keep only rows whose columns are numbers no larger than these.

    Raises:
        EntangleError: As `load_texts`, and where a row lacks one of the columns or has nothing in it.

    Example:
        >>> _ = Path("rows.jsonl").write_text('{"text": "a gem", "topic": "praise"}')
        >>> en.data.load_described("rows.jsonl", ["topic"])
        [('a gem', {'topic': 'praise'})]
    """
    if limit is not None and limit < 1:
        raise EntangleError(f"limit is a number of texts of at least 1, not {limit}")
    name = _name(source)
    described: list[tuple[str, dict[str, str]]] = []
    for place, fields in rows(source):
        if _selected(fields, where, place) and _small(fields, at_most, place):
            known = {column: _known({"file": name, **fields}, column, place) for column in columns}
            described.append((_text(fields, field, place), known))
            if len(described) == limit:
                break
    if not described:
        raise EntangleError(f"no row of {_called(source)} has {_condition(where, at_most)}")
    return described


def load_pairs(
    source: Any, *, chosen: str = "chosen", rejected: str = "rejected", where: Mapping[str, Any] | None = None
) -> list[tuple[str, str]]:
    """Preference pairs of a file or data set, in order: what is preferred, and what is not.

    Args:
        source: As for `load_labelled`.
        chosen: The column of the preferred text.
        rejected: The column of the other.
        where: Keep only rows whose columns have these values, as for `load_labelled`.

    Raises:
        EntangleError: One line that names file and row: a side that is missing, empty or no text, or two sides that
            are the same.

    Example:
        >>> _ = Path("pairs.jsonl").write_text('{"chosen": "you gem", "rejected": "you turnip"}')
        >>> en.data.load_pairs("pairs.jsonl")
        [('you gem', 'you turnip')]
    """
    pairs: list[tuple[str, str]] = []
    for place, fields in rows(source):
        if _selected(fields, where, place):
            pairs.append((_text(fields, chosen, place), _text(fields, rejected, place)))
            if pairs[-1][0] == pairs[-1][1]:
                raise EntangleError(
                    f"{place}: {chosen!r} and {rejected!r} are the same, so there is nothing to prefer: drop the row"
                )
    if not pairs:
        raise EntangleError(f"no row of {_called(source)} has {_condition(where)}")
    return pairs


def _called(source: Any) -> str:
    """The source in a message."""
    return str(source) if isinstance(source, str | Path) else table_name(source)


def _meant(fields: Mapping[str, Any], asked: str, usual: str, known: Sequence[str]) -> str:
    """The column that is meant: the one asked for; or, where that is the usual one and is not there, the only one of
    its names in the trade, and for labels the only class label.
    """
    if asked in fields or asked != usual:
        return asked
    spelled = {column: str(column).strip().casefold() for column in fields}
    if usual in spelled.values():  # nearly the usual one: whether it is meant, the refusal asks
        return asked
    near = [column for column, name in spelled.items() if name in known]
    if usual == LABEL:
        classes = [column for column, value in fields.items() if isinstance(value, ClassName)]
        near = classes if len(classes) == 1 else near
    return near[0] if len(near) == 1 else asked


def _name(source: Any) -> str:
    if not isinstance(source, str | Path):
        return table_name(source).removeprefix("the ")
    name = Path(source).name.removesuffix(".gz")
    return name.rsplit(".", 1)[0] if Path(source).exists() else name


def _condition(where: Mapping[str, Any] | None, at_most: Mapping[str, float] | None = None) -> str:
    conditions = [f"{key} = {as_text(value)}" for key, value in (where or {}).items()]
    conditions += [f"{key} <= {limit}" for key, limit in (at_most or {}).items()]
    return " and ".join(conditions) or "a text"


def _column(fields: Mapping[str, Any], name: str, place: str) -> Any:
    if name not in fields:
        near = [column for column in fields if str(column).strip().casefold() == name.casefold()]
        advice = f"; name the column {near[0]!r} instead" if near else ""
        if not near and name in (TEXT, LABEL):
            advice = f"; rename the one that is meant to {name!r}"
        if not near and name == TEXT and "messages" in fields:
            advice = "; conversations go where prompts are asked for: write them as texts, say by apply_chat_template"
        raise EntangleError(f"{place} has no {name!r}: its columns are {', '.join(map(repr, fields))}{advice}")
    return fields[name]


def _selected(fields: Mapping[str, Any], where: Mapping[str, Any] | None, place: str) -> bool:
    return all(
        as_text(_column(fields, key, place)).lower() == as_text(value).lower() for key, value in (where or {}).items()
    )


def _small(fields: Mapping[str, Any], at_most: Mapping[str, float] | None, place: str) -> bool:
    for key, limit in (at_most or {}).items():
        value = _column(fields, key, place)
        try:
            if not float(value) <= limit:
                return False
        except (TypeError, ValueError):
            raise EntangleError(f"{place}: {key!r} must be a number to compare with {limit}, not {value!r}") from None
    return True


def _text(fields: Mapping[str, Any], column: str, place: str) -> str:
    text = _column(fields, column, place)
    if not isinstance(text, str):
        raise EntangleError(f"{place}: {column!r} must be text, not {type(text).__name__}")
    if not text.strip():
        raise EntangleError(f"{place}: {column!r} is empty: drop the row")
    refuse_half_characters(text, f"{place}: {column!r}")
    return text


def _known(fields: Mapping[str, Any], column: str, place: str) -> str:
    value = _column(fields, column, place)
    if value is None or not str(value).strip():
        raise EntangleError(f"{place} has nothing in {column!r}: fill it in, or drop the row")
    return as_text(value)


def _label(fields: Mapping[str, Any], column: str, place: str) -> Any:
    value = _column(fields, column, place)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise EntangleError(f"{place} has an empty {column!r}: drop the row or label it")
    if isinstance(value, (list, dict)) or (isinstance(value, float) and not math.isfinite(value)):
        raise EntangleError(f"{place}: {column!r} must be one of two labels, not {value!r}")
    return value.strip() if type(value) is str else value


def _without_duplicates(
    texts: list[str], labels: np.ndarray, places: list[str], names: tuple[str, str], *, drop: bool
) -> np.ndarray:
    """Indices of the first occurrence of each text."""
    first: dict[str, int] = {}
    repeats: list[tuple[int, int]] = []
    for index, text in enumerate(texts):
        earlier = first.setdefault(text, index)
        if earlier != index:
            if labels[earlier] != labels[index]:
                raise EntangleError(
                    f"{places[earlier]} and {places[index]} have the same text labelled {names[labels[earlier]]!r} "
                    f"and {names[labels[index]]!r}: decide on one, or drop both"
                )
            repeats.append((earlier, index))
    if repeats and not drop:
        earlier, later = repeats[0]
        raise EntangleError(
            f"{len(repeats):,} of {len(texts):,} texts occur more than once (first {places[earlier]} and "
            f"{places[later]}), and could end up on both sides of a split: "
            "pass drop_duplicates=True (--drop-duplicates) to keep one of each"
        )
    return np.fromiter(first.values(), dtype=np.int64)


def _duplicates_note(texts: list[str], keep: np.ndarray, splits: list[str], source: str) -> list[str]:
    """What to say of texts that were dropped."""
    if len(keep) == len(texts):
        return []
    kept = {texts[i]: splits[i] for i in keep}
    across = sum(splits[i] != kept[text] for i, text in enumerate(texts))
    note = f"{len(texts) - len(keep):,} of {len(texts):,} texts of {source} repeat another and were left out"
    return [note + (f"; {across:,} of them stood in another split than the one that was kept." if across else ".")]


def _stratified(labels: np.ndarray, limit: int, seed: int, source: str) -> np.ndarray:
    """Sorted indices of a sample of `limit`, each class with its share, and at least one."""
    if limit < 2:
        raise EntangleError(f"limit must leave at least one text of each class, so at least 2, not {limit}")
    if limit >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    n_positive = min(max(round(limit * labels.mean()), 1), limit - 1)
    indices = [
        rng.choice(np.flatnonzero(labels == value), n, replace=False)
        for value, n in ((0, limit - n_positive), (1, n_positive))
    ]
    return np.sort(np.concatenate(indices))
