"""A result on disk: tensors as safetensors beside a JSON of everything else, written together or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from entangle.storage import folder as folders
from entangle.storage.folder import Kind
from entangle.storage.sealed import decoding

TENSORS, META = "tensors.safetensors", "meta.json"


def write(
    directory: str | os.PathLike[str], kind: str, version: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Write a result, replacing one of its kind that is there.

    Args:
        directory: Made if needed.
        kind: Name of the class, checked on reading.
        version: Of the format, checked on reading.
        tensors: By name.
        meta: Anything JSON can hold.

    Raises:
        EntangleError: Files that are not such a result are in the way, or the disk is full.

    Example:
        >>> en.storage.write("saved", "Numbers", 1, {"x": torch.arange(3)}, {"note": "the first three"})
        >>> sorted(path.name for path in Path("saved").iterdir())
        ['meta.json', 'tensors.safetensors']
    """

    def fill(new: Path) -> None:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, new / TENSORS)

    folders.write(directory, _kind(kind, version), meta, fill)


def read(directory: str | os.PathLike[str], kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a result that `write` wrote.

    Raises:
        EntangleError: Nothing is there, or something else, or it is damaged or of another version.

    Example:
        >>> en.storage.write("saved", "Numbers", 1, {"x": torch.arange(3)}, {"note": "the first three"})
        >>> tensors, meta = en.storage.read("saved", "Numbers", 1)
        >>> tensors["x"], meta["note"]
        (tensor([0, 1, 2]), 'the first three')
    """
    meta = folders.read(directory, _kind(kind, version))
    with taken_apart(directory, kind):
        return load_file(Path(directory) / TENSORS), meta


@contextmanager
def taken_apart(directory: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turn whatever goes wrong while what was read is made into an object into one clear line.

    Example:
        >>> with en.storage.taken_apart("saved", "ProbeGrid"):
        ...     torch.zeros(2).reshape(3)
        ...
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: saved is damaged, it does not make a saved ProbeGrid (shape ...
    """
    with decoding(directory, f"a saved {kind}", remedy="save it again"):
        yield


def _kind(name: str, version: int) -> Kind:
    return Kind(f"a saved {name}", META, name, version, before=(TENSORS,))
