"""Sampling: the right distribution, the same randomness in every batch and condition, no harm from padding."""

import contextlib
import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, TopPLogitsWarper

import zoo
from entangle.errors import EntangleError
from entangle.evaluation import continuations, cross_entropy
from entangle.evaluation.language import generation
from entangle.evaluation.language.generation import Sampling, nucleus_choice, prompt_rows, sample, stop_tokens
from entangle.evaluation.language.subject import Subject
from entangle.evaluation.methods import SelfDebias
from entangle.evaluation.methods.mixing import NextLogits
from entangle.models.rows import carries_state
from entangle.models.tokens import frame
from tiny import enlarge, roberta_lm
from tokenizing import CHAT, KINDS, tokenizer

FALCON = pytest.param("falcon_h1", marks=pytest.mark.slow)  # half a minute, in plain PyTorch
PROMPTS = ["the cat", "a quick brown fox jumps over the lazy dog and", "moon", "the mat", "the cat"]


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("vocabulary", [7, 3000])
def test_choices_follow_the_nucleus_of_another_implementation(top_p, vocabulary):
    torch.manual_seed(0)
    logits = (3 * torch.randn(1, vocabulary)).double()
    expected = TopPLogitsWarper(top_p)(None, logits).softmax(-1)[0]
    n = 40_000 if vocabulary < 100 else 2_000
    evenly = (torch.arange(n) + 0.5) / n  # every quantile once, so counts are exact to one draw at each token's edges
    chosen = nucleus_choice(logits.expand(n, -1), evenly.double(), top_p)
    counts = torch.bincount(chosen, minlength=vocabulary)
    assert (counts - n * expected).abs().max() <= 2
    assert counts[expected == 0].sum() == 0


def test_rows_of_one_batch_are_drawn_alone():
    torch.manual_seed(0)
    logits, uniform = torch.cat([torch.zeros(4, 3000), 9 * torch.randn(4, 3000)]), torch.rand(8)
    together = nucleus_choice(logits, uniform, 0.9)
    alone = torch.cat([nucleus_choice(row[None], u[None], 0.9) for row, u in zip(logits, uniform, strict=True)])
    assert torch.equal(together, alone)


def test_neither_batch_nor_order_nor_company_change_a_continuation(causal_lm, tiny_tokenizer):
    options = {"samples": 2, "max_new_tokens": 8, "prepend_bos": True, "progress": False}
    together = continuations(causal_lm, tiny_tokenizer, PROMPTS, **options)
    assert [len(row) for row in together] == [2] * 5
    one_by_one = continuations(causal_lm, tiny_tokenizer, PROMPTS, batch_tokens=1, **options)
    assert together == one_by_one
    assert continuations(causal_lm, tiny_tokenizer, PROMPTS[3:0:-1], **options) == together[3:0:-1]
    # Samples of a prompt, and a prompt met twice, get randomness of their own; so does another seed.
    assert together[0] != together[4]
    assert together[1][0] != together[1][1]
    assert continuations(causal_lm, tiny_tokenizer, PROMPTS, seed=1, **options) != together


def test_a_small_nucleus_is_greedy_decoding(tiny_model, tiny_tokenizer):
    model = tiny_model("gpt2")
    found = continuations(model, tiny_tokenizer, PROMPTS[:3], top_p=1e-6, max_new_tokens=6, progress=False)
    for prompt, texts in zip(PROMPTS[:3], found, strict=True):
        ids = torch.tensor([tiny_tokenizer(prompt)["input_ids"]])
        greedy = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
        assert texts == [tiny_tokenizer.decode(greedy[0, ids.shape[1] :], skip_special_tokens=True)]


