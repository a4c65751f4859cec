"""A recipe writes into its own folder, under one owner, and touches nothing of others."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from entangle.composition import demo_recipe
from entangle.composition.experiment import CELL, _save, run
from entangle.composition.folder import owned_by
from entangle.composition.recipe.recipe import SMALL, Variant
from entangle.composition.training.checkpoint import load_checkpoint, save_checkpoint
from entangle.composition.training.posttraining import PostTraining
from entangle.composition.training.pretrain import new_model
from entangle.errors import EntangleError
from entangle.models import load
from entangle.storage.folder import read


@pytest.mark.parametrize("name", ["../victim", "/tmp/other", "a/b", "..", "", ".hidden", "x\0y", "con", "v" * 300])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(EntangleError, match="name of a variant"):
        Variant(name, 0.0, clean_prefix="x ")
    with pytest.raises(EntangleError, match="name of a posttraining"):
        PostTraining(name, "sft")


@pytest.mark.parametrize("names", [("share-0",), ("meda", "MeDa")])
def test_two_models_never_share_a_folder(names: tuple[str, ...]) -> None:
    variants = tuple(Variant(name, 0.0, clean_prefix="x ") for name in names)
    with pytest.raises(EntangleError, match="would share one file or folder"):
        replace(demo_recipe(), shares=(0.0, 0.1), variants=variants)


def test_shares_that_hardly_differ_have_folders_of_their_own() -> None:
    cells = replace(demo_recipe(), shares=(0.0, 0.1, 0.1000000001)).cells
    assert len({cell.name for cell in cells}) == len(cells) == 3


def test_a_model_is_written_beside_what_others_have_there(tiny_tokenizer, tmp_path: Path) -> None:
    model, folder = new_model({**SMALL, "num_hidden_layers": 1}, tiny_tokenizer, seed=0), tmp_path / "cell"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    _save(model, tiny_tokenizer, {"losses": [1.0]}, folder)
    (folder / "measured.json").write_text("{}")  # of the model that is replaced next
    _save(model, tiny_tokenizer, {"losses": [2.0]}, folder)
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert not (folder / "measured.json").exists()
    read(folder, CELL)
    load(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-9] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(EntangleError, match=r"model\.safetensors, .* is damaged"):
        load(folder)


def test_a_second_run_in_one_folder_is_refused_with_the_owners_name(tmp_path: Path) -> None:
    recipe, (ready, tell) = demo_recipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with owned_by(recipe, tmp_path):
            os.write(tell, b".")
            os.read(os.pipe()[0], 1)
    try:
        os.read(ready, 1)
        with (
            pytest.raises(EntangleError, match=f"being written to by process {child}"),
            owned_by(recipe, tmp_path),
        ):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    with owned_by(recipe, tmp_path):
        assert (tmp_path / ".entangle-lock").exists()
    assert not list(tmp_path.iterdir())


def test_somebodys_recipe_in_the_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"thesis": 1}')
    with pytest.raises(EntangleError):
        run(demo_recipe(), tmp_path, progress=False)
    assert (tmp_path / "recipe.json").read_text() == '{"thesis": 1}'
    with pytest.raises(EntangleError, match="is a file"):
        run(demo_recipe(), tmp_path / "recipe.json", progress=False)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tiny_tokenizer, tmp_path: Path) -> None:
    model = new_model({**SMALL, "num_hidden_layers": 1}, tiny_tokenizer, seed=0)
    optimiser = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 4, dtype=torch.long), labels=torch.zeros(1, 4, dtype=torch.long)).loss.backward()
    optimiser.step()
    save_checkpoint(tmp_path / "c", model, optimiser, [1.0], "key")
    assert load_checkpoint(tmp_path / "c", model, optimiser, "key") == [1.0]
    content = bytearray((tmp_path / "c").read_bytes())
    content[-9] ^= 1
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(EntangleError, match="is damaged"):
        load_checkpoint(tmp_path / "c", model, optimiser, "key")
