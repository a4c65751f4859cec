"""Who is writing into a folder: one at a time, known by name, and whoever has died is taken over from.

The lock is the kernel's (`flock`), so it ends with the process that holds it, however that ends; the file tells others
whose it is, and is removed by its owner.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from entangle.errors import EntangleError

LOCK = ".entangle-lock"
PATIENCE = 30.0  # seconds; what is written under a lock for longer says so itself
BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
WITHOUT = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)

_HELD: dict[Path, tuple[int, int]] = {}
"""Folders that this process owns: the thread that does, and how many times over."""
# A forked child owns nothing: the lock is its parent's, who alone removes the file that tells whose it is.
os.register_at_fork(after_in_child=_HELD.clear)


@contextmanager
def owned(folder: Path, *, patience: float = PATIENCE) -> Iterator[None]:
    """Be the only one who writes into a folder that exists; again inside the block, the same thread may.

    Args:
        folder: The folder.
        patience: Seconds to wait for another to be done.

    Raises:
        EntangleError: Another is not done by then; it says which process, on which machine and since when.

    Example:
        >>> Path("results").mkdir()
        >>> with en.storage.owned(Path("results")):
        ...     sorted(path.name for path in Path("results").iterdir())
        ...
        ['.entangle-lock']
    """
    place, thread = folder.resolve(), threading.get_ident()
    holder, depth = _HELD.get(place, (thread, 0))
    if depth and holder == thread:
        _HELD[place] = (thread, depth + 1)
        try:
            yield
        finally:
            _HELD[place] = (thread, depth)
        return
    descriptor, process = _wait_for(place / LOCK, patience), os.getpid()
    _HELD[place] = (thread, 1)
    try:
        yield
    finally:
        if os.getpid() == process:
            _HELD.pop(place, None)
            give_up(place / LOCK, descriptor)


def claim(path: Path, *, create: bool = True) -> int | None:
    """Lock a file, and write into it whose it is; without waiting.

    Args:
        path: The file.
        create: Whether to make it where it is missing.

    Returns:
        Its descriptor, which holds the lock until it is closed; None where another process holds it.

    Raises:
        EntangleError: A file of that name is not one of ours.
        OSError: It cannot be made or opened.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    while True:
        descriptor = os.open(path, flags, 0o644)
        try:
            if not _locked(descriptor):
                os.close(descriptor)
                return None
            with suppress(FileNotFoundError):
                here, mine = os.stat(path, follow_symlinks=False), os.fstat(descriptor)
                if (here.st_dev, here.st_ino) == (mine.st_dev, mine.st_ino):
                    _sign(path, descriptor)
                    return descriptor
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise
        os.close(descriptor)  # whoever held it removed it meanwhile: what was locked is no longer the file there


def give_up(path: Path, descriptor: int) -> None:
    """Remove a file that was claimed, and let go of it."""
    try:
        with suppress(FileNotFoundError):
            path.unlink()
    finally:
        os.close(descriptor)


def owner(path: Path) -> str:
    """Whose a claimed file is, in words."""
    fields = _signature(path)
    if not fields:
        return "another process"
    return f"process {fields['pid']} on {fields['host']} since {fields['since']}"


def _wait_for(path: Path, patience: float) -> int:
    deadline = time.monotonic() + patience
    while True:
        descriptor = claim(path)
        if descriptor is not None:
            return descriptor
        if time.monotonic() >= deadline:
            raise EntangleError(
                f"{path.parent} is being written to by {owner(path)}: wait until it is done, or choose another folder"
            )
        time.sleep(0.02)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            return False
        if error.errno not in WITHOUT:
            raise
        warnings.warn(
            f"this file system cannot lock files ({error.strerror}): let only one process write to a folder",
            stacklevel=2,
        )
    return True


def _sign(path: Path, descriptor: int) -> None:
    if os.fstat(descriptor).st_size and not _signature(path):
        raise EntangleError(f"{path} is a file of somebody else's where the name of the writer belongs: move it away")
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _signature(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) and {"pid", "host", "since"} <= fields.keys() else {}
