"""Results on disk: every file is there whole or not at all."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any


def folder(out: str | os.PathLike[str]) -> Path:
    """The directory `out`, made where it is missing."""
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def write_gzip(path: Path, text: str) -> None:
    """Write a text file, compressed."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
    temporary.replace(path)


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure as PNG, and close it."""
    import matplotlib.pyplot as plt

    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=150, format="png")
    temporary.replace(path)
    plt.close(figure)
