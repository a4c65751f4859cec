"""A recipe's models are measured by the very call that everybody has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_experiment import MEASURE, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import entangle as en
from entangle.composition import Plan, Recipe, run
from entangle.composition.measuring.measure import measured_numbers
from entangle.composition.recipe.sources import one_path
from entangle.errors import EntangleError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's folder with one model, measured."""
    out = tmp_path_factory.mktemp("recipe")
    run(tiny(shares=[0.2], measure=MEASURE), out, progress=False)
    return out / "share-0.2-seed-0"


@pytest.fixture(scope="module")
def asked(folder: Path) -> dict[str, Any]:
    """The same question in a notebook's words."""
    texts = Plan.of(tiny(shares=[0.2], measure=MEASURE)).measured
    assert texts is not None
    return {
        "texts": texts.labelled.texts,
        "labels": texts.labelled.labels,
        "concepts": {name: (data.texts, data.labels) for name, data in texts.concepts.items()},
        "prompts": dict(texts.prompts),
        "clean": texts.clean,
        "alphas": MEASURE["alphas"],
        "methods": MEASURE["methods"],
        "name": "rudeness",
        "layers": "best",
        "max_new_tokens": 4,
        "max_length": 64,
        "prepend_bos": True,
        "n_permutations": 20,
        "n_resamples": 100,
        "progress": False,
    }


def test_its_numbers_are_those_of_study_to_the_last_digit(folder: Path, asked: dict[str, Any]) -> None:
    written = json.loads((folder / "measured.json").read_text())
    study = en.study(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), **asked)
    by_hand = json.loads(json.dumps(measured_numbers(study, asked["prompts"])))
    del written["key"], written["checksum"]
    assert by_hand == written
    # The control: another seed draws another split, and gives other numbers.
    other = en.study(folder, None, **{**asked, "seed": 1})
    assert json.loads(json.dumps(measured_numbers(other, asked["prompts"]))) != written


def test_the_study_of_a_model_lies_beside_it(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    study = en.Study.load(folder / "study", model=model)
    written = json.loads((folder / "measured.json").read_text())
    assert study.probes["z"].accuracy.tolist() == written["heads"]["accuracy"]
    assert study.tradeoff is not None
    assert study.tradeoff.methods == MEASURE["methods"]
    assert "rudeness" in study.answer().lower()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**32}, "seed must be"),
        ({"permutations": 0}, "n_permutations must be at least 20"),
        ({"resamples": 1}, "n_resamples must be at least 100"),
        ({"alphas": [1e308]}, "alphas"),
        ({"alphas": []}, "alphas"),
        ({"clean_documents": 1}, "clean_documents"),
        ({"clean_documents": -5}, "clean_documents"),
        ({"top_k": 99}, "4 heads"),
        ({"samples": 0}, "samples"),
        ({"direction": "up"}, "direction"),
        ({"methods": ["LEACE"]}, "ITI"),
    ],
)
def test_what_could_not_be_measured_is_refused_before_any_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EntangleError, match=message) as error:
        Plan.of(tiny(measure={**MEASURE, **changes}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [-1]}, "seed must be"),
        ({"seeds": [2**32]}, "seed must be"),
        ({"training": {"epochs": float("inf")}}, "epochs of a training must be positive and finite"),
        ({"training": {"learning_rate": float("nan")}}, "learning_rate"),
        ({"clean": {"documents": -150}}, "documents of a source is 0 or more"),
        ({"added": {"documents": 30, "seed": -2}}, "seed must be"),
        ({"measure": {**MEASURE, "labelled": {"concept": "rudeness", "documents": -5}}}, "documents of labelled texts"),
        ({"held_out": {"documents": 1, "seed": 3}, "measure": MEASURE}, "two held-out documents"),
    ],
)
def test_numbers_of_a_recipe_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EntangleError, match=message) as error:
        Plan.of(tiny(**changes))
    assert "\n" not in str(error.value)


def test_a_name_that_stands_for_one_folder_stands_for_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with pytest.raises(EntangleError, match=r"'\*' must name one file or folder; 2 match"):
        one_path("*", tmp_path)
    assert one_path("on*", tmp_path) == tmp_path / "one"


@pytest.mark.parametrize(
    ("content", "message"), [(b"a = " + b"[" * 5000, "is not TOML"), (b"shares = [", "is not TOML")]
)
def test_a_recipe_file_that_cannot_be_read_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(EntangleError, match=message) as error:
        Recipe.from_file(path)
    assert "\n" not in str(error.value)


def test_a_recipe_may_begin_with_a_byte_order_mark_as_data_may(tmp_path: Path) -> None:
    text = "shares = [0.5]\n[clean]\ndocuments = 4\n[added]\ndocuments = 4\n[held_out]\ndocuments = 4\n"
    for name, mark in (("with", "\ufeff"), ("without", "")):
        (tmp_path / f"{name}.toml").write_text(mark + text, encoding="utf-8")
    assert Recipe.from_file(tmp_path / "with.toml") == Recipe.from_file(tmp_path / "without.toml")
