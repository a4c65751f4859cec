"""Special tokens stay out of the mean and of all tokens, unless they are asked for; every result says which."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

import zoo
from entangle import Activations, Atlas, collect
from entangle.activations import Turn
from entangle.concepts.functional import functional_importance
from entangle.errors import EntangleError
from entangle.models.tokens import frame, special_ids
from tokenizing import CHAT, KINDS, WORDS, tokenizer

TEXTS = ["the cat sat", " ".join(WORDS), "dog", "</s> moon <s> fox </s>", "far <pad> away"]
OPTIONS = {"sites": "resid_post", "progress": False}


@pytest.fixture(scope="module")
def model():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 384}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", num_attention_heads=4, num_key_value_heads=2, **sizes)
    return AutoModel.from_config(config).eval()


def expected_positions(ours, row, prepended=0):
    """Where the text is, by HuggingFace's template and the names of its tokens."""
    around = frame(ours)
    inside = range(prepended + len(around.opening), len(row) - len(around.closing))
    names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id")
    marks = {getattr(ours, name) for name in names if getattr(ours, name) is not None}
    return [p for p in inside if row[p] not in marks]


@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_all_and_mean_are_of_the_text_alone(kind, prepend_bos, model):
    if prepend_bos and kind == "none":
        pytest.skip("has no token to begin with")
    ours = tokenizer(kind)
    texts = TEXTS if kind not in ("none", "unadded") else TEXTS[:3]
    kept = collect(model, ours, texts, tokens="all", special_tokens=True, prepend_bos=prepend_bos, **OPTIONS)
    text = collect(model, ours, texts, tokens="all", prepend_bos=prepend_bos, **OPTIONS)
    mean = collect(model, ours, texts, tokens="mean", prepend_bos=prepend_bos, **OPTIONS)
    assert len(kept) == sum(map(len, kept.input_ids))
    begun = prepend_bos and frame(ours).opening[:1] != (ours.bos_token_id or ours.cls_token_id or ours.eos_token_id,)
    for i, row in enumerate(text.input_ids):
        positions = expected_positions(ours, row, int(begun))
        assert text.rows[text.rows[:, 0] == i, 1].tolist() == positions
        whole = kept["resid_post"][kept.rows[:, 0] == i]
        torch.testing.assert_close(text["resid_post"][text.rows[:, 0] == i], whole[positions])
        torch.testing.assert_close(mean["resid_post"][i], whole[positions].mean(0), atol=1e-5, rtol=1e-5)
    assert (kept.special_tokens, text.special_tokens, mean.special_tokens) == ("kept", "left out", "left out")
    assert set(mean.meta["special_ids"]) == special_ids(ours)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*WORDS, "<s>", "</s>"]), min_size=1, max_size=12), min_size=1, max_size=4))
def test_a_mean_does_not_depend_on_the_marks_within_reach(texts):
    """The rows kept are never special, and with them every row is there."""
    torch.manual_seed(0)
    ours, small = tokenizer("bos_eos"), zoo.tiny("llama", AutoModel)
    texts = [" ".join([*words, "moon"]) for words in texts if words[:2] != ["<s>", "<s>"]]
    if not texts:
        return
    acts = collect(small, ours, texts, tokens="all", **OPTIONS)
    chosen = {acts.input_ids[i][p] for i, p in acts.rows.tolist()}
    assert chosen.isdisjoint({0, 1, 2})
    every = collect(small, ours, texts, tokens="all", special_tokens=True, **OPTIONS)
    left = sum(token in (0, 1, 2) for row in acts.input_ids for token in row)
    assert len(every) - len(acts) == left


def test_a_begining_far_from_all_text_would_carry_the_length_into_the_mean(model):
    """What the default is for: with bos kept, mean-pooled rows hold 1 / length."""
    ours, torch_seed = tokenizer("bos"), torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 20, (40,), generator=torch_seed).tolist()
    texts = [" ".join(WORDS[i % 5] for i in range(n)) for n in lengths]
    handle = model.embed_tokens.register_forward_hook(lambda _, args, out: out + 300.0 * (args[0] == 1)[..., None])
    try:
        for special, strong in ((True, True), (False, False)):
            x = collect(model, ours, texts, tokens="mean", special_tokens=special, layers=0, **OPTIONS)["resid_post"]
            x = x[:, 0].double() - x[:, 0].double().mean(0)
            first = torch.linalg.svd(x, full_matrices=False).U[:, 0]
            r = torch.corrcoef(torch.stack([first, 1 / torch.tensor([n + 1.0 for n in lengths]).double()]))[0, 1]
            assert (abs(float(r)) > 0.99) == strong
    finally:
        handle.remove()


def test_tensors_without_a_tokenizer_go_by_the_models_configuration(model):
    ids = torch.tensor([[1, 7, 8, 9, 2], [7, 8, 2, 9, 9]])
    acts = collect(model, None, {"input_ids": ids}, tokens="all", **OPTIONS)
    assert acts.rows.tolist() == [[0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 3], [1, 4]]
    assert acts.meta["special_ids"] == [1, 2]
    several = AutoModel.from_config(model.config).eval()
    several.config = type(model.config)(**{**model.config.to_dict(), "eos_token_id": [2, 9], "bos_token_id": None})
    acts = collect(several, None, {"input_ids": ids}, tokens="all", **OPTIONS)
    assert acts.meta["special_ids"] == [2, 9]
    none = zoo.tiny("llama", AutoModel)
    none.config.bos_token_id = none.config.eos_token_id = None
    acts = collect(none, None, {"input_ids": ids}, tokens="all", **OPTIONS)
    assert (len(acts), acts.special_tokens, acts.meta["special_ids"]) == (10, "left out", [])


