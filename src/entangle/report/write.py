"""Putting a report into a folder, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entangle.errors import EntangleError
from entangle.storage.files import replacing_together
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
    """
    numbers = [study.to_dict() if isinstance(study, Study) else dict(study) for study in studies]
    contents = (render(numbers), json.dumps({"studies": numbers}, indent=1, allow_nan=False))
    return write_pages(Path(out), dict(zip(NAMES, contents, strict=True)))


def write_pages(out: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write files that belong together into a folder, all or none.

    Args:
        out: The folder; made if it is not there.
        contents: Name -> text. The last one is there only while the others belong to it.

    Raises:
        EntangleError: The folder cannot be written to.
    """
    paths = [out / name for name in contents]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replacing_together(*paths) as temporaries:
            for temporary, text in zip(temporaries, contents.values(), strict=True):
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EntangleError(
            f"cannot write the report to {out}: {error.strerror or error}; choose another folder with --out"
        ) from error
    return paths
