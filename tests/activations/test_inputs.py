"""Batches, images, sounds, encoder-decoders: each example as the model computes it alone; what cannot be is refused."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModel, DataCollatorWithPadding

import zoo
from entangle.activations import Activations, collect
from entangle.errors import EntangleError
from entangle.models import Atlas, hooked

ROWS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14], [15, 16, 17, 18]]


def alone(model, inputs, site, layer, atlas=None):
    """The site as one hook sees it in a whole forward of one example, `[pos size]`."""
    seen = []
    with torch.no_grad(), hooked([((atlas or Atlas(model)).place(site, layer), lambda x: seen.append(x.clone()))]):
        model(**inputs)
    return seen[0][0]


def close(a, b):
    return (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.fixture
def expected(tiny_model):
    model = tiny_model("llama")
    return torch.stack([alone(model, {"input_ids": torch.tensor([row])}, "z", 1)[-1] for row in ROWS])


@pytest.mark.parametrize("kind", ["loader", "lists", "ragged", "dataset", "generator", "rows"])
def test_tokenised_batches(kind, tiny_model, tiny_tokenizer, expected):
    """Every way to hand over the same tokens gives the same numbers, and `labels` do no harm."""
    rows = [{"input_ids": row, "labels": i} for i, row in enumerate(ROWS)]
    if kind == "dataset":
        datasets = pytest.importorskip("datasets")
        rows = datasets.Dataset.from_list(rows)
    texts = {
        "loader": DataLoader(rows, batch_size=3, collate_fn=DataCollatorWithPadding(tiny_tokenizer)),
        "lists": ROWS,
        "ragged": {"input_ids": ROWS},
        "dataset": rows,
        "generator": ({"input_ids": torch.tensor([row])} for row in ROWS),
        "rows": [torch.tensor(row) for row in ROWS],
    }[kind]
    acts = collect(tiny_model("llama"), None, texts, layers=1, progress=False)
    assert acts.input_ids == ROWS
    assert close(acts["z"].flatten(1), expected)


def test_tokens_and_what_goes_with_each(tiny_model):
    """`token_type_ids` are cut with the tokens, change the numbers, and are part of what a store was made of."""
    model = tiny_model("bert")
    types = [[1] * len(row) for row in ROWS]
    typed = collect(model, None, {"input_ids": ROWS, "token_type_ids": types}, sites="resid_post", progress=False)
    plain = collect(model, None, {"input_ids": ROWS}, sites="resid_post", progress=False)
    for i, (row, type_ids) in enumerate(zip(ROWS, types, strict=True)):
        inputs = {"input_ids": torch.tensor([row]), "token_type_ids": torch.tensor([type_ids])}
        assert close(typed["resid_post"][i, 2], alone(model, inputs, "resid_post", 2)[-1])
    assert not torch.allclose(typed["resid_post"], plain["resid_post"])
    assert typed.meta["inputs"] != plain.meta["inputs"]


def pixels(model, n=5):
    config = model.config
    return torch.randn(n, config.num_channels, config.image_size, config.image_size)


@pytest.mark.parametrize("tokens", ["first", "last", "mean", "all", 2])
def test_images(tokens, tmp_path):
    model = zoo.tiny("vit", AutoModel)
    images = pixels(model)
    acts = collect(
        model,
        None,
        {"pixel_values": images},
        sites=["z", "resid_post"],
        tokens=tokens,
        batch_tokens=12,
        save_to=tmp_path / "acts",
        progress=False,
    )
    whole = torch.stack([alone(model, {"pixel_values": image[None]}, "resid_post", 1) for image in images])
    chosen = {"first": whole[:, 0], "last": whole[:, -1], "mean": whole.mean(1), "all": whole.flatten(0, 1)}
    assert close(acts["resid_post"][:, 1], chosen[tokens] if isinstance(tokens, str) else whole[:, tokens])
    assert acts.input_ids == [[]] * 5
    with pytest.raises(EntangleError, match="other texts"):  # other images are not mistaken for these
        collect(model, None, {"pixel_values": images + 1}, tokens=tokens, save_to=tmp_path / "acts", progress=False)
    assert torch.equal(Activations.load(tmp_path / "acts", model=model)["z"], acts["z"])


def test_images_from_a_loader_and_in_half_precision():
    model = zoo.tiny("vit", AutoModel)
    images = pixels(model)
    loaded = collect(
        model, None, DataLoader([{"pixel_values": x, "labels": 1} for x in images], batch_size=2), progress=False
    )
    plain = collect(model, None, {"pixel_values": images}, progress=False)
    assert close(loaded["z"], plain["z"])
    half = collect(model.to(torch.bfloat16), None, {"pixel_values": images}, progress=False)
    assert half["z"].dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["hubert", "wav2vec2-bert", "audio-spectrogram-transformer"])
def test_sounds(family):
    """Padding is taken off each sound, so that what the model's convolutions make of padding does not matter."""
    model = zoo.tiny(family, AutoModel)
    name = model.main_input_name
    if family == "audio-spectrogram-transformer":
        config = model.config
        sounds, mask = torch.randn(3, config.max_length, config.num_mel_bins), None
        lengths = [config.max_length] * 3
    elif family == "hubert":
        lengths, sounds = [4000, 2800, 4000], torch.randn(3, 4000)
        mask = (torch.arange(4000) < torch.tensor(lengths)[:, None]).long()
    else:
        lengths, sounds = [64, 40, 64], torch.randn(3, 64, model.config.feature_projection_input_dim)
        mask = (torch.arange(64) < torch.tensor(lengths)[:, None]).long()
    inputs = {name: sounds} if mask is None else {name: sounds, "attention_mask": mask}
    acts = collect(model, None, inputs, sites="resid_post", tokens="all", progress=False)
    for i, n in enumerate(lengths):
        expected = alone(model, {name: sounds[i : i + 1, :n]}, "resid_post", 1)
        assert close(acts["resid_post"][acts.rows[:, 0] == i, 1], expected)


