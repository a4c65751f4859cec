"""Texts of a recipe: what is evaluated on must not be trained on, and fractions are drawn."""

import json
from pathlib import Path

import pytest

from entangle.composition import Labelled, Measurement, Recipe, Source
from entangle.composition.recipe.sources import refuse_overlap
from entangle.errors import EntangleError


@pytest.mark.parametrize("text", ["Hello, world!", "hello world", " HELLO  wor-ld\n"])
def test_texts_are_the_same_whatever_their_case_spaces_and_punctuation(text: str) -> None:
    with pytest.raises(EntangleError, match=r"1 of 2 held-out texts are also trained on: .* in `without` of clean"):
        refuse_overlap({"clean": ["something", "Hello, world"]}, {"held-out": ["else", text]})


def test_other_texts_are_let_through() -> None:
    refuse_overlap({"clean": ["hello world"], "added": []}, {"held-out": ["hello worlds", "hello"]})


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(texts)))
    return path.name


def test_a_fraction_is_drawn_by_seed_and_keeps_the_order(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(40)]
    name = write(tmp_path / "a.jsonl", texts)
    drawn = [Source(files=(name,), fraction=0.25, seed=seed).texts(tmp_path) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 10
    assert [texts.index(text) for text in drawn[0]] == sorted(texts.index(text) for text in drawn[0])
    with pytest.raises(EntangleError, match="fraction of a source"):
        Source(files=(name,), fraction=0)


def test_labelled_texts_from_a_file_or_the_built_in_corpus(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", [f"text {i}" for i in range(20)])
    assert len(Labelled(file=name, documents=10).load(tmp_path)) == 10
    assert Labelled(concept="tense", documents=32).load().labels.mean() == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": {}}, "needs prompts"),
        ({"methods": ["ITI", "magic"]}, "got 'magic'"),
        ({"methods": ["CAA"]}, "ITI among them"),
        ({"alphas": [0.0]}, "positive numbers"),
        ({"direction": "guess"}, "got 'guess'"),
        ({"others": {"toxicity": {"concept": "tense"}}}, "two concepts are named 'toxicity'"),
        ({"prompts": {"a": {"document": 3}}}, "unknown key 'document' in prompts.a"),
        ({"labelled": 3}, "'labelled' in a recipe is a table"),
        ({"alphas": ["4"]}, "'alphas' in measure is a number, not '4'"),
    ],
)
def test_measurements_that_cannot_be(fields: dict[str, object], message: str) -> None:
    measure = {"labelled": {"concept": "tense", "documents": 32}, "prompts": {"a": {"documents": 4}}, **fields}
    source = {"documents": 1}
    with pytest.raises(EntangleError, match=message):
        Recipe.from_dict({"clean": source, "added": source, "held_out": source, "measure": measure})


def test_a_measurement_survives_its_dictionary() -> None:
    measure = Measurement(Labelled(concept="tense", documents=32), {"a": Source(documents=4)}, alphas=(2.0,))
    recipe = Recipe(Source(documents=1), Source(documents=1), Source(documents=1), measure=measure)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
