"""What is written takes its place whole, or what was there stays; nothing temporary is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from entangle.storage.files import replacing, replacing_together, write_text


def contents(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in sorted(directory.rglob("*")) if p.is_file()}


def write_file(target: Path, text: str, then: BaseException) -> None:
    with replacing(target) as temporary:
        temporary.write_text(text)
        raise then


def write_directory(target: Path, files: dict[str, str], then: BaseException | None = None) -> None:
    with replacing(target) as temporary:
        temporary.mkdir()
        for name, text in files.items():
            (temporary / name).write_text(text)
        if then is not None:
            raise then


def write_pair(directory: Path, numbers: str, meta: str, then: BaseException | None = None) -> None:
    with replacing_together(directory / "numbers", directory / "meta") as (first, last):
        first.write_text(numbers)
        last.write_text(meta)
        if then is not None:
            raise then


def test_a_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.txt", "half", then=KeyboardInterrupt())
    assert contents(tmp_path) == {"a.txt": "old"}
    write_text(tmp_path / "a.txt", "new")
    assert contents(tmp_path) == {"a.txt": "new"}


def test_a_directory(tmp_path: Path) -> None:
    target = tmp_path / "d"
    write_directory(target, {"a": "1", "b": "1"})
    with pytest.raises(KeyboardInterrupt):
        write_directory(target, {"a": "2"}, then=KeyboardInterrupt())
    assert contents(tmp_path) == {"d/a": "1", "d/b": "1"}
    write_directory(target, {"a": "2"})
    assert contents(tmp_path) == {"d/a": "2"}
    assert os.listdir(tmp_path) == ["d"]


def test_a_directory_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename, renamed = tmp_path / "d", os.replace, []
    write_directory(target, {"a": "1"})

    def second_fails(source: Path, destination: Path) -> None:
        renamed.append(destination)
        if len(renamed) == 2:
            raise OSError("no")
        rename(source, destination)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="no"):
        write_directory(target, {"a": "2"})
    assert contents(tmp_path) == {"d/a": "1"}


def test_files_together_leave_the_others(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    write_pair(tmp_path, "1", "1")
    with pytest.raises(KeyboardInterrupt):
        write_pair(tmp_path, "2", "2", then=KeyboardInterrupt())
    assert contents(tmp_path) == {"meta": "1", "mine": "mine", "numbers": "1"}
    write_pair(tmp_path, "2", "2")
    assert contents(tmp_path) == {"meta": "2", "mine": "mine", "numbers": "2"}


@pytest.mark.parametrize("at", range(2))
def test_files_of_two_writings_are_not_mixed(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off between two renames, the file that makes the others count is not there."""
    write_pair(tmp_path, "1", "1")
    rename, renamed = os.replace, []

    def breaks_off(source: Path, destination: Path) -> None:
        if len(renamed) == at:
            raise KeyboardInterrupt
        renamed.append(destination)
        rename(source, destination)

    monkeypatch.setattr(os, "replace", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        write_pair(tmp_path, "2", "2")
    assert "meta" not in contents(tmp_path)
