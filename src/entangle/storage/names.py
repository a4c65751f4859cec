"""Names that become names of files: checked where they are given, and not where they have done harm."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from entangle.errors import EntangleError

LONGEST = 160  # bytes; file systems take 255, and something is always added
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


def check_name(name: object, what: str) -> str:
    """The name, if it can be part of a file's name on every system.

    Args:
        name: The name.
        what: Whose it is, for the message: "a variant".

    Raises:
        EntangleError: It is empty, a path, hidden, reserved or too long, or holds characters that do not print.

    Example:
        >>> en.storage.check_name("10 % toxic", "a variant")
        '10 % toxic'
        >>> en.storage.check_name("../toxic", "a variant")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: the name of a variant becomes the name of a file, but '../toxic' ...
    """
    fault = _fault(name)
    if fault:
        raise EntangleError(
            f"the name of {what} becomes the name of a file, but {_shown(name)} {fault}: use letters, digits, spaces, "
            "dashes and underscores"
        )
    return str(name)


def check_distinct(names: Iterable[str], what: str) -> None:
    """Refuse names that are one on a file system that does not tell small letters from large, or accents apart.

    Raises:
        EntangleError: Two are the same.

    Example:
        >>> en.storage.check_distinct(["tense", "Tense"], "concepts")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: concepts named 'tense' and 'Tense' would share one file or ...
    """
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise EntangleError(
                f"{what} named {_shown(seen[key])} and {_shown(name)} would share one file or folder: rename one"
            )
        seen[key] = name


def inside(name: object) -> bool:
    """Whether a name in a manifest is that of a file in its folder or below, and not of one outside."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name and name != "."


def _fault(name: object) -> str:
    """What is wrong with a name, as the end of a sentence; "" where nothing is."""
    if not isinstance(name, str):
        return f"is a {type(name).__name__}"
    size = len(name.encode(errors="surrogatepass"))
    kinds = {unicodedata.category(each) for each in name}
    faults = {
        "is empty": not name.strip(),
        "holds half a character": "Cs" in kinds,
        "holds characters that do not print": bool(kinds & {"Cc", "Cf", "Zl", "Zp"}),
        "is a path": "/" in name or "\\" in name,
        "begins or ends with a dot or a space": name != name.strip() or name.startswith(".") or name.endswith("."),
        "is reserved on some systems": name.split(".")[0].lower() in RESERVED,
        f"has {size} bytes, more than {LONGEST}": size > LONGEST,
    }
    return next((fault for fault, holds in faults.items() if holds), "")


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 60 else f"{text[:50]}...{text[-1]}"
