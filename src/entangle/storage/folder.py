"""A directory written whole: of one kind and version, with a manifest that names its files and knows their checksums.

Everything this library leaves in a folder of its own is written and read here. The manifest comes last, so that where
it is, the files it names are there and belong together; only files that it names are ever replaced or removed.
"""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entangle.errors import EntangleError
from entangle.storage.files import NEW, DiskError, flush, on_disk, put, workshop
from entangle.storage.names import inside
from entangle.storage.owner import LOCK, owned
from entangle.storage.sealed import decoding, read_object, sealed, unseal

FILES = "files"


@dataclass(frozen=True)
class Kind:
    """What a folder holds, and how its manifest says so.

    Attributes:
        what: For messages, with its article: "an edit".
        manifest: Name of the manifest.
        name: What the manifest calls the kind.
        version: Of the format.
        name_key: The manifest's key of `name`.
        version_key: The manifest's key of `version`.
        remedy: What to do where it is damaged.
        before: Files beside the manifest where an older version named none: paths, or patterns of them.
        receipted: A pattern (re) of paths below the folder that have checksums of their own, and none in the manifest.
        for_people: Files that people may change or have of their own, such as a card, and how ours begin: they are not
            compared, and people's own stay.

    Example:
        >>> kind = en.storage.Kind("a list of primes", "primes.json", "primes")
        >>> _ = en.storage.folder.write("primes", kind, {"primes": [2, 3, 5]})
        >>> en.storage.folder.read("primes", kind)["primes"]
        [2, 3, 5]
    """

    what: str
    manifest: str
    name: str
    version: int = 1
    name_key: str = "kind"
    version_key: str = "version"
    remedy: str = "save it again, to another directory"
    before: tuple[str, ...] = ()
    receipted: str = ""
    for_people: Mapping[str, str] = field(default_factory=dict)

    def marks(self) -> dict[str, Any]:
        """What the manifest says of itself."""
        return {self.name_key: self.name, self.version_key: self.version}


def write(
    folder: str | os.PathLike[str],
    kind: Kind,
    content: Mapping[str, Any],
    fill: Callable[[Path], object] = lambda _: None,
    *,
    over: Collection[str] = (),
) -> Path:
    """Write a folder, or replace what an earlier call wrote in it; the files of others in it stay.

    Args:
        folder: The folder; made if need be.
        kind: What it is.
        content: What the manifest says: anything JSON can hold.
        fill: Writes the other files into the directory that it is given.
        over: Files known to be ours although no manifest names them; they may be replaced.

    Returns:
        The folder.

    Raises:
        EntangleError: A file that is not ours is in the way, another process is writing, or the disk is full; what was
            there stays.

    Example:
        >>> en.storage.write("saved", "Numbers", 1, {"x": torch.arange(3)}, {"note": "the first three"})
        >>> sorted(path.name for path in Path("saved").iterdir())
        ['meta.json', 'tensors.safetensors']
    """
    target = Path(folder)
    with on_disk(target):
        _refuse_file(target, kind)
        if not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with workshop(target.parent) as room:
                _prepare(room / NEW, kind, content, fill, {})
                if _renamed(room / NEW, target):
                    return target
        with owned(target), workshop(target) as room:  # also where somebody was faster
            mine = _ours(target, kind) | {name: {} for name in over}
            theirs = [name for name in kind.for_people if _is_somebodys(target, name, mine, kind)]
            names = _prepare(room / NEW, kind, content, fill, theirs)
            _refuse_foreign(target, [name for name in names if not _same(room / NEW / name, target / name)], mine, kind)
            put(room, names, [name for name in mine if name not in theirs])
    return target


def check_foreign(folder: Path, kind: Kind, names: Collection[str], *, over: Collection[str] = ()) -> None:
    """Refuse, before the work for it is done, a folder in which `write` would find files of others in its way.

    Args:
        folder: The folder; it need not be there.
        kind: What will be written.
        names: The files beside the manifest.
        over: As for `write`.

    Raises:
        EntangleError: There is such a file.
    """
    if os.path.lexists(folder):
        _refuse_file(folder, kind)
        _refuse_foreign(folder, [*names, kind.manifest], {*_ours(folder, kind), *over}, kind)


