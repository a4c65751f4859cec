"""The folder that results go to, looked at before anything is computed for it."""

from __future__ import annotations

import os
from pathlib import Path

from entangle.errors import EntangleError


def check_out(out: Path, *files: str) -> None:
    """Refuse a folder that cannot be written to, before the work is done; nothing is made.

    Args:
        out: The folder; it need not be there.
        files: Names of what will be written into it.

    Raises:
        EntangleError: The folder, or one of the files, is something else, or may not be written.

    Example:
        >>> en.storage.check_out(Path("results"), "report.html")  # nothing is there yet, which is well
        >>> _ = Path("results").write_text("a file")
        >>> en.storage.check_out(Path("results"), "report.html")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: cannot write to results: Not a directory; choose another folder ...
    """
    try:
        for path in (out, *(out / name for name in files)):
            if _is_there(path) and not path.exists():
                raise EntangleError(f"{path} is a link to nothing: choose another folder with --out")
        there = out
        while not _is_there(there) and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise EntangleError(f"{there} is no folder, so nothing can be written to {out}: choose another with --out")
        if not os.access(there, os.W_OK | os.X_OK):
            raise EntangleError(f"{there} may not be written to: choose another folder with --out")
        folder = next((out / name for name in files if (out / name).is_dir()), None)
        if folder is not None:
            raise EntangleError(f"{folder} is a folder, where a file is to be written: move it, or change --out")
    except OSError as error:
        reason = error.strerror or error
        raise EntangleError(f"cannot write to {out}: {reason}; choose another folder with --out") from error


def _is_there(path: Path) -> bool:
    """Whether there is anything of this name, a broken link included.

    Raises:
        OSError: There can be nothing of this name: it is too long, or below a file.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True
