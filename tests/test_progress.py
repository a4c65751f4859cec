"""Progress redraws where it can and stays short where it cannot; commands end with the answer, in words or as JSON."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from entangle import cli, progress
from entangle.progress import LogLines, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that a test moves on."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(LogLines, "_written", None)
    monkeypatch.setattr(LogLines, "_time", lambda self: now[0], raising=False)
    yield now
    LogLines._written = None


def count(stream: io.StringIO, seconds: int, clock: list[float], name: str = "generating") -> None:
    """A thing a second."""
    with progress_bar(total=seconds, desc=name, unit="text", file=stream, mininterval=0) as bar:
        for _ in range(seconds):
            clock[0] += 1
            bar.update()
            bar.refresh()


def test_a_log_gets_a_line_every_thirty_seconds_from_all_bars_together(clock: list[float]) -> None:
    log = io.StringIO()
    for name in ("probes", "generating", "cross-entropy"):
        count(log, 40, clock, name)
    lines = log.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["probes", "generating", "cross-entropy", "cross-entropy"]
    assert "30 of 40 text" in lines[0]
    assert "\r" not in log.getvalue()


def test_a_short_step_writes_nothing_into_a_log(clock: list[float]) -> None:
    log = io.StringIO()
    count(log, 20, clock)
    assert log.getvalue() == ""


def test_the_environment_says_how_often(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_LOG_EVERY", "10")
    log = io.StringIO()
    count(log, 40, clock)
    assert len(log.getvalue().splitlines()) == 4


def test_a_terminal_is_redrawn_in_place() -> None:
    terminal = Terminal()
    with progress_bar(total=50, desc="generating", file=terminal, mininterval=0, miniters=1) as bar:
        for _ in range(50):
            bar.update()
    assert terminal.getvalue().count("\r") > 20
    assert terminal.getvalue().count("\n") == 1


def test_a_bar_that_is_not_wanted_says_nothing() -> None:
    for stream in (io.StringIO(), Terminal()):
        assert list(progress_bar([1, 2], file=stream, disable=True)) == [1, 2]
        assert stream.getvalue() == ""


def test_nothing_but_its_owner_draws_bars() -> None:
    source = Path(progress.__file__).parent
    others = [path for path in source.rglob("*.py") if "import tqdm" in path.read_text() and path.stem != "progress"]
    assert others == []


@pytest.fixture
def model(tmp_path: Path, tiny_model: Callable[..., PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_json_says_where_the_results_are_and_what_was_found(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["verify", str(model), "--out", str(tmp_path / "out"), "--json", "--quiet"])
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert [Path(each).is_file() for each in told["files"]] == [True]
    assert "checks, 0 failed" in told["answer"][0]


@pytest.mark.parametrize("words", [["report"], ["forecast"], ["demo"], ["verify"], ["compose"], ["toy", "data-share"]])
def test_every_command_can_be_quiet_and_speak_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([*words, "--help"])
    told = capsys.readouterr().out
    assert "--quiet" in told
    assert "--json" in told


def test_a_quiet_command_shows_no_progress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    asked: list[bool] = []

    class Nothing:
        def answer(self) -> list[str]:
            return ["It is so."]

    def study(*, progress: bool, **_: object) -> Nothing:
        asked.append(progress)
        return Nothing()

    monkeypatch.setattr("entangle.toy.superposition_study", study)
    for words in ([], ["--quiet"]):
        with pytest.raises(SystemExit):
            cli.main(["toy", "superposition", "--out", str(tmp_path), *words])
    assert asked == [True, False]
    assert capsys.readouterr().out.splitlines().count("It is so.") == 2


@pytest.mark.parametrize(
    ("shell", "begun", "offered"),
    [("bash", "entangle rep", "report"), ("zsh", "entangle forec", "forecast"), ("fish", "entangle ver", "verify")],
)
def test_a_shell_completes_commands(
    shell: str, begun: str, offered: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"_ENTANGLE_COMPLETE": f"complete_{shell}", "COMP_WORDS": begun, "COMP_CWORD": "1"}
    asked |= {"_TYPER_COMPLETE_ARGS": begun, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["entangle"])
    with pytest.raises(SystemExit):
        cli.main([])
    assert offered in capsys.readouterr().out
