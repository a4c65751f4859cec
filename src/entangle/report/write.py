"""Putting a report into a folder, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from entangle.errors import EntangleError
from entangle.storage import folder
from entangle.storage.files import DiskError
from entangle.storage.folder import Kind
from entangle.storage.out import check_out
from entangle.storage.sealed import read_object
from entangle.study import Study, render

NAMES = ("report.html", "report.json")


def write(studies: Sequence[Study | Mapping[str, Any]], out: Path | str) -> list[Path]:
    """Write `report.html` and `report.json`.

    Args:
        studies: A study of each model, or the numbers of one as `Study.to_dict` gives them; several stand side by side
            on the page.
        out: The folder; made if it is not there. A report that is there already is replaced, page and numbers together.

    Returns:
        The paths of the page and of the numbers.

    Raises:
        EntangleError: The folder cannot be written to.

    Example:
        >>> from entangle.report import write
        >>> few = {"n_resamples": 100, "n_permutations": 20, "forecast": False, "progress": False}
        >>> study = en.study(model, tokenizer, texts, labels, name="rudeness", **few)
        >>> [path.name for path in write([study], "out")]
        ['report.html', 'report.json']
    """
    numbers = [study.to_dict() if isinstance(study, Study) else dict(study) for study in studies]
    contents = (render(numbers), json.dumps({"studies": numbers}, indent=1, allow_nan=False))
    return write_pages(Path(out), dict(zip(NAMES, contents, strict=True)))


def write_pages(out: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write files that belong together into a folder, all or none.

    Args:
        out: The folder; made if it is not there.
        contents: Name -> text. The last one is JSON, an object, and names the others.

    Raises:
        EntangleError: The folder cannot be written to, or files of these names in it are not of a report.
    """
    *pages, numbers = contents
    kind = _kind(numbers)

    def fill(new: Path) -> None:
        for name in pages:
            (new / name).write_text(contents[name], encoding="utf-8")

    try:
        folder.write(out, kind, json.loads(contents[numbers]), fill, over=_older(out, contents))
    except DiskError as error:
        raise EntangleError(f"{error} with --out") from error
    return [out / name for name in contents]


def check_pages(out: Path, *names: str) -> None:
    """Refuse a folder that `write_pages` would refuse, before the work is done; nothing is made.

    Args:
        out: The folder; it need not be there.
        names: Of the files, the numbers last.

    Raises:
        EntangleError: The folder cannot be written to, or files of these names in it are not of a report.

    Example:
        >>> from pathlib import Path
        >>> from entangle.report import check_pages
        >>> check_pages(Path("out"), "report.html", "report.json")  # nothing is in the way
        >>> Path("out").exists()
        False
    """
    check_out(out, *names)
    folder.check_foreign(out, _kind(names[-1]), names[:-1], over=_older(out, names))


def _kind(numbers: str) -> Kind:
    return Kind("a report", numbers, "entangle-report", remedy="write it again, to another folder")


def _older(out: Path, names: Iterable[str]) -> list[str]:
    """The files of a report from before its numbers named them."""
    *_, numbers = names = [*names]
    return names if _is_older(out / numbers) else []


def _is_older(numbers: Path) -> bool:
    """Whether a file holds the numbers of a report from before they said so themselves."""
    try:
        written = read_object(numbers, "a report", remedy="")
    except EntangleError:
        return False
    return "kind" not in written and ("studies" in written or {"recipe", "claims"} <= written.keys())
