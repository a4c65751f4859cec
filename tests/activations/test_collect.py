"""What is captured equals what the model computes for each text alone; bad input is refused in one line."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from entangle.activations import Activations, collect
from entangle.errors import EntangleError
from entangle.models import Atlas, AtlasError, hooked
from entangle.models.rows import CPU_TOKENS
from tiny import CAUSAL

TEXTS = [
    "the quick brown fox",
    "a cat sat on the mat and looked at the moon",
    "the lazy dog",
    "jumps",
    "the moon looked at a cat",
]
TOLERANCE = 1e-4


def naive(model, ids, site, layer):
    """The site as one plain hook sees it, for one text alone, without a mask or padding; `[pos size]`."""
    place = Atlas(model).place(site, layer)
    seen = []
    if place.side == "input":
        handle = place.module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    else:
        handle = place.module.register_forward_hook(
            lambda _, __, out: seen.append((out if isinstance(out, torch.Tensor) else out[0]).clone())
        )
    with torch.no_grad():
        model(torch.tensor([ids]))
    handle.remove()
    return seen[0].reshape(len(ids), -1)


def padded(rows, side):
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("model_type", [*CAUSAL, "bert"])
def test_equals_each_text_alone(model_type, tiny_model, tiny_tokenizer):
    model = tiny_model(model_type)
    acts = collect(
        model, tiny_tokenizer, TEXTS, sites=["z", "resid_post"], tokens="last", batch_tokens=64, progress=False
    )
    assert acts["z"].shape[:3] == (5, 3, 4)
    assert acts["resid_post"].shape == (5, 3, 32)
    for i, ids in enumerate(acts.input_ids):
        for layer in range(3):
            z = naive(model, ids, "z", layer)[-1]
            assert (acts["z"][i, layer].flatten() - z).abs().max() < TOLERANCE
            post = naive(model, ids, "resid_post", layer)[-1]
            assert (acts["resid_post"][i, layer] - post).abs().max() < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", ["gpt2", "olmo2", "opt", "bert"])
def test_padding_side_does_not_matter(model_type, side, tiny_model, tiny_tokenizer):
    model = tiny_model(model_type)
    rows = tiny_tokenizer(TEXTS)["input_ids"]
    batch = padded(rows, side)
    acts = collect(model, None, batch, sites=["z", "resid_post"], tokens="all", progress=False)
    for layer in range(3):
        post = torch.cat([naive(model, row, "resid_post", layer) for row in rows])
        assert (acts["resid_post"][:, layer] - post).abs().max() < TOLERANCE


def test_naive_left_padding_is_wrong_for_absolute_positions(tiny_model, tiny_tokenizer):
    """The control: left padding without positions moves GPT-2's numbers, so the test above can fail."""
    model = tiny_model("gpt2")
    rows = tiny_tokenizer(TEXTS)["input_ids"]
    seen = []
    with torch.no_grad(), hooked([(Atlas(model).place("resid_post", 0), seen.append)]):
        model(**padded(rows, "left"))
    out = seen[0][3, -1]
    assert (out - naive(model, rows[3], "resid_post", 0)[-1]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("tokens", ["last", "first", "mean", "all", 0, -1])
def test_token_selections(tokens, tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    texts = [text for text in TEXTS if text != "jumps"]
    acts = collect(model, tiny_tokenizer, texts, sites="resid_post", layers=1, tokens=tokens, progress=False)
    whole = [naive(model, ids, "resid_post", 1) for ids in acts.input_ids]
    if tokens == "all":
        expected = torch.cat(whole)
        assert acts.rows.tolist() == [[i, p] for i, ids in enumerate(acts.input_ids) for p in range(len(ids))]
    elif tokens == "mean":
        expected = torch.stack([x.mean(0) for x in whole])
    else:
        expected = torch.stack([x[{"last": -1, "first": 0}.get(tokens, tokens)] for x in whole])
    assert acts["resid_post"].shape == (len(expected), 1, 32)
    assert (acts["resid_post"][:, 0] - expected).abs().max() < TOLERANCE


def test_mask_and_spans(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    acts = collect(model, tiny_tokenizer, TEXTS[:2], sites="z", tokens="all", progress=False)
    lengths = [len(ids) for ids in acts.input_ids]
    mask = torch.zeros(2, max(lengths), dtype=torch.bool)
    mask[0, 1], mask[1, 2:5] = True, True
    chosen = collect(model, tiny_tokenizer, TEXTS[:2], sites="z", tokens=mask, progress=False)
    assert chosen.rows.tolist() == [[0, 1], [1, 2], [1, 3], [1, 4]]
    assert torch.allclose(chosen["z"], acts["z"][[1, lengths[0] + 2, lengths[0] + 3, lengths[0] + 4]], atol=TOLERANCE)
    start = TEXTS[1].index("mat")
    spans = [(0, len(TEXTS[0])), (start, start + 3)]
    spanned = collect(model, tiny_tokenizer, TEXTS[:2], sites="z", tokens=spans, progress=False)
    picked = [acts.input_ids[i][p] for i, p in spanned.rows.tolist() if i == 1]
    assert tiny_tokenizer.decode(picked).strip("▁ ") == "mat"
    assert sum(i == 0 for i, _ in spanned.rows.tolist()) == lengths[0]


def test_order_and_batches_do_not_matter(tiny_model, tiny_tokenizer):
    model = tiny_model("gpt2")
    one = collect(model, tiny_tokenizer, TEXTS, batch_tokens=1, progress=False)
    many = collect(model, tiny_tokenizer, TEXTS[::-1], batch_tokens=10_000, progress=False)
    assert torch.allclose(one["z"], many["z"].flip(0), atol=TOLERANCE)


def test_nothing_above_the_last_layer_runs(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    ran = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, module in model.named_modules()
    ]
    collect(model, tiny_tokenizer, TEXTS, sites="resid_post", layers=1, progress=False)
    for handle in handles:
        handle.remove()
    assert "model.layers.0" in ran
    assert not any(name.startswith(("model.layers.2", "lm_head", "model.norm")) for name in ran)


def test_names_of_transformer_lens_and_modules(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    plain = collect(model, tiny_tokenizer, TEXTS, sites="z", layers=1, progress=False)
    for name in ["blocks.1.attn.hook_z", "model.layers.1.self_attn.o_proj"]:
        named = collect(model, tiny_tokenizer, TEXTS, sites=name, progress=False)
        assert named.layers("z") == [1]
        assert torch.equal(named["z"], plain["z"])


def test_what_is_computed_in_and_what_is_kept(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    full = collect(model, tiny_tokenizer, TEXTS, progress=False)["z"]
    low = collect(model, tiny_tokenizer, TEXTS, dtype=torch.bfloat16, progress=False)["z"]
    assert low.dtype == torch.bfloat16
    assert 1e-4 < (low - full).abs().max() / full.abs().max() < 5e-2  # it was computed otherwise, not only rounded
    wide = collect(model, tiny_tokenizer, TEXTS, dtype=torch.bfloat16, store_dtype=torch.float32, progress=False)["z"]
    assert wide.dtype == torch.float32
    assert torch.equal(wide.bfloat16(), low)
    half = collect(model, tiny_tokenizer, TEXTS, store_dtype=torch.float16, progress=False)["z"]
    assert torch.equal(half, full.half())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    with pytest.raises(EntangleError, match="dtype is what the model computes in"):
        collect(model, tiny_tokenizer, TEXTS, dtype=torch.float64, progress=False)
    with torch.no_grad():
        model = deepcopy(model)
        model.model.layers[0].self_attn.v_proj.weight.mul_(1e7)
    with pytest.raises(EntangleError, match="z of layer 0 is not finite"):  # finite where computed, not where kept
        collect(model, tiny_tokenizer, TEXTS, layers=0, store_dtype=torch.float16, progress=False)


def test_a_cpu_runs_few_tokens_at_once(tiny_model, tiny_tokenizer):
    model, sizes = tiny_model("llama"), []
    handle = model.model.embed_tokens.register_forward_hook(lambda *call: sizes.append(call[2].shape[:2].numel()))
    acts = collect(model, tiny_tokenizer, TEXTS * 80, progress=False)
    handle.remove()
    assert sum(len(ids) for ids in acts.input_ids) > CPU_TOKENS
    assert max(sizes) <= CPU_TOKENS < 1.5 * max(sizes)


def test_model_is_left_as_it_was(tiny_model, tiny_tokenizer):
    model = tiny_model("olmo2")
    model.train()
    ids = tiny_tokenizer(TEXTS[:1], return_tensors="pt")["input_ids"]
    before = model(ids).logits
    collect(model, tiny_tokenizer, TEXTS, progress=False)
    assert all(module.training for module in model.modules())
    assert torch.equal(model(ids).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.eval()


def test_nan_names_the_text_and_layer(tiny_model, tiny_tokenizer):
    model = deepcopy(tiny_model("llama"))
    token = tiny_tokenizer(TEXTS)["input_ids"][3][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    texts = [text for text in TEXTS if token not in tiny_tokenizer(text)["input_ids"]] + [TEXTS[3]]
    with pytest.raises(EntangleError, match=f"layer 1 is not finite for text {len(texts) - 1}"):
        collect(model, tiny_tokenizer, texts, layers=[1, 2], progress=False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_bad_input(tiny_model, tiny_tokenizer):
    model = tiny_model("gpt2")

    def run(texts=TEXTS, tokenizer=tiny_tokenizer, **kwargs):
        return collect(model, tokenizer, texts, progress=False, **kwargs)

    with pytest.raises(EntangleError, match="text 1 is empty"):
        run(["a cat", " "])
    with pytest.raises(EntangleError, match="at least one text"):
        run([])
    with pytest.raises(EntangleError, match=r"pass \[text\]"):
        run("a cat")
    with pytest.raises(EntangleError, match="need a tokenizer"):
        run(tokenizer=None)
    with pytest.raises(EntangleError, match=r"text 1 has .* tokens but the context holds 64"):
        run(["a cat", "the moon " * 40])
    assert len(run(["the moon " * 40], max_length=10).input_ids[0]) == 10
    with pytest.raises(AtlasError, match="layers 0 to 2"):
        run(layers=3)
    with pytest.raises(AtlasError, match="not a site"):
        run(sites="zz")
    with pytest.raises(EntangleError, match=r"text \d has \d+ tokens"):
        run(tokens=12)
    with pytest.raises(EntangleError, match="'middle' is unknown"):
        run(tokens="middle")
    with pytest.raises(EntangleError, match="has a gap"):
        run({"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 0, 1]])}, None)
    with pytest.raises(EntangleError, match="padding of example 0"):
        run(TEXTS[:1], tokens=torch.ones(1, 60, dtype=torch.bool))


def test_save_and_load(tiny_model, tiny_tokenizer, tmp_path):
    model = tiny_model("gpt2")
    acts = collect(model, tiny_tokenizer, TEXTS, sites=["z", "resid_post"], layers=[0, 2], progress=False)
    directory = acts.save(tmp_path / "acts")
    again = Activations.load(directory, model=model)
    assert torch.equal(again["z"], acts["z"])
    assert again.layers("resid_post") == [0, 2]
    assert again.input_ids == acts.input_ids
    assert torch.equal(again.rows, acts.rows)
    assert again.meta == acts.meta
    assert [path.name for path in tmp_path.iterdir()] == ["acts"]
    with pytest.raises(EntangleError, match="another model"):
        Activations.load(directory, model=tiny_model("gpt2", 1))
    acts.save(directory)  # in the place of the former
    with pytest.raises(EntangleError, match="holds no activations"):
        Activations.load(tmp_path / "none")
    shard = directory / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(EntangleError, match="is damaged"):
        Activations.load(directory)
    shard.unlink()
    with pytest.raises(EntangleError, match="1 of 1 shards are missing"):
        Activations.load(directory)
    with pytest.raises(EntangleError, match="holds no activations, but acts: choose"):
        acts.save(tmp_path)