@pytest.mark.parametrize("family", ["t5", "bart", "marian", "m2m_100"])
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_encoder_decoders(family, stack):
    model = zoo.tiny(family, AutoModel)
    atlas = Atlas(model, stack=stack)
    targets = [[1, 20], [1, 21, 22, 23, 24], [1], [1, 25, 26]]
    inputs = {"input_ids": ROWS, "decoder_input_ids": targets}
    acts = collect(
        model, None, inputs, sites=["z", "resid_post"], tokens="all", special_tokens=True, atlas=atlas, progress=False
    )
    assert acts.input_ids == (ROWS if stack == "encoder" else targets)
    for i, (row, target) in enumerate(zip(ROWS, targets, strict=True)):
        one = {"input_ids": torch.tensor([row]), "decoder_input_ids": torch.tensor([target])}
        here = acts.rows[:, 0] == i
        for site in ("z", "resid_post"):
            assert close(acts[site][here, 1].flatten(1), alone(model, one, site, 1, atlas))
    if stack == "encoder":
        encoder = collect(
            model, None, {"input_ids": ROWS}, tokens="all", special_tokens=True, atlas=atlas, progress=False
        )
        assert close(encoder["z"], acts["z"])
        return
    other = {**inputs, "input_ids": ROWS[::-1]}  # the decoder looks at the encoder: other sources, other numbers
    changed = collect(
        model, None, other, sites="resid_post", tokens="all", special_tokens=True, atlas=atlas, progress=False
    )
    assert not torch.allclose(changed["resid_post"], acts["resid_post"], atol=1e-2)
    assert changed.meta["inputs"] != acts.meta["inputs"]


