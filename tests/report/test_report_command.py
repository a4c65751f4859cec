"""`entangle report` from the shell's side: what it writes, what it repeats, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from entangle import cli
from entangle.errors import EntangleError
from entangle.report import Settings, measure, render, write
from entangle.study import cache, steps
from entangle.study.page.drawing import policy, script


def run(words: Sequence[str]) -> int:
    """The exit code of `entangle WORDS`."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([*map(str, words)])
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Path:
    """A finished report."""
    folder = tmp_path_factory.mktemp("out")
    assert run([*words, "--out", folder]) == 0
    return folder


@pytest.fixture(scope="module")
def study(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())["studies"][0]


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.identifiers: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]
        self.identifiers += [value or "" for name, value in attrs if name == "id"]


def test_the_page_is_one_small_file_that_asks_nobody_for_anything(out: Path) -> None:
    html = (out / "report.html").read_text()
    page = Page(html)
    assert len(html) < 5_000_000
    assert page.tags.count("script") == 1
    assert f"<script>{script()}</script>" in html
    assert f'content="{policy()}"'.replace("'", "&#39;") in html
    assert all(address.startswith(("#", "data:image/png;base64")) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import", html)
    assert len(page.identifiers) == len(set(page.identifiers))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.identifiers)
    assert "width=device-width" in html
    assert html.count('role="img"') == 6  # heads, spread, layers, E, cosines, price


def test_every_section_is_there_and_samples_hide_until_clicked(out: Path, study: dict[str, Any]) -> None:
    html = (out / "report.html").read_text()
    for section in ("probes", "entanglement", "price", "samples", "repeat"):
        assert f'<section id="{section}">' in html
    sides = sum(len(sample["sides"]) for sample in study["samples"])
    assert html.count('<input type="checkbox"') == sides + len(study["samples"])
    assert "filter: blur" in html


def test_numbers_have_intervals_nulls_and_baselines(study: dict[str, Any]) -> None:
    for site, shape in (("z", (3, 4)), ("resid_post", (3,))):
        probes = study["probes"][site]
        low, value, high = (np.array(probes[key]) for key in ("accuracy_low", "accuracy", "accuracy_high"))
        assert value.shape == shape
        assert ((low <= value) & (value <= high)).all()
        assert np.shape(probes["null"]) == (20, *shape)
    assert set(study["baselines"]) == {"bag_of_words", "commoner_class"}
    for row in study["entanglement"]["rows"]:
        assert row["low"] <= row["entanglement"] <= row["high"]
        assert 0 <= row["percentile"] <= 1
    plain, steered = study["tradeoff"]
    assert (plain["alpha"], steered["alpha"]) == (0, 4)
    assert plain["removed"] == plain["kl"] == plain["ce_change"] == 0
    assert steered["kl"] > 0
    assert steered["removed"] == pytest.approx(plain["toxicity"] - steered["toxicity"], abs=1e-5)
    assert len(study["intervention"]["heads"]) == 3  # a quarter of 12


def test_everything_needed_to_repeat_it_is_written_down(study: dict[str, Any], words: list[str]) -> None:
    assert study["fingerprint"]["architecture"] == "Olmo2ForCausalLM"
    assert {"entangle", "torch", "transformers"} <= set(study["versions"])
    assert study["settings"]["seed"] == 0
    assert all(len(each["sha256"]) == 64 for each in study["data"])
    # The command that is printed asks for the same settings again.
    again = shlex.split(study["command"])[1:]
    assert sorted(again) == sorted([*words, "--name", "rudeness"])


