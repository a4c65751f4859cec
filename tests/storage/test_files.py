"""What is written takes its place whole, or what was there stays; files of others are never touched."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.storage.files import DiskError, replacing, tidy, write_text
from entangle.storage.folder import Kind, read, write
from entangle.storage.names import check_distinct, check_name, inside
from entangle.storage.owner import LOCK, owned

PAIR = Kind("a pair", "meta.json", "pair", before=("numbers",), for_people={"README.md": "# ours"})
THEIRS = {
    ".gitignore": "*",
    ".entangle-notes": "mine",
    ".entangle-0a1b2c3d/thesis": "years of work",
    ".meta.json.0a1b2c3d": "mine",
    "notes/chapter": "one",
    "README.md": "# mine",
}


def fill(text: str) -> Callable[[Path], None]:
    def files(new: Path) -> None:
        (new / "numbers").write_text(text)
        (new / "deep").mkdir()
        (new / "deep" / "more").write_text(text)
        (new / "README.md").write_text(f"# ours {text}")

    return files


def save(folder: Path, text: str) -> None:
    write(folder, PAIR, {"text": text}, fill(text))


def contents(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in sorted(directory.rglob("*")) if p.is_file()}


def add_theirs(folder: Path) -> None:
    for name, text in THEIRS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def write_file(target: Path, text: str, then: BaseException) -> None:
    with replacing(target) as temporary:
        temporary.write_text(text)
        raise then


def test_a_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.txt", "half", then=KeyboardInterrupt())
    assert contents(tmp_path) == {"a.txt": "old"}
    write_text(tmp_path / "a.txt", "new")
    assert contents(tmp_path) == {"a.txt": "new"}
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("begun", [False, True])
def test_files_of_others_stay_and_ours_are_replaced_together(begun: bool, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    if begun:
        save(folder, "old")
    folder.mkdir(exist_ok=True)
    add_theirs(folder)
    beside = tmp_path / ".d.0a1b2c3d"
    beside.write_text("mine")
    save(folder, "new")
    now = contents(folder)
    assert {name: now.pop(name) for name in THEIRS} == THEIRS
    assert set(now) == {"meta.json", "numbers", "deep/more"}
    assert now["numbers"] == now["deep/more"] == read(folder, PAIR)["text"] == "new"
    assert beside.read_text() == "mine"


def test_our_card_is_replaced_and_one_that_was_changed_stays(tmp_path: Path) -> None:
    save(tmp_path, "1")
    save(tmp_path, "2")
    assert (tmp_path / "README.md").read_text() == "# ours 2"
    (tmp_path / "README.md").write_text("# ours 2, and what I say of it")
    save(tmp_path, "3")
    assert (tmp_path / "README.md").read_text() == "# ours 2, and what I say of it"
    assert read(tmp_path, PAIR)["text"] == "3"


@pytest.mark.parametrize("name", ["numbers", "meta.json", "deep/more", "deep"])
def test_a_file_of_somebody_elses_in_the_way_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(EntangleError, match=r"choose another|move it away") as error:
        save(tmp_path, "new")
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_a_manifest_of_another_kind_is_somebody_elses(tmp_path: Path) -> None:
    save(tmp_path, "old")
    other = Kind("a couple", "meta.json", "couple")
    with pytest.raises(EntangleError, match=r"meta\.json is not part of a couple"):
        write(tmp_path, other, {})
    assert read(tmp_path, PAIR)["text"] == "old"


def test_a_manifest_that_names_files_outside_its_folder_removes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    save(folder, "old")
    outside = tmp_path / "thesis"
    outside.write_text("years of work")
    manifest = json.loads((folder / "meta.json").read_text())
    for name in ("../thesis", str(outside), "deep/../../thesis", "./../thesis"):
        manifest["files"][name] = {}
    (folder / "meta.json").write_text(json.dumps(manifest))
    save(folder, "new")
    assert outside.read_text() == "years of work"


def test_links_are_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "d"
    outside.mkdir()
    (outside / "more").write_text("years of work")
    folder.mkdir()
    (folder / "deep").symlink_to(outside)
    with pytest.raises(EntangleError, match="is a link, which is not followed"):
        save(folder, "new")
    (folder / "deep").unlink()
    save(folder, "old")
    (folder / "numbers").unlink()
    (folder / "numbers").symlink_to(outside / "more")
    save(folder, "new")  # the link goes, what it leads to stays
    assert contents(outside) == {"more": "years of work"}
    assert not (folder / "numbers").is_symlink()
    (tmp_path / "link").symlink_to(folder)  # a folder that is given as a link is the folder
    save(tmp_path / "link", "newer")
    assert read(folder, PAIR)["text"] == "newer"


def failing(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, at: int, error: BaseException) -> list[int]:
    real, calls = getattr(owner, name), [0]

    def replaced(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == at:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, replaced)
    return calls


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("name", ["replace", "fsync", "mkdir", "open", "rename"])
@pytest.mark.parametrize("fresh", [False, True])
def test_whatever_fails_wherever_what_was_there_stays(
    name: str, error: BaseException, fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of the system in turn, with others' files in the folder; the control is the last, undisturbed save."""
    folder, at = tmp_path / "d", 0
    if not fresh:
        save(folder, "old")
        add_theirs(folder)
    while True:
        at += 1
        before = contents(tmp_path)
        with monkeypatch.context() as patch:
            calls = failing(patch, os, name, at, error)
            if fresh:
                folder = tmp_path / f"d{at}"
            try:
                save(folder, "new")
                if calls[0] < at:
                    break
            except (type(error), DiskError):
                pass
        if not (folder / "meta.json").exists() or read(folder, PAIR)["text"] == "old":
            assert contents(tmp_path) == before
            assert fresh or (folder / "meta.json").exists()
        else:  # it had come to its end, or did without: all is new
            assert contents(folder)["numbers"] == contents(folder)["deep/more"] == "new"
            if not fresh:
                save(folder, "old")
        for place in (tmp_path, *filter(Path.exists, [folder])):  # an interrupt of the clearing itself
            tidy(place)
        assert not [p for p in tmp_path.rglob(".entangl*") if p.name not in (".entangle-notes", ".entangle-0a1b2c3d")]
    save(folder, "new")
    assert read(folder, PAIR)["text"] == contents(folder)["numbers"] == contents(folder)["deep/more"] == "new"
    assert fresh or {name: contents(folder)[name] for name in THEIRS} == THEIRS
    assert at > 1 or (fresh and name == "replace")  # something did fail: a fresh folder is renamed