def test_a_decoder_leaves_out_the_token_it_starts_with():
    model = zoo.tiny("t5", AutoModel)
    start = model.config.decoder_start_token_id = 3
    inputs = {"input_ids": [[20, 21]], "decoder_input_ids": [[start, 22, 23]]}
    acts = collect(model, None, inputs, tokens="all", atlas=Atlas(model, stack="decoder"), **OPTIONS)
    assert acts.rows[:, 1].tolist() == [1, 2]


def test_other_selections_are_taken_literally(model):
    ours = tokenizer("bos_eos")
    ours.chat_template = CHAT
    for tokens, position in (("first", 0), ("last", 4), (0, 0), (-1, 4)):
        acts = collect(model, ours, ["the cat sat"], tokens=tokens, **OPTIONS)
        assert acts.rows.tolist() == [[0, position]]
        assert acts.special_tokens == "as selected"
    mask = torch.ones(1, 5, dtype=torch.bool)
    assert len(collect(model, ours, ["the cat sat"], tokens=mask, **OPTIONS)) == 5
    assert collect(model, ours, ["<s> cat"], tokens=[(0, 7)], **OPTIONS).rows.tolist() == [[0, 0], [0, 1]]
    chat = [{"role": "user", "content": "the </s> cat"}]
    assert len(collect(model, ours, [chat], tokens=Turn(tokens="all"), **OPTIONS)) == 3


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["bos_eos", "cls_sep", "bytes"])
def test_spans_find_their_tokens_in_texts_that_were_cut(kind, side, model):
    ours = tokenizer(kind, truncation_side=side)
    text = " ".join(WORDS)
    word = "cat" if side == "right" else "by"
    start = text.index(word)
    acts = collect(model, ours, [text], tokens=[(start, start + len(word))], max_length=12, **OPTIONS)
    chosen = [acts.input_ids[0][p] for _, p in acts.rows.tolist()]
    assert ours.decode(chosen).strip().split()[0] in (word, *word.split())
    gone = text.index("river" if side == "right" else "the")
    with pytest.raises(EntangleError, match="touch none of its 12 tokens"):
        collect(model, ours, [text], tokens=[(gone, gone + 3)], max_length=12, **OPTIONS)


def test_text_of_special_tokens_alone_is_refused(model):
    with pytest.raises(EntangleError, match=r"example 1 holds nothing but special tokens.*special_tokens=True"):
        collect(model, tokenizer("bos"), ["the cat", "</s>"], tokens="mean", **OPTIONS)
    assert len(collect(model, tokenizer("bos"), ["</s>"], tokens="mean", special_tokens=True, **OPTIONS)) == 1


def test_a_closing_token_is_not_cut_off_tensors(model):
    ids = {"input_ids": torch.tensor([[1, 7, 8, 9, 2]])}
    with pytest.raises(EntangleError, match="example 0 ends with the special token 2, which max_length=3 would cut"):
        collect(model, None, ids, max_length=3, **OPTIONS)
    assert collect(model, None, {"input_ids": ids["input_ids"][:, :4]}, max_length=3, **OPTIONS).input_ids == [
        [1, 7, 8]
    ]


def test_a_store_is_of_one_choice_and_an_old_one_says_what_it_kept(model, tmp_path):
    ours = tokenizer("bos")
    settings = {"tokens": "mean", **OPTIONS}
    collect(model, ours, TEXTS[:3], save_to=tmp_path / "acts", **settings)
    with pytest.raises(EntangleError, match="other texts or settings"):
        collect(model, ours, TEXTS[:3], save_to=tmp_path / "acts", special_tokens=True, **settings)
    assert Activations.load(tmp_path / "acts").special_tokens == "left out"
    kept = collect(model, ours, TEXTS[:3], special_tokens=True, **settings)
    meta = {name: value for name, value in kept.meta.items() if not name.startswith("special")}
    old = replace(kept, meta=meta)
    assert Activations.load(old.save(tmp_path / "old")).special_tokens == "kept"
    assert "special tokens kept" in repr(old)


def test_variance_explained_is_of_the_text(tiny_model):
    """A reconstruction that is right but at the beginning explains all, unless that counts."""
    ours, lm = tokenizer("bos"), tiny_model("llama")
    bos = collect(lm, ours, ["the"], tokens="first", layers=1, **OPTIONS)["resid_post"][0, 0]

    def spoiled(x):
        near = (x - bos.to(x)).abs().amax(-1, keepdim=True) < 1e-4
        return torch.where(near, torch.zeros_like(x), x)

    explained = [
        functional_importance(lm, ours, TEXTS[:2], spoiled, layer=1, n_resamples=20, special_tokens=kept)
        for kept in (False, True)
    ]
    assert explained[0].variance_explained == pytest.approx(1)
    assert explained[1].variance_explained < 0.999
