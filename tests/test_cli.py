"""Every command of the shell does its work, says where it wrote, and turns a bad word into one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from entangle import cli

REPOSITORY = Path(__file__).resolve().parent.parent


def run(*words: object) -> int:
    """The exit code of `entangle WORDS`."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    return int(stopped.value.code or 0)


@pytest.fixture
def model(tmp_path: Path, tiny_model: Callable[..., PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path / "model"
    tiny_model("gpt2").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_verify_prints_every_check_and_writes_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", model, "--out", tmp_path / "out") == 0
    checks = json.loads((tmp_path / "out" / "verify.json").read_text())
    printed = capsys.readouterr().out
    assert all(check["name"] in printed for check in checks)
    assert not [check for check in checks if check["passed"] is False]


def test_verify_refuses_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", tmp_path) == 2
    assert "config.json" in capsys.readouterr().err


def test_toys_write_figures_and_numbers(tmp_path: Path) -> None:
    assert run("toy", "data-share", "--seeds", 2, "--steps", 4, "--selection-seeds", 2, "--out", tmp_path) == 0
    assert {path.suffix for path in tmp_path.iterdir()} >= {".png", ".json"}


def test_compose_trains_what_a_recipe_says_and_refuses_what_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "shares = [0.0, 0.2]\nvocab_size = 300\n"
        "[clean]\ndocuments = 40\n[added]\ndocuments = 20\nrudeness = 1.0\nseed = 1\n"
        "[held_out]\ndocuments = 4\nseed = 2\n"
        '[architecture]\nmodel_type = "olmo2"\nhidden_size = 16\nintermediate_size = 24\nnum_hidden_layers = 1\n'
        "num_attention_heads = 2\nnum_key_value_heads = 2\nmax_position_embeddings = 64\n"
        "[training]\ncontext = 32\nbatch_size = 4\n"
    )
    assert run("compose", recipe, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out.split()
    assert [Path(line).name for line in printed] == ["share-0-seed-0", "share-0.2-seed-0"]
    assert all((Path(line) / "model.safetensors").is_file() for line in printed)
    recipe.write_text("sharess = [0.0]\n")
    assert run("compose", recipe, "--out", tmp_path / "none") == 2
    assert "sharess" in capsys.readouterr().err


def test_without_words_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    printed = capsys.readouterr()
    for command in ("report", "demo", "verify", "toy", "compose"):
        assert command in printed.out + printed.err
