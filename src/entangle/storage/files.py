"""Files that are there whole or not at all, prepared in a workshop that the next run clears if this one is killed."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from entangle.errors import EntangleError
from entangle.storage.owner import claim

PREFIX, UNLOCKED, OWNER, JOURNAL = ".entangle-", ".entangling-", "owner.json", "journal.json"
OURS = re.compile(r"\.entangl(e|ing)-[0-9a-f]{8}")
NEW, OLD = "new", "old"
ABANDONED_AFTER = 60.0  # seconds


class DiskError(EntangleError, OSError):
    """Something that could not be written or read; one line that says what to do about it.

    Example:
        >>> issubclass(en.storage.DiskError, en.EntangleError), issubclass(en.storage.DiskError, OSError)
        (True, True)
    """


@contextmanager
def on_disk(what: object) -> Iterator[None]:
    """Turn what goes wrong with a disk into one clear line.

    Args:
        what: What is being written, for the message.

    Example:
        >>> with en.storage.on_disk("the report"):
        ...     raise OSError(28, "No space left on device")
        ...
        Traceback (most recent call last):
            ...
        entangle.storage.files.DiskError: the report could not be written: No space left on device; ...
    """
    try:
        yield
    except EntangleError:
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise DiskError(f"{what} could not be written: {reason}; free space, or choose another place") from error


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """A hidden directory inside a folder that exists, for preparing what is then put in its place.

    It is locked while its owner lives, and removed at the end; those of processes that were killed are cleared first.
    """
    tidy(folder)
    name = secrets.token_hex(4)
    unlocked, room = folder / f"{UNLOCKED}{name}", folder / f"{PREFIX}{name}"
    descriptor = None
    try:
        unlocked.mkdir()
        descriptor = claim(unlocked / OWNER)
        unlocked.rename(room)  # only now does it bear a name that others clear: the lock stays that of the file
        yield room
    finally:
        try:
            _demolish(unlocked)
            if not (room / JOURNAL).exists():  # else what was begun could not be undone, and is left to the next run
                _demolish(room)
        finally:
            if descriptor is not None:
                os.close(descriptor)


def tidy(folder: Path) -> None:
    """Clear the workshops in a folder whose owners have died, after undoing what they had only half put in place.

    Example:
        >>> import os
        >>> Path(".entangle-0123abcd").mkdir()  # what a process that was killed long ago left behind
        >>> os.utime(".entangle-0123abcd", (0, 0))
        >>> en.storage.tidy(Path())
        >>> Path(".entangle-0123abcd").exists()
        False
    """
    with os.scandir(folder) as entries:
        rooms = [Path(entry.path) for entry in entries if OURS.fullmatch(entry.name)]
    for room in rooms:
        if not room.is_symlink() and room.is_dir():
            with suppress(OSError, EntangleError):  # somebody else's, or not ours to remove
                _clear(room)


def _clear(room: Path) -> None:
    if not (room / OWNER).exists() or room.name.startswith(UNLOCKED):
        if time.time() - room.stat().st_mtime > ABANDONED_AFTER:  # killed between two lines, long ago
            (room / OWNER).unlink(missing_ok=True)
            room.rmdir()
        return
    descriptor = claim(room / OWNER, create=False)
    if descriptor is None:
        return
    try:
        undo(room)
        _demolish(room)
    finally:
        os.close(descriptor)


def _demolish(room: Path) -> None:
    """Remove a workshop if it is there, its owner's name last: without it nobody would know whose the rest is."""
    with suppress(OSError):
        for entry in room.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != OWNER:
                entry.unlink()
        (room / OWNER).unlink(missing_ok=True)
        room.rmdir()


def put(room: Path, names: Sequence[str], gone: Sequence[str]) -> None:
    """Take the files `gone` out of a workshop's folder, and put those in its `new/` there instead: all, or none.

    The last of `names` says that the others are there: the one of its name is taken out first, and it comes last. If
    anything goes wrong, what was there comes back; if the process is killed, then when the folder is next tidied.

    Args:
        room: The workshop.
        names: New files, as paths below the folder.
        gone: Old files, likewise.
    """
    folder, last = room.parent, names[-1]
    taken = [name for name in dict.fromkeys([last, *gone]) if os.path.lexists(folder / name)]
    try:
        _write_flushed(room / JOURNAL, json.dumps({"new": list(names), "old": taken}))
        for name in taken:
            _move(folder / name, room / OLD / name)
        _flush_entry(folder)
        for name in names:
            _move(room / NEW / name, folder / name)
        _flush_entry(folder)
    except BaseException:
        undo(room)
        raise
    (room / JOURNAL).unlink()  # it is done
    for parent in sorted({p for name in taken for p in Path(name).parents if p != Path()}, reverse=True):
        with suppress(OSError):  # others' files are in it
            (folder / parent).rmdir()


def undo(room: Path) -> None:
    """Bring back what a `put` that was broken off had taken out, unless it had come to its end."""
    try:
        journal: dict[str, Any] = json.loads((room / JOURNAL).read_text())
    except FileNotFoundError:
        return
    except json.JSONDecodeError:  # nothing had been taken out as yet
        (room / JOURNAL).unlink()
        return
    folder, names = room.parent, journal["new"]
    if (room / NEW / names[-1]).exists():
        for name in reversed(names):
            if not (room / NEW / name).exists() and os.path.lexists(folder / name):
                (room / NEW / name).parent.mkdir(parents=True, exist_ok=True)
                os.rename(folder / name, room / NEW / name)
        for name in reversed(journal["old"]):
            if (room / OLD / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.rename(room / OLD / name, folder / name)
    (room / JOURNAL).unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write a file at; flushed to disk, it then takes the place of `path` in one step.

    If anything goes wrong, what was at `path` stays and the temporary is removed.

    Raises:
        DiskError: The file cannot be written.

    Example:
        >>> with en.storage.replacing(Path("numbers.txt")) as temporary:
        ...     _ = temporary.write_text("1 2 3")
        ...     before = Path("numbers.txt").exists()
        ...
        >>> before, Path("numbers.txt").read_text()
        (False, '1 2 3')
    """
    with on_disk(path), workshop(path.parent) as room:
        temporary = room / path.name
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        _flush_entry(path.parent)


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8, in place of what was there, and give back its path.

    Example:
        >>> en.storage.write_text(Path("note.txt"), "dear reader").read_text()
        'dear reader'
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def flush(path: Path) -> None:
    """Have a file, or everything in a directory, on disk before going on."""
    if path.is_dir():
        for inner in path.iterdir():
            flush(inner)
        _flush_entry(path)
    else:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def _write_flushed(path: Path, text: str) -> None:
    path.write_text(text)
    flush(path)
    _flush_entry(path.parent)


def _flush_entry(directory: Path) -> None:
    """Have the names in a directory on disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