def test_a_second_run_reads_the_activations_it_kept(
    out: Path, words: list[str], study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("captured again")

    monkeypatch.setattr(cache, "collect", refuse)
    assert run([*words, "--out", out]) == 0
    again = json.loads((out / "report.json").read_text())["studies"][0]
    for key in ("probes", "entanglement", "tradeoff", "samples", "baselines"):
        assert again[key] == study[key]
    # Other settings are another capture.
    with pytest.raises(AssertionError, match="captured again"):
        cli.main([*words, "--bos", "--out", str(out)])


def test_the_page_shows_what_the_file_holds(study: dict[str, Any]) -> None:
    changed = {**study, "probes": {**study["probes"], "resid_post": {**study["probes"]["resid_post"]}}}
    changed["probes"]["resid_post"]["best"] = {**study["probes"]["resid_post"]["best"], "accuracy": 0.98765}
    assert "0.988" in render([changed])
    assert "0.988" not in render([study])


def test_two_studies_stand_side_by_side(study: dict[str, Any]) -> None:
    html = render([{**study, "label": "first"}, {**study, "label": "second"}])
    page = Page(html)
    assert html.count('role="img"') == 4 * 2 + 3  # one price for both, and lines over the layers
    assert len(page.identifiers) == len(set(page.identifiers))
    assert html.count("<h3>second</h3>") == 7


def test_text_from_a_model_cannot_become_markup(study: dict[str, Any]) -> None:
    sample = {"prompt": "<script>alert(1)</script>", "sides": [{"alpha": 0, "text": "<img src=x>", "score": 0.5}]}
    page = Page(render([{**study, "samples": [sample]}]))
    assert page.tags.count("script") == 1  # the page's own
    assert "img" not in page.tags


def test_an_encoder_is_probed_and_not_steered(world: dict[str, Path], tmp_path: Path) -> None:
    words = ["report", world["encoder"], world["data"], "--permutations", "20", "--resamples", "100", "--out", tmp_path]
    assert run(words) == 0
    study = json.loads((tmp_path / "report.json").read_text())["studies"][0]
    assert study["tradeoff"] is None
    assert "does not generate" in study["notes"][0]
    assert np.shape(study["probes"]["z"]["accuracy"]) == (3, 4)


def test_any_text_classifier_can_be_the_scorer(
    world: dict[str, Path],
    words: list[str],
    tmp_path: Path,
    tiny_tokenizer: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {0: "fine", 1: "rude"}
    config = AutoConfig.from_pretrained(world["encoder"], id2label=names, label2id={v: k for k, v in names.items()})
    scorer = tmp_path / "scorer"
    AutoModelForSequenceClassification.from_config(config).save_pretrained(scorer)
    tiny_tokenizer.save_pretrained(scorer)
    words = [*words, "--scorer", str(scorer), "--scorer-label"]
    assert run([*words, "rude", "--out", tmp_path / "out"]) == 0
    study = json.loads((tmp_path / "out" / "report.json").read_text())["studies"][0]
    assert "scorer" in study["scorer"]["name"]
    _refused([*words, "nasty", "--out", tmp_path / "none"], "fine.*rude", tmp_path / "none", capsys)


def test_control_c_leaves_nothing_half_written(world: dict[str, Path], words: list[str], tmp_path: Path) -> None:
    """A real process and a real signal."""
    command = [sys.executable, "-m", "entangle.cli", *words, "--samples", "4000", "--out", str(tmp_path / "out")]
    with _interrupts_heeded():
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "ENTANGLE_LOG_EVERY": "0"}
        )
    assert process.stderr is not None
    while "generating" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cache"}
    assert not list((tmp_path / "out").rglob(".*"))


