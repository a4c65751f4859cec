"""Tables of a file to dataclasses and back: what is unknown, missing or of another kind is refused by name."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from entangle.errors import EntangleError

T = TypeVar("T")
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def build(kind: type[T], fields: Any, what: str, *, hidden: Sequence[str] = (), file: str = "a recipe") -> T:
    """A dataclass from a table, and from the tables in it.

    Args:
        kind: The dataclass; its annotations say what each field is.
        fields: The table.
        what: What the table is called.
        hidden: Fields that no table may set.
        file: What the file is called that holds the table.

    Raises:
        EntangleError: Where a name is unknown or missing, or a value is of another kind.

    Example:
        >>> en.storage.build(en.composition.Training, {"epochs": 2.0}, "training").epochs
        2.0
        >>> en.storage.build(en.composition.Training, {"epoch": 2.0}, "training")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: unknown key 'epoch' in training: it has epochs, batch_size, ...
    """
    if not isinstance(fields, Mapping):
        raise EntangleError(f"{what!r} in {file} is a table, not {fields!r}")
    settable = {f.name: f for f in dataclasses.fields(kind) if f.name not in hidden}  # type: ignore[arg-type]
    unknown = sorted(set(fields) - set(settable))
    if unknown:
        raise EntangleError(f"unknown key {unknown[0]!r} in {what}: it has {', '.join(settable)}")
    missing = [
        name
        for name, f in settable.items()
        if name not in fields and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise EntangleError(f"{what} lacks {', '.join(missing)}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, name, what, file) for name, value in fields.items()})


def as_json(value: Any) -> dict[str, Any]:
    """A dataclass as values that JSON can hold.

    Example:
        >>> en.storage.as_json(en.composition.Training(batch_size=8))["batch_size"]
        8
    """
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(value), default=str))
    return values


def _value(hint: Any, value: Any, name: str, what: str, file: str) -> Any:
    """A value as its annotation says: nested tables become dataclasses, lists become tuples."""
    if get_origin(hint) is types.UnionType:  # `X | None`
        if value is None:
            return None
        hint = next(each for each in get_args(hint) if each is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, name, file=file)  # type: ignore[arg-type]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise EntangleError(f"{name!r} in {what} is a list, not {value!r}")
        return tuple(_value(inner[0], each, name, what, file) for each in value)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise EntangleError(f"{name!r} in {what} is a table, not {value!r}")
        return {key: _value(inner[1], each, f"{name}.{key}", what, file) for key, each in value.items()}
    accepted = (int, float) if hint is float else hint
    if hint in WORDS and (not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool)):
        raise EntangleError(f"{name!r} in {what} is {WORDS[hint]}, not {value!r}")
    return value