def test_the_first_token_has_the_models_own_distribution(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    n = 2000
    texts = continuations(
        model, tiny_tokenizer, ["the cat"], samples=n, max_new_tokens=1, top_p=1.0, batch_tokens=10_000, progress=False
    )[0]
    ids = torch.tensor([tiny_tokenizer("the cat")["input_ids"]])
    with torch.no_grad():
        p = model(ids).logits[0, -1].softmax(-1)
    expected: dict[str, float] = {}
    for token, share in enumerate(p.tolist()):
        text = tiny_tokenizer.decode([token], skip_special_tokens=True)
        expected[text] = expected.get(text, 0) + share
    for text, share in expected.items():
        spread = (share * (1 - share) / n) ** 0.5
        assert texts.count(text) / n == pytest.approx(share, abs=5 * spread + 1e-3), text


def test_a_models_own_generation_settings_do_not_bend_the_sampling(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    plain = continuations(model, tiny_tokenizer, PROMPTS, progress=False)
    saved = model.generation_config
    try:
        model.generation_config = type(saved)(
            **{**saved.to_dict(), "repetition_penalty": 5.0, "do_sample": True, "top_k": 1, "temperature": 0.1}
        )
        assert continuations(model, tiny_tokenizer, PROMPTS, progress=False) == plain
    finally:
        model.generation_config = saved


def test_temperature_sharpens(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    distinct = [
        len(set(continuations(model, tiny_tokenizer, ["the"], samples=60, temperature=t, progress=False)[0]))
        for t in (0.01, 3.0)
    ]
    assert distinct[0] < distinct[1]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "at least one prompt"),
        (["a", " "], {}, "prompt 1 is empty"),
        (["the cat", "the cat sat on the mat " * 20], {}, "prompt 1 has .* tokens, but 20 new ones leave room for 44"),
        (["a"], {"samples": 0}, "samples >= 1"),
        (["a"], {"top_p": 0}, "0 < top_p <= 1"),
        (["a"], {"temperature": 0}, "temperature > 0"),
        (["a"], {"temperature": np.nan}, "temperature > 0"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens >= 1"),
    ],
)
def test_bad_input(prompts, options, message, tiny_model, tiny_tokenizer):
    with pytest.raises(EntangleError, match=message):
        continuations(tiny_model("llama"), tiny_tokenizer, prompts, progress=False, **options)


def test_models_that_cannot_generate_are_refused(tiny_model, tiny_tokenizer):
    for model in (tiny_model("bert"), SimpleNamespace()):
        with pytest.raises(EntangleError, match=r"cannot generate|must be a torch module"):
            continuations(model, tiny_tokenizer, ["the cat"], progress=False)


def test_a_broken_model_is_said_to_be_broken(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    hook = model.lm_head.register_forward_hook(lambda module, args, output: output * torch.nan)
    try:
        with pytest.raises(EntangleError, match="not finite"):
            continuations(model, tiny_tokenizer, ["the cat"], progress=False)
    finally:
        hook.remove()


SETTINGS = {  # one value of each that changes what `generate` does
    "suppress_tokens": list(range(4, 60)),
    "begin_suppress_tokens": list(range(4, 60)),
    "bad_words_ids": [[5], [6], [13]],
    "min_length": 30,
    "min_new_tokens": 19,
    "max_length": 3,
    "max_time": 1e-9,
    "guidance_scale": 3.0,
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 2,
    "encoder_repetition_penalty": 3.0,
    "encoder_no_repeat_ngram_size": 1,
    "no_repeat_ngram_size": 1,
    "repetition_penalty": 5.0,
    "sequence_bias": [[[7], 50.0]],
    "exponential_decay_length_penalty": [1, 3.0],
    "watermarking_config": {"bias": 50.0},
    "num_beams": 3,
    "num_beam_groups": 3,
    "diversity_penalty": 1.0,
    "num_return_sequences": 2,
    "do_sample": True,
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.01,
    "min_p": 0.9,
    "typical_p": 0.1,
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_hidden_states": True,
    "stop_strings": ["a", "e", "t"],
    "prompt_lookup_num_tokens": 3,
    "penalty_alpha": 0.6,
    "token_healing": True,
    "cache_implementation": "static",
    "prefill_chunk_size": 2,
    "use_cache": False,
    "of_its_own_making": 1,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_of_the_models_own_changes_a_continuation(name, tiny_model, tiny_tokenizer):
    model = copy.copy(tiny_model("llama"))
    model.generation_config = copy.deepcopy(model.generation_config)
    plain = continuations(model, tiny_tokenizer, PROMPTS[:3], progress=False)
    setattr(model.generation_config, name, SETTINGS[name])
    before = copy.deepcopy(vars(model.generation_config))
    assert continuations(model, tiny_tokenizer, PROMPTS[:3], progress=False) == plain
    assert vars(model.generation_config) == before


@pytest.mark.parametrize("name", ["suppress_tokens", "repetition_penalty", "stop_strings"])
def test_self_debiasing_takes_none_of_them_either(name, tiny_model, tiny_tokenizer):
    model = copy.copy(tiny_model("llama"))
    model.generation_config = copy.deepcopy(model.generation_config)
    found = []
    for value in (None, SETTINGS[name]):
        setattr(model.generation_config, name, value)
        with SelfDebias("the mat ").applied(model, tiny_tokenizer, 50.0) as subject:
            found.append(sample(subject, PROMPTS[:2], Sampling(max_new_tokens=6), progress=False))
    assert found[0] == found[1]


def test_generate_by_itself_would_take_them(tiny_model, tiny_tokenizer):
    """The control: the same settings do change what the model's own `generate` gives."""
    model = copy.copy(tiny_model("llama"))
    ids = torch.tensor([tiny_tokenizer("the cat")["input_ids"]])
    given = GenerationConfig(max_new_tokens=6, pad_token_id=0)
    plain = model.generate(ids, generation_config=given)
    model.generation_config = GenerationConfig(suppress_tokens=plain[0, ids.shape[1] :].tolist())
    assert model.generate(ids, generation_config=given).tolist() != plain.tolist()


def test_the_models_own_stop_tokens_end_a_continuation(tiny_model, tiny_tokenizer):
    """One or several; what follows is padding, and no text, whatever its id."""
    model = copy.copy(tiny_model("llama"))
    model.config = copy.deepcopy(model.config)
    model.generation_config = copy.deepcopy(model.generation_config)
    greedy = {"top_p": 1e-6, "max_new_tokens": 12, "progress": False}
    ids = torch.tensor([tiny_tokenizer("the cat")["input_ids"]])
    new = model.generate(ids, do_sample=False, max_new_tokens=12, eos_token_id=None)[0, ids.shape[1] :].tolist()
    assert len(set(new)) > 3
    third = next(token for token in new[2:] if token not in new[:2])
    for stop in (third, [third, 95]):
        model.generation_config.eos_token_id = stop
        model.config.pad_token_id = new[0]  # an ordinary token
        text = continuations(model, tiny_tokenizer, ["the cat", "moon"], **greedy)[0][0]
        assert text == tiny_tokenizer.decode(new[: new.index(third)], skip_special_tokens=True)


def test_dropout_of_a_model_in_training_is_off_and_comes_back(tiny_tokenizer):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=96, resid_pdrop=0.9
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    plain = continuations(model, tiny_tokenizer, PROMPTS, progress=False)
    nats = cross_entropy(model, tiny_tokenizer, PROMPTS[:2], progress=False).values
    model.train()
    assert continuations(model, tiny_tokenizer, PROMPTS, progress=False) == plain
    assert (cross_entropy(model, tiny_tokenizer, PROMPTS[:2], progress=False).values == nats).all()
    assert model.training
    assert model.transformer.h[0].mlp.dropout.training


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_continued_and_not_closed(kind, tiny_model):
    """Greedy continuations are those of HuggingFace from the prompt without the closing tokens of the template."""
    ours = tokenizer(kind)
    torch.manual_seed(0)
    size = {"vocab_size": max(96, len(ours)), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = enlarge(
        AutoModelForCausalLM.from_config(
            AutoConfig.for_model("llama", num_attention_heads=4, num_key_value_heads=2, **size)
        ).eval()
    )
    prompts = ["the cat sat", "dog", "a mat and looked at"]
    found = continuations(model, ours, prompts, top_p=1e-6, max_new_tokens=5, progress=False)
    for prompt, texts in zip(prompts, found, strict=True):
        around = frame(ours)
        ids = torch.tensor([[*around.opening, *ours(prompt, add_special_tokens=False)["input_ids"]]])
        ends = model.generation_config.eos_token_id
        new = model.generate(ids, do_sample=False, max_new_tokens=5, eos_token_id=ends)[0, ids.shape[1] :].tolist()
        new = new[: new.index(ends)] if ends in new else new
        assert texts == [ours.decode(new, skip_special_tokens=True)]


def test_what_a_chat_template_wrote_is_continued_after_one_beginning(tiny_model):
    ours = tokenizer("bos")
    ours.chat_template = CHAT
    written = ours.apply_chat_template([{"role": "user", "content": "the cat sat"}], tokenize=False)
    subject = Subject(tiny_model("llama"), ours)
    assert prompt_rows(subject, [written], Sampling()) == [
        [1, *ours("the cat sat", add_special_tokens=False)["input_ids"]]
    ]
    assert prompt_rows(subject, [written], Sampling(prepend_bos=True)) == prompt_rows(subject, [written], Sampling())
    # A prefix goes after that beginning, once more.
    after = prompt_rows(replace(subject, prefix="dog ran "), [written, "the cat sat"], Sampling())
    assert after[0] == after[1] == ours("dog ran the cat sat")["input_ids"]
    # The conversation itself is the same prompt.
    asked = [{"role": "user", "content": "the cat sat"}]
    assert prompt_rows(subject, [asked, written], Sampling()) == prompt_rows(subject, [written] * 2, Sampling())


@pytest.mark.parametrize("kind", ["bos_eos", "eos", "cls_sep", "language"])
def test_a_prefix_is_not_closed_before_a_document(kind, tiny_model):
    ours = tokenizer(kind)
    around = frame(ours)
    rows = [ours("the cat sat")["input_ids"]]
    (placed,), shift = Subject(tiny_model("llama"), ours, prefix="dog ran").put_before(rows)
    expected = [*around.opening, *ours("dog ran", add_special_tokens=False)["input_ids"]]
    expected += [*ours("the cat sat", add_special_tokens=False)["input_ids"], *around.closing]
    assert placed == expected
    assert shift == 2


def greedy_by_hand(model, tokenizer, prompt, steps):
    """The likeliest tokens, each from a forward pass over all those before it."""
    ids, new = tokenizer(prompt)["input_ids"], []
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
        if token in stop_tokens(model, tokenizer):
            break
        new.append(token)
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("family", ["roberta", "opt", "bloom", "rwkv", "mamba", "recurrent_gemma", FALCON])
def test_padding_and_positions_are_as_the_model_alone_has_them(family):
    """Offsets of positions, ALiBi, and states that would remember the padding before a prompt."""
    model = roberta_lm() if family == "roberta" else zoo.tiny(family, AutoModelForCausalLM)
    ours = tokenizer("unadded" if family == "roberta" else "bos")
    prompts = ["the cat", "dog ran very far away from the house", "a mat"]
    found = continuations(model, ours, prompts, top_p=1e-6, max_new_tokens=5, progress=False)
    assert found == [[greedy_by_hand(model, ours, prompt, 5)] for prompt in prompts]


@pytest.mark.parametrize("family", ["roberta", "llama", "rwkv", "mamba", FALCON])
def test_a_second_reading_goes_on_as_one_of_the_whole(family):
    model = roberta_lm() if family == "roberta" else zoo.tiny(family, AutoModelForCausalLM)
    rows = [[5, 6, 7], [8, 9, 10]] if carries_state(model) else [[5, 6, 7], [8, 9, 10, 11, 12]]
    reading = NextLogits(Subject(model, tokenizer("bos")), rows)
    reading(torch.tensor([[1], [1]]))
    for new in ([20, 30], [21, 31], [22, 32]):
        logits = reading(torch.tensor(new)[:, None])
        rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
        for row, mine in zip(rows, logits, strict=True):
            with torch.no_grad():
                whole = model(input_ids=torch.tensor([row])).logits[0, -1]
            torch.testing.assert_close(mine, whole, atol=1e-4, rtol=1e-4)


def test_prompts_of_a_table_are_prompts(tiny_model, tiny_tokenizer):
    few = {"max_new_tokens": 3, "prepend_bos": True, "progress": False}
    said = continuations(tiny_model("llama"), tiny_tokenizer, PROMPTS[:2], **few)
    for prompts in (pd.Series(PROMPTS[:2], index=[7, 3]), np.array(PROMPTS[:2]), (p for p in PROMPTS[:2])):
        assert continuations(tiny_model("llama"), tiny_tokenizer, prompts, **few) == said
    nats = cross_entropy(tiny_model("llama"), tiny_tokenizer, pd.Series(PROMPTS[:2]), progress=False)
    assert nats.values.shape == (2,)
    for nothing in (pd.Series([], dtype=object), np.array([], dtype=str)):
        with pytest.raises(EntangleError, match="need at least one prompt; got none"):
            continuations(tiny_model("llama"), tiny_tokenizer, nothing, **few)


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_progress_counts_tokens_to_the_last_one_also_of_texts_that_end_early(
    batch_tokens, tiny_model, tiny_tokenizer, monkeypatch
):
    bars = []

    class Bar(contextlib.nullcontext):
        def __init__(self, *, total, **_):
            super().__init__(self)
            self.total, self.steps = total, []
            bars.append(self)

        def update(self, n):
            self.steps.append(n)

    monkeypatch.setattr(generation, "progress_bar", Bar)
    model = copy.deepcopy(tiny_model("llama"))
    for ends in (None, list(range(0, model.config.vocab_size, 2))):  # half of all tokens end a text
        model.generation_config.eos_token_id = ends
        continuations(model, tiny_tokenizer, ["one", "two"], samples=2, max_new_tokens=6, batch_tokens=batch_tokens)
        assert sum(bars[-1].steps) == bars[-1].total == 24
    assert max(bars[0].steps) <= 4  # a step at a time, never a text at a time
