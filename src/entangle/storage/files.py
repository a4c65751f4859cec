"""Files and directories that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write a file or a directory at; flushed to disk, it then takes the place of `path`.

    If anything goes wrong, what was at `path` stays and the temporary is removed. A file is replaced in one step; a
    directory cannot be, so that a kill at the wrong moment may leave the old one beside, under a hidden name.
    """
    temporary = _aside(path)
    try:
        yield temporary
        _flush(temporary)
        if temporary.is_dir() and path.exists():
            old = _aside(path)
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except BaseException:
                os.replace(old, path)
                raise
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
        _flush_entry(path.parent)
    finally:
        _remove(temporary)


@contextmanager
def replacing_together(*paths: Path) -> Iterator[list[Path]]:
    """Temporary paths to write files at that belong together, in one directory whose other files stay.

    Once all are flushed to disk, the last of the old ones is removed first and the last of the new ones put in its
    place last: where that file is, the others belong to it. If anything goes wrong while writing, the old ones stay.
    """
    temporaries = [_aside(path) for path in paths]
    try:
        yield temporaries
        for temporary in temporaries:
            _flush(temporary)
        paths[-1].unlink(missing_ok=True)
        _flush_entry(paths[-1].parent)
        for temporary, path in zip(temporaries[:-1], paths[:-1], strict=True):
            os.replace(temporary, path)
        _flush_entry(paths[-1].parent)
        os.replace(temporaries[-1], paths[-1])
        _flush_entry(paths[-1].parent)
    finally:
        for temporary in temporaries:
            _remove(temporary)


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8, in place of what was there, and give back its path."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _aside(path: Path) -> Path:
    """A hidden name beside `path` that no other process takes, on this machine or another."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _flush(path: Path) -> None:
    """Have a file, or everything in a directory, on disk before going on."""
    if path.is_dir():
        for inner in path.iterdir():
            _flush(inner)
        _flush_entry(path)
    else:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _flush_entry(directory: Path) -> None:
    """Have the names in a directory on disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
