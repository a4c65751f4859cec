"""Texts to rows: cut, closed and begun as HuggingFace's own call does, once, and within what the model holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from entangle import collect
from entangle.errors import EntangleError
from entangle.evaluation.language.subject import Subject
from entangle.models.rows import batch_of, encode, encode_rows, run_rows
from entangle.models.tokens import UNLIMITED, context_length, frame, pad_id, special_ids
from tiny import roberta_lm
from tokenizing import CHAT, KINDS, SPECIAL, TEMPLATES, WORDS, tokenizer

LONG = " ".join(WORDS)
texts = st.lists(st.sampled_from([*WORDS, "</s>", "<s>", "unheard"]), min_size=1, max_size=30).map(" ".join)


def own_template(tokenizer, text):
    """Whether the text brings what the template would add: only then do we differ from HuggingFace."""
    bare, around = tokenizer(text, add_special_tokens=False)["input_ids"], frame(tokenizer)
    before, after = list(around.opening), list(around.closing)
    return bool(before and bare[: len(before)] == before) or bool(after and bare[-len(after) :] == after)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(texts, min_size=1, max_size=4), max_length=st.integers(4, 20))
def test_rows_are_those_of_the_tokenizers_own_truncation(kind, side, texts, max_length):
    ours = tokenizer(kind, truncation_side=side)
    texts = [text for text in texts if not own_template(ours, text) and not (side == "left" and "<s>" in text)]
    around = frame(ours)
    expected = [ours(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    for row, theirs in zip(encode(ours, texts, max_length=max_length), expected, strict=True):
        closed = list(around.closing)
        twice = bool(closed) and theirs[-2 * len(closed) :] == closed * 2  # the text was cut just after one of its own
        assert row == (theirs[: -len(closed)] if twice else theirs)
    assert encode(ours, texts) == [ours(text)["input_ids"] for text in texts]


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=40).filter(lambda text: bool(text.strip())))
@pytest.mark.parametrize("kind", ["bytes", "slow"])
def test_any_text_reads_as_the_tokenizer_reads_it(kind, text):
    ours = tokenizer(kind)
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(EntangleError, match="half a character"):
            encode(ours, [text])
    else:
        assert encode(ours, [text]) == [ours(text)["input_ids"]]


@pytest.mark.parametrize("kind", ["bos_eos", "cls_sep", "eos", "language"])
def test_a_text_that_is_cut_is_closed_as_one_that_is_not(kind):
    ours = tokenizer(kind)
    short, cut = encode(ours, ["the cat", LONG], max_length=9)
    assert short[-1] == cut[-1] == frame(ours).closing[0]
    assert len(cut) == 9
    assert ours(LONG)["input_ids"][:9][-1] != cut[-1]  # slicing would lose it


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_never_closed_and_otherwise_the_same(kind):
    ours = tokenizer(kind)
    closing = list(frame(ours).closing)
    for text, row in zip(["the cat", LONG], encode(ours, ["the cat", LONG], closed=False), strict=True):
        assert row + closing == ours(text)["input_ids"]


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_frame_is_what_the_tokenizer_calls_special(kind, padding_side):
    ours = tokenizer(kind, padding_side=padding_side)
    if kind != "slow":
        mask = ours("the cat", return_special_tokens_mask=True)["special_tokens_mask"]
        assert mask == [1] * len(frame(ours).opening) + [0] * mask.count(0) + [1] * len(frame(ours).closing)
    rows = encode_rows(ours, ["the cat", LONG])
    for text, row, (before, after) in zip(["the cat", LONG], rows.ids, rows.added, strict=True):
        assert row[before : len(row) - after] == ours(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("max_length", [None, 5])
@pytest.mark.parametrize("kind", ["bos", "bos_eos", "bytes", "pieces", "unadded"])
@pytest.mark.parametrize("prepend_bos", [False, True])
def test_what_a_chat_template_wrote_reads_as_the_conversation_does(kind, prepend_bos, max_length, tiny_model):
    """By HuggingFace's `apply_chat_template(tokenize=True)`, whether the text or the conversation arrives."""
    ours = tokenizer(kind)
    ours.chat_template = CHAT
    chat = [{"role": "user", "content": "the cat sat"}, {"role": "assistant", "content": "on a mat and looked"}]
    written = ours.apply_chat_template(chat, tokenize=False)
    cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
    expected = ours.apply_chat_template(chat, tokenize=True, return_dict=True, **cut)["input_ids"]
    given = {"max_length": max_length, "prepend_bos": prepend_bos}
    assert encode(ours, [written], **given) == [expected]
    if len(ours) <= 96:
        acts = collect(tiny_model("llama"), ours, [chat], layers=0, progress=False, **given)
        assert acts.input_ids == [expected]
    assert expected.count(ours.bos_token_id) == 1


