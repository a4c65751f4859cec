"""Sampling: the right distribution, the same randomness in every batch and condition, no harm from padding."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TopPLogitsWarper

from entangle.errors import EntangleError
from entangle.evaluation import continuations
from entangle.evaluation.language.generation import nucleus_choice

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
        with pytest.raises(EntangleError, match="cannot generate"):
            continuations(model, tiny_tokenizer, ["the cat"], progress=False)


def test_a_broken_model_is_said_to_be_broken(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    hook = model.lm_head.register_forward_hook(lambda module, args, output: output * torch.nan)
    try:
        with pytest.raises(EntangleError, match="not finite"):
            continuations(model, tiny_tokenizer, ["the cat"], progress=False)
    finally:
        hook.remove()
