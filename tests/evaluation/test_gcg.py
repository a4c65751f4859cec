"""A suffix that is searched for along the gradient makes its target likelier than as many random ones would."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import tokenizing
from entangle.composition import new_model, train_tokenizer
from entangle.errors import EntangleError
from entangle.evaluation import continuations, gcg
from entangle.evaluation.language.gcg import _Search, allowed_tokens
from entangle.interventions import AddDirection, steer
from entangle.models.tokens import frame
from tiny import enlarge

PROMPT, TARGET = "the quick", " lazy dog"
QUICK = {"length": 4, "steps": 8, "width": 16, "top_k": 16, "prepend_bos": True}


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
OTHERS = {
    "gpt2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64},
    "olmo2": {name: size for name, size in SIZES.items() if name != "head_dim"},
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the quick brown fox jumps over the lazy dog"], 300)


@pytest.fixture
def build(tokenizer):
    def made(model_type: str):
        model = new_model({"model_type": model_type, **OTHERS.get(model_type, SIZES)}, tokenizer, seed=0)
        torch.manual_seed(0)
        return enlarge(model).eval()

    return made


def loss_of(model, tokenizer, suffix: str) -> float:
    """The target's cross-entropy after the suffix as text, by the model's own loss."""
    before = [tokenizer.bos_token_id, *tokenizer(PROMPT + suffix, add_special_tokens=False)["input_ids"]]
    target = tokenizer(TARGET, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + target])
    labels = ids.clone()
    labels[:, : len(before)] = -100
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


@pytest.mark.parametrize("model_type", ["gpt2", "olmo2", "gemma3_text"])
def test_slopes_are_the_gradient_of_every_token(build, tokenizer, model_type):
    """Checked against the definition: the derivative by the weight of a one-hot row, through the embedding."""
    model = build(model_type)
    search = _Search(model, tokenizer, PROMPT, TARGET, True)
    suffix = search.random(3, torch.Generator().manual_seed(0))
    ids = torch.cat([search.before, suffix, search.target])
    one_hot = F.one_hot(ids, model.config.vocab_size).float().requires_grad_()
    table = model.get_input_embeddings()(torch.arange(model.config.vocab_size))
    start = len(search.before) + len(suffix)
    logits = model(inputs_embeds=(one_hot @ table)[None], use_cache=False).logits[0, start - 1 : -1]
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, search.target), one_hot)
    wanted = gradient[len(search.before) : start][:, search.allowed]
    torch.testing.assert_close(search.slopes(suffix), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model_type", ["gpt2", "olmo2"])
def test_a_searched_suffix_beats_as_many_random_ones(build, tokenizer, model_type):
    model = build(model_type)
    tries = QUICK["steps"] * QUICK["width"]
    better = 0
    for seed in range(4):
        found = gcg(model, tokenizer, PROMPT, TARGET, seed=seed, **QUICK)
        search = _Search(model, tokenizer, PROMPT, TARGET, True)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.stack([search.random(QUICK["length"], generator) for _ in range(tries)])
        better += found.loss < float(search.losses(drawn).min())
        assert found.loss == min(found.started, *found.losses)
        assert found.loss < found.started
        assert len(found.losses) == QUICK["steps"]
        assert loss_of(model, tokenizer, found.text) == pytest.approx(found.loss, abs=1e-4)
        assert loss_of(model, tokenizer, found.start) == pytest.approx(found.started, abs=1e-4)
    assert better == 4


def test_a_steered_model_is_attacked_as_it_is_and_left_as_it_was(build, tokenizer):
    model = build("olmo2")
    vector = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    edit = AddDirection(vector, site="resid_post", layer=1)
    plain = gcg(model, tokenizer, PROMPT, TARGET, **QUICK)
    before = loss_of(model, tokenizer, plain.text)
    with steer(model, edit, alpha=4.0):
        hooks = count_hooks(model)
        steered = gcg(model, tokenizer, PROMPT, TARGET, **QUICK)
        assert count_hooks(model) == hooks
        assert loss_of(model, tokenizer, steered.text) == pytest.approx(steered.loss, abs=1e-4)
        assert steered.loss < steered.started
        assert steered.start == plain.start
        assert steered.started != plain.started
    assert count_hooks(model) == 0
    assert loss_of(model, tokenizer, plain.text) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def count_hooks(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_hooks_go_even_when_the_model_fails(build, tokenizer, monkeypatch):
    model = build("olmo2")
    search = _Search(model, tokenizer, PROMPT, TARGET, True)
    suffix = search.random(3, torch.Generator())
    monkeypatch.setattr(search, "_losses", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        search.slopes(suffix)
    assert count_hooks(model) == 0


def test_the_seed_decides_the_suffix(build, tokenizer):
    model = build("gpt2")
    first = gcg(model, tokenizer, PROMPT, TARGET, seed=1, **QUICK)
    torch.manual_seed(99)
    assert gcg(model, tokenizer, PROMPT, TARGET, seed=1, **QUICK) == first
    assert gcg(model, tokenizer, PROMPT, TARGET, seed=2, **QUICK).start != first.start


def test_suffixes_are_ordinary_text_that_reads_back(build, tokenizer):
    found = gcg(build("gpt2"), tokenizer, PROMPT, TARGET, **QUICK)
    assert found.text.isascii()
    assert found.text.isprintable()
    said = tokenizer(PROMPT + found.text, add_special_tokens=False)["input_ids"]
    assert len(said) == len(tokenizer(PROMPT, add_special_tokens=False)["input_ids"]) + QUICK["length"]
    assert not set(allowed_tokens(tokenizer).tolist()) & set(tokenizer.all_special_ids)


def test_a_vanishing_nucleus_is_greedy(build, tokenizer):
    """What attacks are judged by."""
    model = build("gpt2")
    ids = tokenizer(PROMPT, return_tensors="pt")
    wanted = model.generate(**ids, do_sample=False, max_new_tokens=6, pad_token_id=0)[0, ids["input_ids"].shape[1] :]
    said = continuations(model, tokenizer, [PROMPT], top_p=1e-6, max_new_tokens=6, progress=False)
    assert said == [[tokenizer.decode(wanted, skip_special_tokens=True)]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"length": 0}, "length of an attack is at least 1, not 0"),
        ({"steps": -1}, "steps of an attack is at least 0"),
        ({"width": 0}, "width of an attack"),
        ({"prompt": " "}, "is empty"),
        ({"target": ""}, "is empty"),
        ({"prompt": [{"role": "user", "content": "the quick"}]}, "needs its prompt as a string, but got list"),
        ({"length": 60}, r"make \d+ tokens, but the context holds 64"),
    ],
)
def test_bad_input_is_one_clear_line(build, tokenizer, changed, message):
    options = {"prompt": PROMPT, "target": TARGET, **QUICK, **changed}
    with pytest.raises(EntangleError, match=message):
        gcg(build("gpt2"), tokenizer, options.pop("prompt"), options.pop("target"), **options)


@pytest.mark.parametrize("kind", ["bos_eos", "eos", "cls_sep"])
def test_the_attacked_prompt_is_not_closed(kind, build, tokenizer):
    """A tokenizer that closes texts does not put its end between prompt, suffix and target."""
    closing = tokenizing.tokenizer(kind)
    search = _Search(build("llama"), closing, "the cat", "dog", False)
    around = frame(closing)
    bare = [closing(text, add_special_tokens=False)["input_ids"] for text in ("the cat", "dog")]
    assert search.before.tolist() == [*around.opening, *bare[0]]
    assert search.target.tolist() == bare[1]
    suffix = torch.tensor([closing(" moon fox", add_special_tokens=False)["input_ids"]])
    assert closing("the cat")["input_ids"] == [*search.before.tolist(), *around.closing]
    assert search.losses(suffix).isfinite().all()