def test_a_template_that_writes_no_beginning_gets_one_only_if_asked(tiny_model):
    ours = tokenizer("bos_eos")
    ours.chat_template = CHAT.replace("{{ bos_token }}", "")
    chat = [{"role": "user", "content": "the cat sat"}]
    plain, begun = (
        collect(tiny_model("llama"), ours, [chat], prepend_bos=bos, layers=0, progress=False).input_ids[0]
        for bos in (False, True)
    )
    assert plain == ours.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    assert begun == [1, *plain]


@pytest.mark.parametrize("kind", ["bos", "bos_eos", "cls_sep", "language", "unadded", "none"])
@pytest.mark.parametrize("text", ["the cat", "<s> the cat", "<s>the cat </s>", "[CLS] the cat [SEP]"])
def test_there_is_one_beginning_and_one_end_at_most(kind, text):
    ours = tokenizer(kind)
    for prepend_bos in (False, True) if kind != "none" else (False,):
        for max_length in (None, 4):
            (row,) = encode(ours, [text], prepend_bos=prepend_bos, max_length=max_length)
            marks = {*ours.all_special_ids} - {ours.unk_token_id}
            assert not (row[0] == row[1] and row[0] in marks)
            assert not (row[-1] == row[-2] and row[-1] in marks)


def test_a_text_begun_twice_is_refused():
    with pytest.raises(EntangleError, match="text 1 begins twice"):
        encode(tokenizer("bos"), ["the cat", "<s><s> the cat"])


@pytest.mark.parametrize(("kind", "needed"), [("bos_eos", 2), ("cls_sep", 2), ("bos", 1)])
def test_a_length_without_room_for_text_is_refused(kind, needed):
    with pytest.raises(EntangleError, match=f"leaves no room for text beside the {needed} special"):
        encode(tokenizer(kind), ["the cat"], max_length=needed)
    assert len(encode(tokenizer(kind), [LONG], max_length=needed + 1)[0]) == needed + 1


@pytest.mark.parametrize("kind", ["bos_eos", "bytes"])
def test_a_tokenizer_is_left_as_it_was(kind):
    ours = tokenizer(kind)
    ours.backend_tokenizer.enable_truncation(7)
    before = ours.backend_tokenizer.to_str()
    encode(ours, [LONG], max_length=5)
    assert ours.backend_tokenizer.to_str() == before


@pytest.mark.parametrize(
    ("text", "message"), [("the \ud83d cat", "text 1 holds half a character .*ud83d.* at 4"), (["the"], "is a list")]
)
def test_what_no_tokenizer_reads_is_refused_by_name(text, message):
    with pytest.raises(EntangleError, match=message):
        encode(tokenizer("bos"), ["the cat", text])
    assert encode(tokenizer("bos"), ["the \U0001f600 cat"])  # the whole character


# What a model holds.


def tiny(model_type, auto=AutoModel, **fields):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    own = {"vocab_size": 96, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return auto.from_config(AutoConfig.for_model(model_type, **{**sizes, **own, **fields})).eval()


HOLDING = {
    "bert": {"max_position_embeddings": 34},
    "roberta": {"max_position_embeddings": 34},
    "camembert": {"max_position_embeddings": 40},
    "xlm-roberta": {"max_position_embeddings": 34, "pad_token_id": 3},
    "mpnet": {"max_position_embeddings": 34},
    "distilbert": {"max_position_embeddings": 34, "n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 48},
    "opt": {"max_position_embeddings": 34, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": {"n_positions": 34, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"max_seq_len": 34, "d_model": 32, "n_layers": 2, "n_heads": 4},
}


@pytest.mark.parametrize("model_type", HOLDING)
def test_the_context_is_the_longest_input_that_runs(model_type):
    model = tiny(model_type, **HOLDING[model_type])
    length = context_length(model)
    model(input_ids=torch.full((1, length), 7))
    if model_type != "mpt":  # ALiBi would go on
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, length + 1), 7))
    ours = tokenizer("bos_eos")
    words = (WORDS * 3)[: length - 2]
    assert len(collect(model, ours, [" ".join(words)], layers=0, progress=False).input_ids[0]) == length
    for longer in ([" ".join([*words, "the"])], {"input_ids": torch.full((1, length + 1), 7)}):
        with pytest.raises(EntangleError, match=f"{length}"):
            collect(model, None if isinstance(longer, dict) else ours, longer, layers=0, progress=False)
    with pytest.raises(EntangleError, match=f"the context holds {length}"):
        collect(model, ours, [" ".join([*words, "the"])], max_length=length + 5, layers=0, progress=False)


