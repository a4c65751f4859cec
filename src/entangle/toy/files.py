"""Results on disk: every file is there whole or not at all."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

from entangle.storage.files import replacing


def folder(out: str | os.PathLike[str]) -> Path:
    """The directory `out`, made where it is missing."""
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def write_gzip(path: Path, text: str) -> None:
    """Write a text file, compressed."""
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure as PNG, and close it."""
    import matplotlib.pyplot as plt

    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