def mend(folder: Path, kind: Kind, fill: Callable[[Path], object]) -> None:
    """Write the files of a folder that exists again, where its manifest is right and they are damaged or missing.

    Args:
        folder: The folder.
        kind: What it is.
        fill: As for `write`; writes the same as before.

    Raises:
        EntangleError: The manifest is of something else, or cannot be read.
    """
    content = read(folder, kind, files=False)
    with on_disk(folder), owned(folder), workshop(folder) as room:
        names = _prepare(room / NEW, kind, content, fill, ())
        put(room, names, names)


def read(folder: str | os.PathLike[str], kind: Kind, *, files: bool = True) -> dict[str, Any]:
    """What the manifest of a folder says, after every file that it names was found to be what was written.

    Args:
        folder: The folder.
        kind: What it should be.
        files: Whether to compare the files; without it, the manifest alone.

    Raises:
        EntangleError: Nothing is there, or something else, of another version, damaged or not whole.

    Example:
        >>> en.storage.write("saved", "Numbers", 1, {"x": torch.arange(3)}, {"note": "the first three"})
        >>> tensors, meta = en.storage.read("saved", "Numbers", 1)
        >>> tensors["x"], meta["note"]
        (tensor([0, 1, 2]), 'the first three')
    """
    if not isinstance(folder, str | os.PathLike):
        raise EntangleError(f"{kind.what} is read from a folder, named by a path; got {folder!r}")
    source = Path(folder)
    for _ in range(50):
        with suppress(EntangleError):
            return _read(source, kind, files)
        if not (source / LOCK).exists():  # else somebody may be replacing it at this moment
            break
        time.sleep(0.05)
    return _read(source, kind, files)


def check_files(folder: Path, manifest: str, what: str) -> None:
    """Compare the files in a folder with those that its manifest names, whatever kind it is of; none, nothing.

    Raises:
        EntangleError: One is missing or damaged.

    Example:
        >>> kind = en.storage.Kind("a note", "manifest.json", "note")
        >>> _ = en.storage.folder.write("note", kind, {}, lambda new: (new / "note.txt").write_text("dear reader"))
        >>> _ = Path("note/note.txt").write_text("changed")
        >>> en.storage.check_files(Path("note"), "manifest.json", "a note")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: note/note.txt, of a note, is damaged (its size is not that of ...
    """
    path = folder / manifest
    if not path.is_file():
        return
    remedy = f"make it again, or delete {path} if it was changed on purpose"
    content = unseal(read_object(path, what, remedy=remedy), path, what, remedy=remedy)
    with decoding(path, what, remedy=remedy):
        for name, entry in content.get(FILES, {}).items():
            _check(folder, name, entry, Kind(what, manifest, "", remedy=remedy))


def _prepare(
    new: Path,
    kind: Kind,
    content: Mapping[str, Any],
    fill: Callable[[Path], object],
    without: Collection[str],
) -> list[str]:
    """Write the files and the manifest of a folder; the names of what is there now, the manifest last."""
    new.mkdir()
    fill(new)
    written = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if not path.is_dir())
    names = [name for name in written if name not in without and name != kind.manifest]
    entries = {name: _entry(new / name) for name in names if not re.fullmatch(kind.receipted, name)}
    (new / kind.manifest).write_text(sealed({**kind.marks(), **content, FILES: entries}))
    flush(new)
    return [*names, kind.manifest]