def test_relative_positions_have_no_end():
    torch.manual_seed(0)
    model = T5EncoderModel(
        T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, n_positions=12)
    ).eval()
    assert context_length(model) == UNLIMITED
    row = encode(tokenizer("eos"), [LONG], model=model)[0]
    assert len(row) > 12
    assert collect(model, tokenizer("eos"), [LONG], layers=0, progress=False).input_ids == [row]


def test_a_window_is_no_limit_and_a_tokenizers_limit_is():
    model = tiny("mistral", AutoModelForCausalLM, max_position_embeddings=64, sliding_window=4, head_dim=8)
    assert context_length(model) == 64
    assert context_length(model, tokenizer("bos", model_max_length=9)) == 9
    assert context_length(model, tokenizer("bos")) == 64  # 1e30 is none
    with pytest.raises(EntangleError, match="the context holds 9"):
        encode(tokenizer("bos", model_max_length=9), [LONG], model=model)


@pytest.mark.parametrize("side", ["right", "left"])
def test_positions_that_do_not_begin_at_zero_stay_the_models_own(side):
    model = roberta_lm()
    rows = [[7, 8, 9], [10, 11, 12, 13, 14]]
    logits = model(**batch_of(model, tokenizer("bos"), rows, side=side)).logits
    where = slice(2, None) if side == "left" else slice(0, 3)
    with torch.no_grad():
        alone = model(input_ids=torch.tensor(rows[:1])).logits[0]
        counted = model(input_ids=torch.tensor(rows[:1]), position_ids=torch.arange(3)[None]).logits[0]
    torch.testing.assert_close(logits[0, where], alone, atol=1e-4, rtol=1e-4)
    assert (alone - counted).abs().max() > 0.01  # positions from 0 would be other numbers
    read = Subject(model, tokenizer("bos")).predictions(rows)
    assert read.counts == [2, 4]  # what comes after the last token of a row is not told
    torch.testing.assert_close(read.logits(slice(0, 2)), alone[:2], atol=1e-4, rtol=1e-4)


# Ids.


@pytest.mark.parametrize("pad", [999, -1, None])
def test_padding_uses_an_id_that_the_model_has(pad, tiny_model):
    model = tiny("llama", AutoModelForCausalLM, num_key_value_heads=2, head_dim=8, pad_token_id=None)
    model.config.pad_token_id = pad
    ours = tokenizer("unadded")
    ours.add_special_tokens({"pad_token": "[PAD]"})
    while len(ours) <= 96:
        ours.add_tokens([f"extra{len(ours)}"])
    ours.pad_token = "extra96"
    assert ours.pad_token_id >= 96
    assert pad_id(ours, model) == ours.eos_token_id
    rows = encode(ours, ["the cat sat", "dog"], model=model)
    logits = run_rows(model, ours, rows).logits
    torch.testing.assert_close(logits[1, :1], run_rows(model, ours, rows[1:]).logits[0], atol=1e-5, rtol=1e-5)


def test_the_models_own_pad_comes_first():
    model = tiny("llama", AutoModelForCausalLM, num_key_value_heads=2, head_dim=8, pad_token_id=9)
    assert pad_id(tokenizer("bos"), model) == 9
    assert pad_id(tokenizer("bos")) == 0


def test_ids_that_the_model_does_not_have_are_refused_by_name(tiny_model):
    ours = tokenizer("bos")
    ours.add_tokens(["new"] + [f"extra{i}" for i in range(96)])
    text = "the cat extra95"
    with pytest.raises(EntangleError, match=r"text 1 has id \d+ at position 3"):
        collect(tiny_model("llama"), ours, ["the cat", text], progress=False)
    for ids in ([5, -100, 6], [5, 96, 6]):
        with pytest.raises(EntangleError, match=f"example 0 has id {ids[1]} at position 1"):
            collect(tiny_model("llama"), None, {"input_ids": torch.tensor([ids])}, progress=False)


def test_special_ids_are_those_that_stand_for_no_text(tiny_model):
    for kind, (_, names) in TEMPLATES.items():
        assert special_ids(tokenizer(kind)) == {SPECIAL[name] for name in names.values()}
    unknown = tokenizer("bos", pad_token="<unk>")  # stands for a word, although it pads
    assert special_ids(unknown) == {1, 2}
    assert special_ids(None, tiny_model("llama")) == {1, 2}
    assert special_ids(None) == frozenset()
    several = tokenizer("bos", extra_special_tokens=["<en>"])
    assert isinstance(several, PreTrainedTokenizerFast)
    assert special_ids(several) == {0, 1, 2}
