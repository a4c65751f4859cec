"""JSON that notices when it is changed: an object with a checksum of all that it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from entangle.errors import EntangleError
from entangle.storage.files import write_text

CHECKSUM = "checksum"
FAULTS = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OSError, SafetensorError)


def sealed(content: Mapping[str, Any], *, indent: int | None = 1) -> str:
    """The content as JSON, with its checksum."""
    plain = json.loads(json.dumps(content))  # as it will be read: keys as text, tuples as lists
    return json.dumps({**plain, CHECKSUM: _digest(plain)}, indent=indent) + "\n"


def write_sealed(path: Path, content: Mapping[str, Any], *, indent: int | None = 1) -> Path:
    """Write content as JSON with its checksum, in place of what was there.

    Example:
        >>> path = en.storage.write_sealed(Path("edit.json"), {"alpha": 8})
        >>> en.storage.read_sealed(path, "an edit", remedy="save it again")
        {'alpha': 8}
    """
    return write_text(path, sealed(content, indent=indent))


def read_object(path: Path, what: str, *, remedy: str) -> dict[str, Any]:
    """A JSON object from a file, whatever is in it.

    Args:
        path: The file.
        what: What should be there, for messages: "an edit".
        remedy: What to do where it is not: "save it again".

    Raises:
        EntangleError: There is no such file, it cannot be read, or holds something else.

    Example:
        >>> _ = Path("edit.json").write_text("[1, 2]")
        >>> en.storage.read_object(Path("edit.json"), "an edit", remedy="save it again")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: edit.json, of an edit, is damaged (it holds a list, not an ...
    """
    try:
        content = json.loads(path.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise EntangleError(f"{path.parent} holds no {_bare(what)}: {path.name} is missing; {remedy}") from error
    except OSError as error:
        raise EntangleError(f"{path}, of {what}, cannot be read ({error.strerror or error}): {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise EntangleError(f"{path}, of {what}, cannot be read, it is damaged ({_first(error)}): {remedy}") from error
    if not isinstance(content, dict):
        raise EntangleError(
            f"{path}, of {what}, is damaged (it holds a {type(content).__name__}, not an object): {remedy}"
        )
    return content


def unseal(content: Mapping[str, Any], path: Path, what: str, *, remedy: str) -> dict[str, Any]:
    """The content without its checksum, which is compared; what older versions wrote has none.

    Raises:
        EntangleError: It is not what was written.

    Example:
        >>> en.storage.unseal({"alpha": 8, "checksum": "0"}, Path("edit.json"), "an edit", remedy="save it again")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: edit.json, of an edit, is damaged (its checksum says it was ...
    """
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    if CHECKSUM in content and content[CHECKSUM] != _digest(rest):
        raise EntangleError(f"{path}, of {what}, is damaged (its checksum says it was changed): {remedy}")
    return rest


def read_sealed(path: Path, what: str, *, remedy: str) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        EntangleError: As for `read_object` and `unseal`.

    Example:
        >>> path = en.storage.write_sealed(Path("edit.json"), {"alpha": 8})
        >>> _ = path.write_text(path.read_text().replace("8", "9"))
        >>> en.storage.read_sealed(path, "an edit", remedy="save it again")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: edit.json, of an edit, is damaged (its checksum says it was ...
    """
    return unseal(read_object(path, what, remedy=remedy), path, what, remedy=remedy)


@contextmanager
def decoding(where: object, what: str, *, remedy: str) -> Iterator[None]:
    """Turn whatever goes wrong while content is taken apart into one clear line.

    Args:
        where: The file or folder.
        what: What it should hold: "an edit".
        remedy: What to do.

    Example:
        >>> with en.storage.decoding("edit.json", "an edit", remedy="save it again"):
        ...     {}["alpha"]
        ...
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: edit.json is damaged, it does not make an edit (no 'alpha'): ...
    """
    try:
        yield
    except EntangleError:
        raise
    except FAULTS as error:
        raise EntangleError(f"{where} is damaged, it does not make {what} ({_first(error)}): {remedy}") from error


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _first(error: BaseException) -> str:
    name, text = type(error).__name__, str(error)
    line = (text.splitlines() or [name])[0][:200]
    return f"no {line}" if isinstance(error, KeyError) else line


def _bare(what: str) -> str:
    """The noun without its article."""
    return what.removeprefix("an ").removeprefix("a ")
