"""What is loaded is what was saved: no code of a folder runs, no pickle is read, no weight is drawn at random."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from entangle.composition.recipe.recipe import SMALL
from entangle.composition.training.pretrain import new_model
from entangle.composition.training.tokenizer import load_tokenizer as tokenizer_of_a_recipe
from entangle.errors import EntangleError
from entangle.evaluation import ClassifierScorer
from entangle.evaluation.methods import Checkpoint
from entangle.interventions import load_baked
from entangle.models import load, load_tokenizer

CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import Olmo2Config, PreTrainedTokenizerFast
class StrangerConfig(Olmo2Config):
    model_type = "stranger"
class StrangerTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def saved(tiny_model, tiny_tokenizer, tmp_path):
    def save(model_type="olmo2", name="model"):
        folder = tmp_path / name
        tiny_model(model_type).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def stranger(saved, tmp_path, monkeypatch):
    """A folder whose configuration and tokenizer name classes of its own, and someone who would say yes to them."""
    folder, mark = saved(), tmp_path / "mark"
    (folder / "stranger.py").write_text(CODE.format(mark=str(mark)))
    rewrite(
        folder / "config.json",
        model_type="stranger",
        auto_map={"AutoConfig": "stranger.StrangerConfig", "AutoModelForCausalLM": "stranger.Strange"},
    )
    rewrite(
        folder / "tokenizer_config.json",
        tokenizer_class="StrangerTokenizer",
        auto_map={"AutoTokenizer": ["stranger.StrangerTokenizer", "stranger.StrangerTokenizer"]},
    )
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder, mark


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights(folder, change):
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DOORS = {
    "load": load,
    "load as an encoder": lambda folder: load(folder, task="encoder"),
    "load_tokenizer": load_tokenizer,
    "a scorer": lambda folder: ClassifierScorer(folder, ["toxic"]),
    "a checkpoint beside": lambda folder: Checkpoint(folder).content(),
    "a baked model": load_baked,
    "a recipe's tokenizer": tokenizer_of_a_recipe,
}


@pytest.mark.parametrize("door", DOORS)
def test_no_code_of_a_folder_runs_though_someone_says_yes(door, stranger, monkeypatch):
    folder, mark = stranger
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(EntangleError) as error:
        DOORS[door](folder)
    assert not mark.exists()
    assert "\n" not in str(error.value)


def test_the_folder_of_these_tests_does_run_code_where_it_is_trusted(stranger):
    """The control: that nothing ran above is not the folder's doing."""
    folder, mark = stranger
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert mark.exists()


def test_a_recipe_cannot_name_code(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(EntangleError, match="auto_map"):
        new_model({**SMALL, "auto_map": {"AutoModelForCausalLM": "someone/else--code.Model"}}, tiny_tokenizer, seed=0)


@pytest.mark.parametrize("door", ["load", "a checkpoint beside", "a baked model"])
@pytest.mark.parametrize("which", ["one", "all", "norm"])
def test_weights_that_are_missing_are_named_and_not_drawn_at_random(door, which, saved):
    folder = saved()
    gone = {"one": "model.layers.1.mlp.up_proj.weight", "norm": "model.norm.weight", "all": ""}[which]

    def lose(tensors):
        if gone:
            del tensors[gone]
        else:
            renamed = {f"x.{name}": tensor for name, tensor in tensors.items()}
            tensors.clear()
            tensors.update(renamed)

    weights(folder, lose)
    with pytest.raises(EntangleError, match=gone or "lacks lm_head.weight, model.embed_tokens.weight") as error:
        DOORS[door](folder)
    assert "\n" not in str(error.value)


def test_a_tied_head_is_not_missing(tiny_tokenizer, tmp_path):
    model = new_model({**SMALL, "num_hidden_layers": 1}, tiny_tokenizer, seed=0)
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path)[0].lm_head.weight, model.lm_head.weight)


def test_an_untied_head_is(saved):
    folder = saved()
    weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(EntangleError, match=r"lacks lm_head\.weight"):
        load(folder)
    assert type(load(folder, task="encoder")[0]).__name__ == "Olmo2Model"  # which has none


def test_an_encoder_saved_without_its_pooler_is_loaded_without_one(saved):
    folder = saved("bert")
    weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "pooler" in name])
    model, _ = load(folder)
    assert model.pooler is None


def test_weights_of_another_shape_are_refused(saved):
    folder = saved()
    weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(EntangleError, match="could not be loaded as a model"):
        load(folder)


@pytest.mark.parametrize(
    ("extra", "refused"),
    [
        ("model.layers.3.mlp.up_proj.weight", True),  # a layer that the configuration does not count
        ("model.layers.0.self_attn.q_proj.bias", True),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", True),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", False),
    ],
)
def test_weights_of_a_block_that_would_be_left_out_are_refused(extra, refused, saved):
    folder = saved()
    weights(folder, lambda tensors: tensors.update({extra: torch.ones(32)}))
    if refused:
        with pytest.raises(EntangleError, match=f"no place for {extra}"):
            load(folder)
    else:
        load(folder)


def test_weights_outside_the_blocks_that_are_left_out_are_reported(saved):
    folder = saved()
    weights(folder, lambda tensors: tensors.update({"value_head.weight": torch.ones(32)}))
    with pytest.warns(UserWarning, match=r"does not use: value_head\.weight"):
        load(folder)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(saved, tiny_model):
    folder = saved()
    torch.save(tiny_model("olmo2").state_dict(), folder / "pytorch_model.bin")
    load(folder)  # the pickle beside safetensors is not read
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(folder)  # the control: transformers would
    for door in ("load", "a checkpoint beside", "a baked model", "a scorer"):
        with pytest.raises(EntangleError, match=r"is a pickle.*save_pretrained") as error:
            DOORS[door](folder)
        assert "\n" not in str(error.value)


def test_a_pickled_adapter_is_refused(saved):
    folder = saved()
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(folder), "peft_type": "LORA"})
    )
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(EntangleError, match=r"adapter_model\.bin is a pickle"):
        load(folder)


def test_weights_cut_off_are_refused(saved):
    folder = saved()
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(EntangleError, match="could not be loaded as a model") as error:
        load(folder)
    assert "\n" not in str(error.value)
    shutil.rmtree(folder)