def test_a_full_disk_is_one_line_and_an_error_of_the_system_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, os, "fsync", 1, OSError(28, "No space left on device"))
    with pytest.raises(EntangleError, match=r"could not be written: No space left on device; free space") as error:
        save(tmp_path / "d", "new")
    assert isinstance(error.value, OSError)


def forked(work: Callable[[], None]) -> int:
    """Do something in a child process, and how that ended: 0, or the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save_and_die(folder: Path, name: str, at: int) -> None:
    """Save, but be killed at the so-many-eth call of a function of the system."""
    real, calls = getattr(os, name), [0]

    def dies(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(os, name, dies)
    save(folder, "new")


@pytest.mark.parametrize(("name", "at"), [("replace", at) for at in range(1, 9)] + [("fsync", 2)])
def test_a_kill_leaves_the_old_or_the_new_after_the_next_run(name: str, at: int, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    save(folder, "old")
    add_theirs(folder)
    (folder / "README.md").unlink()
    broken_off = forked(lambda: save_and_die(folder, name, at)) == -signal.SIGKILL
    assert broken_off or at == 8  # which is one more than there are
    assert broken_off == bool([p for p in folder.glob(".entangle-????????") if p.name != ".entangle-0a1b2c3d"])
    if (folder / "meta.json").exists():  # what can be read is never a mixture
        assert read(folder, PAIR)["text"] == contents(folder)["numbers"] == contents(folder)["deep/more"]
    tidy(folder)
    assert read(folder, PAIR)["text"] == contents(folder)["numbers"] == contents(folder)["deep/more"]
    save(folder, "newest")
    theirs = {name: text for name, text in THEIRS.items() if name != "README.md"}
    assert {name: contents(folder)[name] for name in theirs} == theirs
    ours = {"meta.json", "numbers", "deep/more", "README.md"}
    assert set(contents(folder)) == {*theirs, *ours}


def test_of_many_who_write_at_once_one_is_read(tmp_path: Path) -> None:
    folder, errors = tmp_path / "d", []

    def work(text: str) -> None:
        try:
            for _ in range(5):
                save(folder, text)
                pair = read(folder, PAIR)
                assert pair["text"] in "abcd"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in "abcd"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors
    assert read(folder, PAIR)["text"] == contents(folder)["numbers"] == contents(folder)["deep/more"]
    assert set(contents(tmp_path)) == {f"d/{name}" for name in ("meta.json", "numbers", "deep/more", "README.md")}


def test_a_folder_has_one_owner_and_a_dead_ones_is_taken_over(tmp_path: Path) -> None:
    ready, tell = os.pipe()
    holder = os.fork()
    if holder == 0:
        with owned(tmp_path):
            os.write(tell, b".")
            time.sleep(600)
    try:
        os.read(ready, 1)
        with (
            pytest.raises(EntangleError, match=rf"is being written to by process {holder} on .* since 20") as error,
            owned(tmp_path, patience=0.1),
        ):
            pass
        assert "\n" not in str(error.value)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    assert (tmp_path / LOCK).exists()
    with owned(tmp_path, patience=0), owned(tmp_path, patience=0):  # the same thread, again
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_forked_child_does_not_own_what_its_parent_owns(tmp_path: Path) -> None:
    """It waits as any other process would, and ending it leaves the parent's lock where it is."""
    with owned(tmp_path):
        child = os.fork()
        if child == 0:
            try:
                with owned(tmp_path, patience=0.1):
                    os._exit(1)
            except EntangleError as error:
                os._exit(0 if str(os.getppid()) in str(error) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_locks_name_that_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("mine")
    with pytest.raises(EntangleError, match="somebody else's"):
        save(tmp_path, "new")
    assert contents(tmp_path) == {LOCK: "mine"}


def test_whoever_waits_goes_on_when_the_owner_is_done(tmp_path: Path) -> None:
    order = []

    def waits() -> None:
        with owned(tmp_path):
            order.append("second")

    with owned(tmp_path):
        thread = threading.Thread(target=waits)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    "name",
    ["../x", "/tmp/x", "a/b", "a\\b", "..", ".", "", " ", ".git", "a.", "x\0y", "a\nb", "CON", "nul.txt", "x" * 300, 3],
)
def test_a_name_that_is_no_files_is_refused(name: object) -> None:
    with pytest.raises(EntangleError, match="name of a variant") as error:
        check_name(name, "a variant")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["MeDA", "self-debias 2", "Gift_und_Güte", "v1.5", "console", "毒性"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert check_name(name, "a variant") == name


def test_names_that_some_file_systems_take_for_one_are_refused() -> None:
    check_distinct(["ITI", "CAA", "İTİ"], "methods")
    for pair in (["ITI", "iti"], ["é", "e\u0301"], ["a", "a"]):
        with pytest.raises(EntangleError, match="would share one file"):
            check_distinct(pair, "methods")


@given(st.text(alphabet="./\\ab\0", max_size=8))
def test_a_name_in_a_manifest_leads_into_the_folder_or_is_none(name: str) -> None:
    if inside(name):
        root = Path("/folder")
        path = Path(os.path.normpath(root / name))
        assert root in path.parents