def _renamed(new: Path, target: Path) -> bool:
    try:
        os.rename(new, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _read(source: Path, kind: Kind, files: bool) -> dict[str, Any]:
    _refuse_file(source, kind)
    path = source / kind.manifest
    content = read_object(path, kind.what, remedy=kind.remedy)
    _check_marks(content, source, kind)
    content = unseal(content, path, kind.what, remedy=kind.remedy)
    entries = content.pop(FILES, None)
    if entries is None:  # written before manifests named their files
        entries = {name: {} for name in kind.before if "*" not in name}
    with decoding(path, kind.what, remedy=kind.remedy):
        for name, entry in entries.items() if files else ():
            if name not in kind.for_people:
                _check(source, name, entry, kind)
    return content


def _check(source: Path, name: str, entry: Mapping[str, Any], kind: Kind) -> None:
    path = source / name
    if not path.is_file():
        raise EntangleError(f"{source} holds {kind.what} that is not whole: {name} is missing; {kind.remedy}")
    try:
        now = _entry(path) if entry else {}
    except OSError as error:
        raise DiskError(f"{path} cannot be read ({error.strerror or error}): see who may read it") from error
    if now != entry:
        how = "its size" if now.get("size") != entry.get("size") else "its checksum"
        raise EntangleError(
            f"{path}, of {kind.what}, is damaged ({how} is not that of what was written): {kind.remedy}"
        )


def _check_marks(content: Mapping[str, Any], source: Path, kind: Kind) -> None:
    name, version = content.get(kind.name_key), content.get(kind.version_key)
    if name != kind.name:
        raise EntangleError(
            f"{source} holds {_short(name)} version {_short(version)}, not {kind.name} version {kind.version}: give "
            f"the directory of {kind.what}"
        )
    if version != kind.version:
        newer = isinstance(version, int) and version > kind.version
        todo = "a newer version of entangle wrote it, use that" if newer else kind.remedy
        raise EntangleError(
            f"{source} holds {name} {kind.version_key} {_short(version)}, but this library reads "
            f"{kind.version_key} {kind.version}: {todo}"
        )


def _ours(folder: Path, kind: Kind) -> dict[str, Mapping[str, Any]]:
    """The files that the folder's manifest names, the manifest first; none where there is no manifest of this kind."""
    try:
        content = read_object(folder / kind.manifest, kind.what, remedy=kind.remedy)
    except EntangleError:
        return {}
    if content.get(kind.name_key) != kind.name:
        return {}
    entries = content.get(FILES)
    if not isinstance(entries, dict):
        paths = (path for pattern in kind.before for path in folder.glob(pattern) if path.is_file())
        entries = {path.relative_to(folder).as_posix(): {} for path in paths}
    mine: dict[str, Mapping[str, Any]] = {kind.manifest: {}}
    mine |= {name: entry for name, entry in entries.items() if inside(name)}
    if not kind.receipted:
        return mine
    below = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return mine | {name: {} for name in below if re.fullmatch(kind.receipted, name)}


def _refuse_file(folder: Path, kind: Kind) -> None:
    if os.path.lexists(folder) and not folder.is_dir():
        is_what = "a link to nothing" if folder.is_symlink() and not folder.exists() else "a file"
        raise EntangleError(f"{kind.what} is a directory, but {folder} is {is_what}: choose another directory")


def _refuse_foreign(folder: Path, names: Collection[str], mine: Collection[str], kind: Kind) -> None:
    for name in names:
        for parent in Path(name).parents:
            if (folder / parent).is_symlink() and parent != Path():
                raise EntangleError(f"{folder / parent} is a link, which is not followed out of {folder}: move it away")
            if os.path.lexists(folder / parent) and not (folder / parent).is_dir():
                raise EntangleError(f"{folder / parent} is a file where {kind.what} has a folder: choose another one")
        there = os.path.lexists(folder / name)
        if there and name not in mine and name not in kind.for_people:
            raise EntangleError(
                f"{folder / name} is not part of {kind.what} that was saved here before, and would be lost: choose "
                "another directory, or move it away"
            )
        if there and not (folder / name).is_symlink() and (folder / name).is_dir():
            raise EntangleError(f"{folder / name} is a folder where {kind.what} has a file: choose another directory")


def _same(new: Path, there: Path) -> bool:
    """Whether a file is there already, as it would be written: nothing would be lost."""
    return there.is_file() and not there.is_symlink() and filecmp.cmp(new, there, shallow=False)


def _is_somebodys(folder: Path, name: str, mine: Mapping[str, Mapping[str, Any]], kind: Kind) -> bool:
    """Whether a file for people is there that we did not write, or that they have changed since."""
    path = folder / name
    if name not in kind.for_people or not os.path.lexists(path):
        return False
    if path.is_symlink() or not path.is_file():
        return True
    if mine.get(name):
        return _entry(path) != mine[name]
    return not path.read_bytes().startswith(kind.for_people[name].encode())


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}..."
