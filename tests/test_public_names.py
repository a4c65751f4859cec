"""What is public can be read by tools: its annotations resolve."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pytest
from jaxtyping import Float
from torch import Tensor

import entangle

MODULES = [info.name for info in pkgutil.walk_packages(entangle.__path__, "entangle.")]


def own(module: Any) -> Iterator[tuple[str, Any]]:
    """The public functions and classes that a module defines, and the methods of these."""
    for name, value in list(vars(module).items()):
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value
            for key, member in vars(value).items():
                method = function_of(member)
                if method is not None:
                    yield f"{name}.{key}", method


def function_of(member: Any) -> Any:
    """The function behind a member of a class, if there is one."""
    match member:
        case classmethod() | staticmethod():
            member = member.__func__
        case property():
            member = member.fget
        case cached_property():
            member = member.func
    return member if inspect.isfunction(member) else None


def unreadable(pairs: Iterator[tuple[str, Any]]) -> dict[str, str]:
    """The names whose annotations do not resolve, and why."""
    errors = {}
    for name, value in pairs:
        try:
            typing.get_type_hints(value)
        except Exception as error:
            errors[name] = repr(error)
    return errors


@pytest.mark.parametrize("name", MODULES)
def test_annotations_resolve(name: str) -> None:
    assert unreadable(own(importlib.import_module(name))) == {}


def test_every_promised_name_has_annotations_that_resolve() -> None:
    promised = ((name, getattr(entangle, name)) for name in entangle.__all__)
    assert unreadable((name, value) for name, value in promised if callable(value)) == {}


def test_an_annotation_without_its_quotes_is_noticed() -> None:
    class Readable:
        vector: Float[Tensor, " d"]

    class Unreadable:
        vector: Float[Tensor, d]

        @property
        def length(self) -> Float[Tensor, d]:
            return self.vector

    pairs = [("Readable", Readable), ("Unreadable", Unreadable), ("length", function_of(Unreadable.length))]
    assert set(unreadable(iter(pairs))) == {"Unreadable", "length"}