@contextmanager
def _interrupts_heeded() -> Iterator[None]:
    """Whoever runs the tests in the background may ignore interrupts, and a process started here would too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def plain_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "no-model"
    folder.mkdir()
    return folder


def _rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


GOOD = [{"text": f"the dog number {i} sat", "label": i % 2} for i in range(60)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([*GOOD, {"text": "no label"}], "label"),
        ([*GOOD, {"label": 1}], "text"),
        ([{**row, "label": 1} for row in GOOD], "class|label"),
        ([*GOOD, {"text": "a third kind", "label": 2}], "label|class"),
        ([*GOOD, GOOD[0]], "--drop-duplicates|drop_duplicates"),
        ([*GOOD, {"text": "dog " * 200, "label": 1}], "max.length"),
    ],
)
def test_bad_rows_are_one_line_and_leave_nothing(
    rows: list[dict[str, Any]],
    message: str,
    world: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = _rows(tmp_path / "data.jsonl", rows), tmp_path / "out"
    _refused(["report", world["model"], data, "--out", out], message, out, capsys)


def _refused(words: Sequence[object], message: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run([str(word) for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("entangle:")]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert not out.exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--top-k", "99"], "12 heads"),
        (["--alphas", "0,inf"], "finite"),
        (["--alphas", "0,nan"], "finite"),
        (["--alphas", "weak"], "numbers"),
        (["--concept", "tense"], "NAME=VALUE"),
        (["--concept", "rudeness=x.jsonl"], "two concepts"),
        (["--scorer", "somewhere"], "scorer-label"),
        (["--samples", "0"], "at least 1"),
        (["--direction", "up"], "mean_difference"),
        (["--where", "label=7"], "label|row"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(
    extra: list[str], message: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _refused([*words, *extra, "--out", out], message, out, capsys)


def test_missing_things_are_one_line(
    world: dict[str, Path], plain_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    model, data = world["model"], world["data"]
    _refused(["report", model, tmp_path / "none.jsonl", "--out", out], "no file", out, capsys)
    _refused(["report", plain_folder, data, "--out", out], "config.json", out, capsys)
    _refused(["report", model, data, "--prompts", world["prompts"], "--out", out], "--clean", out, capsys)
    _refused(
        ["report", world["encoder"], data, "--prompts", world["prompts"], "--clean", world["clean"], "--out", out],
        "does not generate",
        out,
        capsys,
    )


def test_prompts_that_leave_no_room_are_refused_before_anything_is_measured(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = _rows(tmp_path / "long.jsonl", [{"text": "dog " * 60}])
    words = [word if not word.endswith("prompts.jsonl") else str(long) for word in words]
    _refused([*words, "--out", tmp_path / "out"], "room", tmp_path / "out", capsys)


def test_a_model_without_attention_is_refused(
    world: dict[str, Path], tmp_path: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=96, state_size=4)
    folder = tmp_path / "mamba"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    out = tmp_path / "out"
    _refused(["report", folder, world["data"], "--out", out], "attention", out, capsys)


def test_a_tokenizer_that_cannot_pad_is_lent_its_end_token_or_refused(
    world: dict[str, Path], tmp_path: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(world["model"], folder)
    tokenizer = deepcopy(tiny_tokenizer)
    few = ["--permutations", "20", "--resamples", "100"]
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert run(["report", folder, world["data"], *few, "--out", tmp_path / "out"]) == 0
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    _refused(["report", folder, world["data"], "--out", tmp_path / "none"], "padding", tmp_path / "none", capsys)


def test_activations_that_are_not_finite_are_refused(
    world: dict[str, Path], tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    tiny_model("olmo2").save_pretrained(folder)
    broken = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        broken.model.layers[1].self_attn.o_proj.weight.fill_(math.nan)
    broken.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    out = tmp_path / "out"
    _refused(["report", folder, world["data"], "--out", out], "finite|NaN", out, capsys)


def test_interrupting_leaves_no_report(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "tradeoff", interrupt)
    assert run([*words, "--out", tmp_path / "out"]) == 130
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"cache"}
    assert not [path for path in (tmp_path / "out" / "cache").iterdir() if path.name.startswith(".")]


def test_a_write_that_fails_leaves_the_old_report(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write([study], tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(EntangleError, match=r"No space left.*--out"):
        write([{**study, "label": "another"}], tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json"}


def test_measure_is_the_same_call_in_a_notebook(world: dict[str, Path], study: dict[str, Any]) -> None:
    settings = Settings(str(world["model"]), str(world["data"]), resamples=100, permutations=20)
    found = measure(settings, progress=False).to_dict()
    assert found["probes"] == study["probes"]
    assert found["entanglement"] is None
    assert found["label"] == "model"
