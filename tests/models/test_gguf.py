"""A GGUF file is a model like any other: the weights that it was made of, to be steered, baked and saved."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import entangle as en
from entangle.errors import EntangleError
from entangle.interventions.weights.carried import load_baked
from entangle.models import fingerprint, load, load_tokenizer
from entangle.models.loading.gguf import NEEDS, find_gguf, is_marked

gguf = pytest.importorskip("gguf", reason="needs pip install 'entangle[gguf]'")

WORDS = ["<unk>", "<s>", "</s>", *(chr(33 + i) for i in range(90)), "Ġ", "th", "the"]
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{kind}_proj": f"attn_{kind}" for kind in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{kind}_proj": f"ffn_{kind}" for kind in ("gate", "up", "down")},
}


@pytest.fixture(scope="module")
def llama():
    """A small random model whose numbers single precision holds exactly in half, as GGUF files keep them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        rms_norm_eps=1e-6,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).half().float().eval()


def rotated(weight, heads):
    """The order of rotary pairs that this format keeps: (even, odd) side by side, not in halves."""
    out, width = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)


def write(model, path, kind="float16"):
    """A file as converters write it."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{theirs}": f"blk.{layer}.{ours}" for theirs, ours in NAMES.items()}
    for name, tensor in model.state_dict().items():
        theirs = names[name.removesuffix(".weight")] + ".weight"
        weight = tensor.numpy()
        if "attn_q." in theirs or "attn_k." in theirs:
            weight = rotated(weight, config.num_attention_heads)
        kept = weight.astype(np.float32 if weight.ndim == 1 else kind)
        if kind == "float16" and "attn_output" in theirs:
            packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(theirs, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(theirs, kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    write(llama, folder / "small.gguf")
    return folder


@pytest.fixture(scope="module")
def read(folder):
    return load(folder)


IDS = torch.arange(3, 19).view(2, 8)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_its_weights_are_those_it_was_made_of_but_for_the_packed_ones(read, llama):
    own = llama.state_dict()
    for name, tensor in read[0].state_dict().items():
        packed = "o_proj" in name
        near = (tensor.float() - own[name]).abs().max()
        assert (0 < near < 1e-3) if packed else near == 0, name
    assert read[0].dtype == torch.float32
    assert not torch.equal(logits(read[0]), logits(llama))
    torch.testing.assert_close(logits(read[0]).float(), logits(llama), atol=1e-2, rtol=0)


def test_the_file_and_its_folder_are_the_same_model(read, folder):
    model, tokenizer = load(folder / "small.gguf")
    assert fingerprint(model) == fingerprint(read[0])
    assert tokenizer("the").input_ids == load_tokenizer(folder)("the").input_ids
    assert WORDS.index("the") in tokenizer("the").input_ids


def test_it_saves_as_plain_weights_and_is_the_same_model_again(read, tmp_path):
    model, tokenizer = read
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load(tmp_path)
    assert fingerprint(again) == fingerprint(model)
    assert torch.equal(logits(again), logits(model))


def test_one_that_transformers_loaded_bakes_and_saves_though_it_does_not_save_itself(folder, read, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="small.gguf").eval()
    marks = not version("transformers").startswith("5.9.")  # which leaves such a model unmarked, and saves it
    assert is_marked(model.config) == marks
    if marks:
        with pytest.raises(ValueError, match="not serializable"):
            model.save_pretrained(tmp_path / "plain")
    assert fingerprint(model) == fingerprint(read[0])
    for site, unlike in (("mlp_out", "weights"), ("resid_post", "a part of its own")):
        edit = en.AddDirection(torch.ones(64), site, 0)
        with en.steer(model, edit, alpha=2):
            steered = logits(model)
        baked = edit.bake(model, alpha=2)
        baked.save_pretrained(tmp_path / unlike)
        torch.testing.assert_close(logits(load_baked(tmp_path / unlike)), steered, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(steered, logits(model), atol=1e-2)
    assert is_marked(model.config) == marks


def test_a_folder_with_two_files_or_none_or_another_model_is_told_apart(folder, tmp_path):
    assert find_gguf(folder) == folder / "small.gguf"
    assert find_gguf(tmp_path) is None
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(EntangleError, match=r"2 GGUF files \(a.gguf, b.gguf\)"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert find_gguf(tmp_path) is None


def test_a_broken_file_is_refused_in_one_line(tmp_path, folder):
    content = (folder / "small.gguf").read_bytes()
    for name, part in {"empty": b"", "head": content[:2000], "most": content[:-3000], "zip": b"PK" + content}.items():
        (tmp_path / f"{name}.gguf").write_bytes(part)
        with pytest.raises(EntangleError) as error:
            load(tmp_path / f"{name}.gguf")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("package", NEEDS)
def test_without_the_packages_that_read_it_one_line_says_what_to_install(folder, monkeypatch, package):
    there = importlib.util.find_spec
    monkeypatch.setattr("entangle.models.loading.gguf.find_spec", lambda name: None if name == package else there(name))
    with pytest.raises(EntangleError, match=rf"{package} cannot be imported: pip install 'entangle\[gguf\]'"):
        load(folder)