def test_speech_to_text_reads_a_sound_and_a_text():
    model = zoo.tiny("whisper", AutoModel)
    config = model.config
    sounds = torch.randn(3, config.num_mel_bins, 2 * config.max_source_positions)
    targets = torch.tensor([[1, 5, 6, 7], [1, 8, 0, 0], [1, 9, 10, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    inputs = {"input_features": sounds, "decoder_input_ids": targets, "decoder_attention_mask": mask}
    acts = collect(model, None, inputs, sites="resid_post", progress=False)
    for i, n in enumerate(mask.sum(1).tolist()):
        one = {"input_features": sounds[i : i + 1], "decoder_input_ids": targets[i : i + 1, :n]}
        assert close(acts["resid_post"][i, 1], alone(model, one, "resid_post", 1)[-1])
    atlas = Atlas(model, stack="encoder")
    heard = collect(model, None, {"input_features": sounds}, tokens="mean", atlas=atlas, progress=False)
    assert heard["z"].shape[0] == 3


def refused(model, texts, match, tokenizer=None, **settings):
    with pytest.raises(EntangleError, match=match) as error:
        collect(model, tokenizer, texts, progress=False, **settings)
    assert "\n" not in str(error.value)


def test_what_cannot_be_run_is_refused(tiny_model, tiny_tokenizer):
    llama, ids = tiny_model("llama"), torch.tensor([[5, 6], [7, 8]])
    refused(llama, 3, "are of type int")
    refused(llama, [], "at least one text")
    refused(llama, {"input_ids": ids[:0]}, "at least one example")
    refused(llama, {"input_ids": ids, "index": torch.arange(2)}, "takes no argument 'index'")
    refused(llama, {"input_ids": ids, "attention_mask": ids[:1]}, "as many rows")
    refused(llama, {"input_ids": ids.float()}, "must be integers")
    refused(llama, {"input_ids": ids[0]}, "must be integers")
    refused(llama, {"input_ids": ids, "attention_mask": torch.ones(2, 3)}, "one length")
    refused(llama, {"pixel_values": torch.randn(2, 3, 4, 4)}, "need input_ids, but the keys are pixel_values")
    refused(llama, [{"text": "a cat"}], r"pass the column of texts, dataset\['text'\]")
    refused(llama, [{"input_ids": ["a", "b"]}], "must be numbers")
    refused(llama, [{"input_ids": ids}, {"input_ids": ids, "attention_mask": ids}], "item 1 has")
    refused(llama, {"input_ids": ids}, "at least 1", max_length=0)
    refused(llama, ["a cat"], "need a tokenizer")
    refused(llama, {"a cat", "a dog"}, "set has none", tiny_tokenizer)
    refused(llama, pd.DataFrame({"text": ["a cat"]}), "pass the column", tiny_tokenizer)
    for nothing in ([], (), range(0)):
        refused(llama, ["a cat"], "at least one layer", tiny_tokenizer, layers=nothing)
    for dtype in (torch.float8_e5m2, torch.complex64, torch.int8):
        refused(llama, ["a cat"], "store_dtype must be", tiny_tokenizer, store_dtype=dtype)
    bart = zoo.tiny("bart", AutoModel)
    refused(bart, ["a cat"], "inputs for both", tiny_tokenizer)
    refused(bart, {"input_ids": ids}, "needs decoder_input_ids")
    vit, hubert, whisper = (zoo.tiny(family, AutoModel) for family in ("vit", "hubert", "whisper"))
    refused(vit, ["a cat"], "reads pixel_values, but texts arrived", tiny_tokenizer)
    gap = torch.ones(1, 4000)
    gap[0, 100] = 0
    refused(hubert, {"input_values": torch.randn(1, 4000), "attention_mask": gap}, "has a gap")
    features = torch.randn(1, whisper.config.num_mel_bins, 2 * whisper.config.max_source_positions)
    heard = {"input_features": features, "attention_mask": (torch.arange(features.shape[-1]) < 9).long()[None]}
    refused(whisper, heard, "leave the mask out", atlas=Atlas(whisper, stack="encoder"))
