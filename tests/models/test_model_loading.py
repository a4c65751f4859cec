from __future__ import annotations

import copy
import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from entangle.errors import EntangleError
from entangle.models import fingerprint, load, load_tokenizer


@pytest.fixture
def saved(tiny_model, tiny_tokenizer, tmp_path):
    def save(model_type="gpt2", tokenizer=tiny_tokenizer):
        directory = tmp_path / model_type
        tiny_model(model_type).save_pretrained(directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        return directory

    return save


def one_line(error):
    return "\n" not in str(error.value)


def test_loads_what_was_saved(saved, tiny_model):
    model, tokenizer = load(saved("olmo2"))
    assert type(model).__name__ == "Olmo2ForCausalLM"
    assert not model.training
    assert tokenizer.pad_token_id == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model("olmo2").parameters(), strict=True))
    assert type(load(saved("olmo2"), task="encoder")[0]).__name__ == "Olmo2Model"
    assert load(saved("olmo2"), dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kept", "computed"), [("float16", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")]
)
def test_half_precision_that_a_cpu_is_slow_at_is_computed_in_single(saved, tiny_model, kept, computed):
    directory = saved("llama")
    narrow = copy.deepcopy(tiny_model("llama")).to(getattr(torch, kept))
    narrow.save_pretrained(directory)
    model, _ = load(directory)
    assert {str(each.dtype) for each in model.parameters()} == {f"torch.{computed}"}
    assert fingerprint(model)["dtype"] == computed
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(model.parameters(), narrow.parameters(), strict=True))
    assert load(directory, dtype=kept)[0].dtype == getattr(torch, kept)  # as asked for, in any case


def test_an_encoder_is_loaded_without_a_head(saved):
    assert type(load(saved("bert"))[0]).__name__ == "BertModel"


def backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy that does not pad, whatever the tokenizer was last asked for."""
    copied = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copied.no_padding()
    return copied


def test_pads_with_the_end_of_sequence_token(saved, tiny_tokenizer):
    plain = PreTrainedTokenizerFast(tokenizer_object=backend(tiny_tokenizer), eos_token="</s>")
    _, tokenizer = load(saved("gpt2", plain))
    assert tokenizer.pad_token == "</s>"


def test_bad_directories(saved, tiny_tokenizer, tmp_path):
    with pytest.raises(EntangleError, match=r"no config\.json") as error:
        load(tmp_path)
    assert one_line(error)
    with pytest.raises(EntangleError, match="nowhere is not a local directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(EntangleError, match="has no tokenizer") as error:
        load(saved("opt", None))
    assert one_line(error)
    with pytest.raises(EntangleError, match="has no tokenizer"):
        load(saved("olmo2", None))
    bare = PreTrainedTokenizerFast(tokenizer_object=backend(tiny_tokenizer))
    with pytest.raises(EntangleError, match="neither a padding nor"):
        load(saved("llama", bare))
    (tmp_path / "file").write_text("")
    with pytest.raises(EntangleError, match="is a file"):
        load(tmp_path / "file")
    with pytest.raises(EntangleError, match="task must be"):
        load(tmp_path, task="decoder")


def test_a_config_that_is_none(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hello": 1}))
    with pytest.raises(EntangleError, match="is not a model"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{torn")
    with pytest.raises(EntangleError, match="is not a model"):
        load(tmp_path)


def test_missing_weights(saved, tmp_path):
    directory = saved("gpt2")
    (directory / "model.safetensors").unlink()
    with pytest.raises(EntangleError, match="could not be loaded as a model") as error:
        load(directory)
    assert one_line(error)


def test_no_tokenizer_alone(tmp_path):
    with pytest.raises(EntangleError, match="no tokenizer"):
        load_tokenizer(tmp_path)
