"""Prompts, checkpoints and self-debiasing: each against the formula or the model it stands for."""

import numpy as np
import pytest
import torch

from entangle.errors import EntangleError
from entangle.evaluation import (
    AtStrengths,
    Checkpoint,
    Prompt,
    SelfDebias,
    continuations,
    cross_entropy,
    language_shift,
    tradeoff,
)
from entangle.evaluation.language.generation import Sampling, sample
from entangle.evaluation.language.subject import Method, Subject, applied
from entangle.evaluation.methods.mixing import NextLogits
from entangle.interventions import AddDirection

PROMPTS = ["the cat", "a quick brown fox jumps over", "moon"]
TEXTS = ["the cat sat on the mat", "a quick brown fox jumps over the lazy dog", "the moon"]
INVITED = "the lazy dog and"


def continued(method, model, tokenizer, alpha=1.0, **options):
    with applied(method, model, tokenizer, alpha) as subject:
        return sample(subject, PROMPTS, Sampling(max_new_tokens=6, **options), progress=False)


def test_all_are_methods():
    for method in (AtStrengths([]), Prompt(), Checkpoint("somewhere"), SelfDebias()):
        assert isinstance(method, Method)


def test_a_prompt_continues_what_follows_it(tiny_model, tiny_tokenizer):
    model = tiny_model("gpt2")
    prompted = continued(Prompt("sat on "), model, tiny_tokenizer, top_p=1e-6)
    written_out = continuations(
        model, tiny_tokenizer, [f"sat on {p}" for p in PROMPTS], top_p=1e-6, max_new_tokens=6, progress=False
    )
    assert prompted == written_out
    assert prompted != continued(Prompt("sat on "), model, tiny_tokenizer, alpha=0, top_p=1e-6)


def test_a_checkpoint_is_measured_in_the_plain_models_place(tiny_model, tiny_tokenizer, tmp_path):
    plain, other = tiny_model("llama"), tiny_model("llama", seed=1)
    shift = language_shift(plain, tiny_tokenizer, TEXTS, Checkpoint(other), progress=False)
    np.testing.assert_array_equal(shift.nats, cross_entropy(other, tiny_tokenizer, TEXTS, progress=False).values)
    np.testing.assert_array_equal(shift.plain_nats, cross_entropy(plain, tiny_tokenizer, TEXTS, progress=False).values)
    itself = language_shift(plain, tiny_tokenizer, TEXTS, Checkpoint(plain), progress=False)
    np.testing.assert_allclose(itself.kl, 0, atol=1e-6)
    other.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    from_disk = language_shift(plain, tiny_tokenizer, TEXTS, Checkpoint(tmp_path), progress=False)
    np.testing.assert_allclose(from_disk.nats, shift.nats, rtol=1e-6)


def test_a_checkpoint_of_another_vocabulary_is_refused(tiny_model, tiny_tokenizer):
    other = type(tiny_model("llama"))(type(tiny_model("llama").config)(**{
        **tiny_model("llama").config.to_dict(), "vocab_size": 40
    }))  # fmt: skip
    with pytest.raises(EntangleError, match="it has 40 tokens, the plain model 96"):
        language_shift(tiny_model("llama"), tiny_tokenizer, TEXTS, Checkpoint(other), progress=False)


def debiased(model, ids, invited, decay):
    """Self-debiasing written out for one text alone."""
    with torch.no_grad():
        p = model(torch.tensor([ids])).logits[0].double().softmax(-1)
        q = model(torch.tensor([[*invited, *ids]])).logits[0, len(invited) :].double().softmax(-1)
    weight = torch.where(p >= q, torch.ones_like(p), torch.exp(decay * (p - q)))
    return weight * p / (weight * p).sum(-1, keepdim=True)


def test_self_debiasing_is_the_papers_formula(causal_lm, tiny_tokenizer):
    invited = tiny_tokenizer(INVITED)["input_ids"]
    shift = language_shift(causal_lm, tiny_tokenizer, TEXTS, SelfDebias(INVITED), alpha=20, progress=False)
    for i, text in enumerate(TEXTS):
        ids = tiny_tokenizer(text)["input_ids"]
        p = debiased(causal_lm, ids, invited, 20)[:-1]
        expected = -p.gather(-1, torch.tensor(ids[1:])[:, None]).log().sum().item()
        assert shift.nats[i] == pytest.approx(expected, rel=1e-3)
    assert np.all(shift.kl > 0)


def test_self_debiased_text_is_drawn_from_that_distribution(causal_lm, tiny_tokenizer):
    found = continued(SelfDebias(INVITED), causal_lm, tiny_tokenizer, alpha=20, top_p=1e-6)
    invited = tiny_tokenizer(INVITED)["input_ids"]
    for prompt, (text,) in zip(PROMPTS, found, strict=True):
        ids = tiny_tokenizer(prompt)["input_ids"]
        new = []
        while len(new) < 6 and tiny_tokenizer.eos_token_id not in new:
            new.append(debiased(causal_lm, [*ids, *new], invited, 20)[-1].argmax().item())
        assert text == tiny_tokenizer.decode(new, skip_special_tokens=True)


def test_the_second_reading_does_not_need_a_cache(tiny_model, tiny_tokenizer):
    model = tiny_model("gpt2")
    rows = [tiny_tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    cached, anew = (NextLogits(Subject(model, tiny_tokenizer), rows) for _ in range(2))
    for step in range(4):
        token = torch.full((3, 1), 5 + step)
        anew.cache = None
        torch.testing.assert_close(cached(token), anew(token), rtol=1e-4, atol=1e-4)
    assert cached.cache is not None


def test_methods_and_edits_share_one_sweep(tiny_model, tiny_tokenizer):
    def vowels(texts):
        return np.array([sum(c in "aeiou" for c in text) / len(text) for text in texts])

    edit = AddDirection(torch.ones(32), site="resid_post", layer=1)
    frame = tradeoff(
        tiny_model("llama"),
        tiny_tokenizer,
        {
            "add": edit,
            "once": AtStrengths(edit, (1.0,)),
            "prompting": Prompt("the "),
            "checkpoint": Checkpoint(tiny_model("llama", seed=1)),
            "self-debias": SelfDebias(INVITED, alphas=(5.0,)),
        },
        alphas=[1.0, 2.0],
        prompts=PROMPTS,
        scorer=vowels,
        texts=TEXTS,
        max_new_tokens=4,
        progress=False,
    ).to_frame()
    alphas = frame.groupby("method", sort=False)["alpha"].apply(list).to_dict()
    assert alphas == {
        "add": [0, 1, 2], "once": [0, 1], "prompting": [0, 1], "checkpoint": [0, 1], "self-debias": [0, 5]
    }  # fmt: skip
    changed = frame[frame["alpha"] > 0]
    assert (changed["kl"] > 0).all()
    add, once = (changed[changed["method"] == name].iloc[0] for name in ("add", "once"))
    assert (add["ce"], add["toxicity"]) == (once["ce"], once["toxicity"])
