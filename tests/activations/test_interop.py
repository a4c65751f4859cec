"""Activations in other libraries' hands hold the same numbers, and come back the same."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from entangle.activations import Activations, collect
from entangle.errors import EntangleError

ROWS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
SITES = ["resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post"]


@pytest.fixture
def run(tiny_model):
    return lambda tokens="all", sites=SITES, **settings: collect(
        tiny_model("llama"), None, ROWS, sites=sites, tokens=tokens, progress=False, **settings
    )


def test_numpy(run):
    acts = run("last")
    assert isinstance(acts.to_numpy("z"), np.ndarray)
    assert np.array_equal(acts.to_numpy("z"), acts["z"].numpy())
    half = Activations({"z": acts["z"].bfloat16()}, {"z": [0, 1, 2]}, acts.rows, acts.input_ids, {})
    assert half.to_numpy("z").dtype == np.float32
    assert np.array_equal(half.to_numpy("z"), half["z"].float().numpy())
    with pytest.raises(EntangleError, match="hold"):
        acts.to_numpy("zz")


def test_xarray(run, tmp_path):
    pytest.importorskip("xarray")
    one = run("last", ["z", "resid_post"], layers=[0, 2], save_to=tmp_path / "acts")
    z = one.to_xarray("z")
    assert z.dims == ("example", "layer", "head", "d_head")
    assert np.array_equal(z.sel(layer=2).values, one.to_numpy("z")[:, 1])
    assert z.position.values.tolist() == [3, 1, 2]
    every = run().to_xarray("resid_post")
    assert every.dims == ("token", "layer", "size")
    assert every.example.values.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    means = every.groupby("example").mean().values
    assert np.allclose(means, run("mean").to_numpy("resid_post"), atol=1e-5)


def test_datasets(run):
    datasets = pytest.importorskip("datasets")
    acts = run()
    rows = acts.to_dataset()
    assert isinstance(rows, datasets.Dataset)
    assert len(rows) == 9
    assert [row["token"] for row in rows] == [token for row in ROWS for token in row]
    assert torch.equal(torch.stack([row["z"] for row in rows]), acts["z"])
    assert torch.equal(torch.stack([row["resid_post"] for row in rows]), acts["resid_post"])
    averaged = run("mean", ["z"]).to_dataset()
    assert averaged["token"][:] == [None] * 3
    assert averaged["position"][:] == [-1] * 3


@pytest.mark.parametrize("tokens", ["all", "last"])
def test_there_and_back(run, tokens):
    pytest.importorskip("transformer_lens")
    acts = run(tokens)
    cache = acts.to_cache()
    assert cache["blocks.1.attn.hook_z"].shape == (3, 4 if tokens == "all" else 1, 4, 8)
    if tokens == "last":
        assert torch.equal(cache["blocks.2.hook_resid_post"][:, 0], acts["resid_post"][:, 2])
        return
    assert cache["blocks.0.hook_resid_pre"][1, 2:].isnan().all()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    ids = torch.tensor([row + [0] * (4 - len(row)) for row in ROWS])
    again = Activations.from_cache(cache, ids, attention_mask=mask)
    assert again.sites == acts.sites
    assert again.input_ids == acts.input_ids
    assert torch.equal(again.rows, acts.rows)
    assert all(torch.equal(again[site], acts[site]) for site in SITES)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_what_transformer_lens_caches(model_type, tiny_model, tmp_path):
    """A real run of TransformerLens on the same weights; Gemma 2 norms what attention and MLP give."""
    bridges = pytest.importorskip("transformer_lens.model_bridge")
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    # TransformerLens asks for a tokenizer; no text is run
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer.from_str('{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}')
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="a", eos_token="a").save_pretrained(tmp_path)
    bridge = bridges.TransformerBridge.boot_transformers(str(tmp_path))
    ids = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
    _, cache = bridge.run_with_cache(ids)
    theirs = Activations.from_cache(cache, ids)
    ours = collect(model, None, {"input_ids": ids}, sites=SITES, tokens="all", progress=False)
    assert theirs.sites == ours.sites
    for site in SITES:
        assert theirs[site].shape == ours[site].shape
        assert (theirs[site] - ours[site]).abs().max() <= 1e-4 * ours[site].abs().max()
    mine = ours.to_cache(bridge)
    for name in mine:
        assert mine[name].shape == cache[name].shape
    assert torch.equal(mine["blocks.1.attn.hook_z"], mine["z", 1])  # TransformerLens's short names work too
    normed = (cache["blocks.1.hook_attn_out"] - cache["blocks.1.attn.hook_out"]).abs().max() > 1e-2
    assert normed == (model_type == "gemma2")  # why the cache's names are attn.hook_out and mlp.hook_out


def test_what_cannot_be_converted_is_refused(run, monkeypatch):
    pytest.importorskip("transformer_lens")
    acts = run(sites=["z"])
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[:, :2] = True
    with pytest.raises(EntangleError, match="needs every token"):
        run(mask, ["z"]).to_cache()
    cache = acts.to_cache()
    with pytest.raises(EntangleError, match="pass the tokens the cache was made with"):
        Activations.from_cache(cache, torch.ones(3, 5, dtype=torch.long))
    with pytest.raises(EntangleError, match=r"must both be \[example pos\]"):
        Activations.from_cache(cache, torch.ones(12, dtype=torch.long))
    with pytest.raises(EntangleError, match="holds none of the names"):
        Activations.from_cache({"hook_embed": torch.zeros(3, 4, 8)}, torch.ones(3, 4, dtype=torch.long))
    for package, convert in [("xarray", lambda: acts.to_xarray("z")), ("datasets", acts.to_dataset)]:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(EntangleError, match=f"pip install {package}"):
            convert()
