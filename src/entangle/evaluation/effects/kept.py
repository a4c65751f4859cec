"""What was measured, kept on disk as soon as it is, so that a run that was stopped goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from entangle.errors import EntangleError
from entangle.storage.digest import digest
from entangle.storage.files import on_disk, tidy
from entangle.storage.sealed import read_sealed, write_sealed

REMEDY = "delete it, and it is measured again"


class Kept:
    """Numbers by the digest of what decides them, in memory or one file each.

    Args:
        directory: Where; without it nothing is kept between runs.
        settings: What decides every number: the model, the tokenizer.
    """

    def __init__(self, directory: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.directory = None if directory is None else Path(directory)
        self._settings = dict(settings)
        self._known: dict[str, list[float]] = {}
        if self.directory is not None:
            if self.directory.exists() and not self.directory.is_dir():
                raise EntangleError(
                    f"measurements are kept in a directory, but {self.directory} is a file: give a directory"
                )
            with on_disk(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
                tidy(self.directory)

    def values(self, decided_by: Any, measure: Callable[[], Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The numbers, measured unless they are known by what decides them; by None nothing is known."""
        if decided_by is None:
            return np.asarray(measure(), dtype=np.float64)
        key = digest([self._settings, decided_by])
        if key not in self._known:
            path = None if self.directory is None else self.directory / f"values-{key}.json"
            if path is not None and path.exists():
                self._known[key] = read_sealed(path, "measured values", remedy=REMEDY)["values"]
            else:
                self._known[key] = np.asarray(measure(), dtype=np.float64).tolist()
                if path is not None:
                    write_sealed(path, {"values": self._known[key]}, indent=None)
        return np.asarray(self._known[key], dtype=np.float64)
