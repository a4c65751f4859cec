"""Putting a report into a folder, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entangle.errors import EntangleError
from entangle.report.study.page import render
from entangle.storage.files import write_text


def write(studies: Sequence[Mapping[str, Any]], out: Path | str) -> list[Path]:
    """Write `report.html` and `report.json`.

    Args:
        studies: What `measure` returned for each model; several stand side by side on the page.
        out: The folder; made if it is not there. A report that is there already is replaced.

    Returns:
        The paths of the page and of the numbers.

    Raises:
        EntangleError: The folder cannot be written to.
    """
    out = Path(out)
    contents = {
        "report.html": render(studies),
        "report.json": json.dumps({"studies": list(studies)}, indent=1, allow_nan=False),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        return [write_text(out / name, text) for name, text in contents.items()]
    except OSError as error:
        raise EntangleError(
            f"cannot write the report to {out}: {error.strerror or error}; choose another folder with --out"
        ) from error
