"""What is public can be read: by tools, since its annotations resolve, and by people, since it has an example."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import Float
from torch import Tensor

import entangle

# Rooms of one module without `__all__` show what they define. A command's docstring is its help: the shell's examples
# are in the docs. `moved` is no room to use.
ROOMS = [info.name for info in pkgutil.iter_modules(entangle.__path__) if info.name not in ("cli", "moved")]
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


def shown(room: Any) -> dict[str, Any]:
    """The functions and classes that a room shows, by name."""
    names = getattr(room, "__all__", None) or [name for name, _ in own(room) if "." not in name]
    values = {name: getattr(room, name) for name in names}
    return {name: value for name, value in values.items() if inspect.isfunction(value) or inspect.isclass(value)}


def without_example(values: dict[str, Any]) -> set[str]:
    """The names whose docstring has no example that runs."""
    return {
        name
        for name, value in values.items()
        if all(
            example.options.get(doctest.SKIP) for example in doctest.DocTestParser().get_examples(value.__doc__ or "")
        )
    }


@pytest.mark.parametrize("room", ROOMS)
def test_whatever_a_room_shows_has_an_example(room: str) -> None:
    lacking = without_example(shown(importlib.import_module(f"entangle.{room}")))
    assert lacking == set(), "write >>> in their docstrings, two to six lines; src/conftest.py says what is at hand"


def test_a_name_without_an_example_is_noticed() -> None:
    def with_example() -> None:
        """
        >>> 1 + 1
        2
        """

    def skipped() -> None:
        """
        >>> 1 + 1  # doctest: +SKIP
        3
        """

    def without() -> None:
        """The sum of one and one."""

    named = {"with_example": with_example, "skipped": skipped, "without": without}
    assert without_example(named) == {"skipped", "without"}


ENTRIES = re.compile(r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*): +(.*(?:\n {5,}.*)*)", re.MULTILINE)
SECTION = re.compile(r"^(?:Args|Attributes|Raises):\n((?:(?: {4}.*)?\n?)*)", re.MULTILINE)


def rough_entries(source: str) -> list[str]:
    """Entries of `Args:`, `Attributes:` and `Raises:` that do not begin with a capital or end with a full stop.

    What is no word may come first: code in backquotes, a number, a symbol of one letter, or a name with a mark in it.
    """
    documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module
    rough = []
    for node in ast.walk(ast.parse(source)):
        text = (ast.get_docstring(node) or "") if isinstance(node, documented) else ""
        for section in SECTION.findall(text):
            for name, entry in ENTRIES.findall(section):
                begins = not re.match(r"a |[a-z]{2,}(?![\w.(=])", entry) or entry.startswith(("theta", "sigma"))
                if not begins or not entry.rstrip().rstrip("`\"')").endswith((".", "!", "?")):
                    rough.append(f"{name}: {entry}")
    return rough


@pytest.mark.parametrize("room", ROOMS)
def test_entries_of_docstrings_are_sentences(room: str) -> None:
    module = importlib.import_module(f"entangle.{room}")
    place = Path(module.__file__ or "")
    files = place.parent.rglob("*.py") if place.stem == "__init__" else [place]
    rough = [entry for path in files for entry in rough_entries(path.read_text())]
    assert rough == []


def test_an_entry_that_is_no_sentence_is_noticed() -> None:
    entries = "a: the model.\n        b: Its layers\n        c: Fine.\n        d: a file."
    source = f'def f(a, b, c, d):\n    """One.\n\n    Args:\n        {entries}\n    """'
    assert rough_entries(source) == ["a: the model.", "b: Its layers", "d: a file."]
