"""Results on disk: what belongs to one study is there whole or not at all, and files of others stay."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entangle.storage import Kind, check_out, folder

FILES = {
    "superposition": ("geometry.png", "phase_diagram.png", "plateaus.png", "rarity.png"),
    "data_share": ("data_share.csv.gz", "data_share.png", "budgets.png"),
}
"""What each study writes beside its JSON, which bears its name."""


def check_place(out: str | os.PathLike[str], name: str) -> None:
    """Refuse a directory in which a study cannot be written, before it is made.

    Args:
        out: The directory; it need not be there.
        name: Of the study.

    Raises:
        EntangleError: It cannot be written to, or files of these names that are of no such study are there.
    """
    check_out(Path(out), *FILES[name])
    folder.check_foreign(Path(out), _kind(name), FILES[name])


def write_study(
    out: str | os.PathLike[str],
    name: str,
    record: Mapping[str, Any],
    figures: Mapping[str, Any],
    tables: Mapping[str, str] | None = None,
) -> None:
    """Write a study into the directory `out`, in place of one of its kind.

    Args:
        out: The directory; made where it is missing.
        name: Of the study.
        record: What the JSON holds.
        figures: File name -> matplotlib figure, written as PNG and closed.
        tables: File name -> text, written compressed.

    Raises:
        EntangleError: Files of these names that are of no such study are in the way, or the disk is full.
    """
    import matplotlib.pyplot as plt

    def fill(new: Path) -> None:
        for file, text in (tables or {}).items():
            (new / file).write_bytes(gzip.compress(text.encode(), mtime=0))
        for file, figure in figures.items():
            figure.savefig(new / file, dpi=150, format="png")

    try:
        folder.write(out, _kind(name), record, fill)
    finally:
        for figure in figures.values():
            plt.close(figure)


def _kind(name: str) -> Kind:
    return Kind(f"a study ({name})", f"{name}.json", f"entangle-{name.replace('_', '-')}")
