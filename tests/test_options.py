"""What a study is asked is written once: the shell's options, a file's keys and the command that is printed agree."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from entangle import cli, report
from entangle.errors import EntangleError
from entangle.storage.out import check_out
from entangle.study import Settings
from entangle.study.settings import flag_of

WORDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), min_size=1, max_size=8).filter(
    lambda word: bool(word.strip())
)
NAMES = st.text("abcdefgh_-", min_size=1, max_size=6).filter(str.strip)
MANY = st.integers(100, 10**6)
FEW = st.none() | st.integers(20, 10**4)


@st.composite
def asked(draw: st.DrawFn) -> Settings:
    """Settings that can be meant."""
    concepts = draw(st.dictionaries(NAMES, WORDS, max_size=2))
    scorer = draw(st.none() | WORDS)
    steers = draw(st.booleans())
    return Settings(
        model=draw(WORDS),
        data=draw(WORDS),
        name="n" + draw(WORDS),  # not the name of a concept
        text=draw(WORDS),
        label=draw(WORDS),
        positive=draw(st.none() | WORDS),
        where=draw(st.dictionaries(NAMES, WORDS, max_size=2)),
        concepts={f"c{name}": path for name, path in concepts.items()},
        concept_positives={f"c{name}": draw(WORDS) for name in concepts if draw(st.booleans())},
        direction=draw(st.sampled_from(["mean_difference", "logistic", "lda"])),
        prompts=draw(WORDS) if steers else None,
        clean=draw(WORDS) if steers else None,
        scorer=scorer,
        scorer_labels=() if scorer is None else tuple(draw(st.lists(WORDS, min_size=1, max_size=2))),
        alphas=tuple(draw(st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=3))),
        top_k=draw(FEW),
        samples=draw(MANY),
        max_new_tokens=draw(MANY),
        limit=draw(FEW),
        limit_prompts=draw(FEW),
        limit_clean=draw(FEW),
        max_length=draw(FEW),
        bos=draw(st.booleans()),
        drop_duplicates=draw(st.booleans()),
        revision=draw(st.none() | WORDS),
        dtype=draw(st.none() | WORDS),
        device=draw(st.none() | WORDS),
        batch_tokens=draw(MANY),
        resamples=draw(MANY),
        permutations=draw(MANY),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


class Read(Exception):
    """The settings that a command line was read as."""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], Settings]:
    """What `entangle WORDS` would measure."""

    def stop(settings: Settings, **_: Any) -> None:
        raise Read(settings)

    monkeypatch.setattr(report, "measure", stop)

    def settings_of(words: Sequence[str]) -> Settings:
        with pytest.raises(Read) as stopped:
            cli.main(words)
        found: Settings = stopped.value.args[0]
        return found

    return settings_of


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(settings=asked())
def test_the_command_that_is_printed_asks_for_the_same_again(
    settings: Settings, read: Callable[[Sequence[str]], Settings]
) -> None:
    assert read(shlex.split(settings.command())[1:]) == settings


@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(settings=asked())
def test_a_file_of_the_same_names_asks_for_the_same(
    settings: Settings, read: Callable[[Sequence[str]], Settings], tmp_path: Path
) -> None:
    file = tmp_path / "study.toml"
    lines = []
    for key, value in settings.to_dict().items():
        if isinstance(value, dict):
            table = ", ".join(f"{json.dumps(name)} = {json.dumps(each)}" for name, each in value.items())
            lines.append(f"{key} = {{{table}}}")
        elif value is not None:
            lines.append(f"{key} = {json.dumps(value)}")
    file.write_text("\n".join(lines))
    assert read(["report", "--config", str(file)]) == settings
    # What is said on the command line comes before what the file says.
    assert read(["report", "--config", str(file), "--seed", "3", "--no-bos"]) == replace(settings, seed=3, bos=False)


def test_every_field_is_an_option_and_every_option_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["report", "--help"])
    shown = capsys.readouterr().out
    for each in fields(Settings):
        assert (flag_of(each) if each.name not in ("model", "data") else each.name.upper()) in shown
        assert each.metadata["help"].split()[0] in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sed = 1", "unknown key 'sed'"),
        ('seed = "one"', "'seed' in .* is a whole number"),
        ("alphas = 4", "'alphas' in .* is a list"),
        ("concepts = [1]", "'concepts' in .* is a table"),
        ("seed = ", "no TOML"),
        ("a = " + "[" * 5000, "no TOML"),
        ('model = "m"', "DATA"),
        (None, "cannot read"),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_line(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", "--config", str(file)])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("entangle:")]
    assert re.search(message, line), line


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, link, page = tmp_path / "file", tmp_path / "link", tmp_path / "out" / "report.html"
    file.write_text("mine")
    link.symlink_to(tmp_path / "nowhere")
    page.mkdir(parents=True)
    monkeypatch.setattr(report, "measure", lambda *_, **__: pytest.fail("measured"))
    for out in (file, file / "below", link, Path("/dev/null"), tmp_path / ("x" * 300), page.parent):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["report", "model", "data", "--out", str(out)])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--out" in line
        with pytest.raises(EntangleError):
            check_out(out, "report.html")
    check_out(tmp_path / "new" / "deep", "report.html")  # the control: nothing is there, and nothing is made
    check_out(tmp_path, "report.html")
    assert not (tmp_path / "new").exists()
    assert file.read_text() == "mine"


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99"])
def test_a_device_that_cannot_compute_is_one_line(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", "a-model-that-is-not-read", "--device", device])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert repr(device) in line


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--seed", "-1"],
        ["toy", "superposition", "--seed", str(2**64)],
        ["toy", "superposition", "--cells", "-2"],
        ["toy", "data-share", "--steps", "-5"],
        ["toy", "data-share", "--first-seed", "-1"],
        ["report", "model", "data", "--seed", "-1"],
        ["report", "model", "data", "--seed", str(2**32)],
        ["report", "model", "data", "--alphas", ","],
        ["report", "model", "data", "--alphas", "4,1e308"],
        ["report", "model", ""],
    ],
)
def test_numbers_that_cannot_be_meant_are_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("entangle:")
    assert not (tmp_path / "out").exists()


def test_a_file_of_prompts_may_hold_conversations(tmp_path: Path) -> None:
    said = [{"role": "user", "content": f"question {i}"} for i in range(4)]
    rows = {
        "data": [{"text": f"text {i}", "label": i % 2} for i in range(40)],
        "prompts": [{"messages": [each]} for each in said],
        "clean": [{"text": "a gem"}, {"text": "a turnip"}],
    }
    for name, of_file in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_file))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in rows}
    texts, _ = Settings(model="m", **files).read()
    assert texts.every_prompt == [[each] for each in said]
    texts, _ = replace(Settings(model="m", **files), limit_prompts=2).read()
    assert len(texts.every_prompt) == 2
    assert all(prompt in [[each] for each in said] for prompt in texts.every_prompt)
