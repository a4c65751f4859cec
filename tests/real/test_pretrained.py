"""What holds on small random models holds on pretrained ones: 262,144 tokens, sliding windows, massive activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import entangle as en
from entangle.data import corpus
from entangle.evaluation import continuations, cross_entropy, language_shift
from entangle.interventions import FunctionForm
from entangle.models import Atlas, fingerprint, load_tokenizer, tokenizer_fingerprint

pytestmark = pytest.mark.real

TEXTS = [document.text for document in corpus.generate(12, rudeness=0.0, seed=9)]
SHORT = ["The cat sat on the mat.", "Rain", "What did they say about the harbour when the boats came in"]


@pytest.fixture(scope="module")
def labelled() -> Any:
    return corpus.labelled("sentiment", 96, seed=3)


@pytest.fixture(scope="module")
def heads(model, tokenizer, labelled):
    return en.collect(model, tokenizer, list(labelled.texts), sites="z", tokens="last", progress=False)


@pytest.fixture(scope="module")
def iti(heads, labelled):
    return en.ITI.fit(heads, labelled.labels, top_k=8)


@pytest.fixture(scope="module")
def batch(model, tokenizer):
    return tokenizer(SHORT, return_tensors="pt", padding=True, padding_side="left")


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def test_its_hooks_read_and_write_what_it_computes(model, tokenizer):
    assert en.verify(model, tokenizer, texts=SHORT[:2]).passed


def test_what_is_captured_is_what_transformers_returns(model, tokenizer):
    acts = en.collect(model, tokenizer, SHORT, sites=["resid_pre", "resid_post"], tokens="all", progress=False)
    for i, row in enumerate(tokenizer(SHORT).input_ids):
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        own = acts.rows[:, 0] == i
        positions = acts.rows[own, 1]
        torch.testing.assert_close(acts["resid_pre"][own, 0], hidden[0][0, positions], atol=1e-4, rtol=1e-4)
        for layer in range(Atlas(model).n_layers - 1):  # the last of theirs is behind the final norm
            theirs = hidden[layer + 1][0, positions]
            near = 1e-5 * float(hidden[layer + 1].abs().max())
            torch.testing.assert_close(acts["resid_post"][own, layer], theirs, atol=near, rtol=1e-3)
            assert (acts["resid_pre"][own, layer] - theirs).abs().max() > 100 * near


def test_the_mean_over_a_text_leaves_its_special_tokens_out(model, tokenizer):
    layers = [2, 9]
    mean = en.collect(model, tokenizer, SHORT, sites="resid_post", layers=layers, tokens="mean", progress=False)[
        "resid_post"
    ]
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    for text, ours in zip(SHORT, mean, strict=True):
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        kept = ~torch.isin(ids[0], special)
        for each, layer in zip(ours, layers, strict=True):
            states = hidden[layer + 1][0]
            expected = states[kept].mean(0)
            assert (each - expected).norm() < 1e-3 * expected.norm()
            if not kept.all():  # the first token of all holds the massive activations
                assert (each - states.mean(0)).norm() > 0.1 * expected.norm()


def test_an_intervention_is_the_same_in_hooks_in_weights_and_from_disk(model, tokenizer, iti, batch, tmp_path):
    with en.steer(model, iti, alpha=6):
        steered = logits(model, batch)
    baked = iti.bake(model, alpha=6)
    moved = (steered - logits(model, batch)).abs().max()
    assert moved > 0.1
    assert (logits(baked, batch) - steered).abs().max() < 1e-3 * moved
    baked.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path))) == tokenizer_fingerprint(tokenizer)
    stock = (tmp_path / "config.json").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval() if stock else en.load_baked(tmp_path)
    assert getattr(again.config, "quantization_config", None) is None
    assert torch.equal(logits(again, batch), logits(baked, batch))
    assert fingerprint(again)["weights"] != fingerprint(model)["weights"] or not stock


class _OnlyAt(en.interventions.Edit):
    """An edit at the columns of the whole padded text that a scope names, worked out here from its definition."""

    def __init__(self, edit, mask, scope):
        self.edit, self.mask, self.scope = edit, mask, scope

    def forms(self, alpha=1.0):
        rows, width = self.mask.shape
        lengths = self.mask.sum(1, keepdim=True)

        def named(size):
            column = torch.arange(size).expand(rows, size)
            position = column - (width - lengths)  # prompts are padded on the left
            if isinstance(self.scope, torch.Tensor):
                return torch.nn.functional.pad(self.scope, (0, size - width))
            if isinstance(self.scope, int):
                return position >= self.scope
            return {"all": column >= 0, "prompt": column < width, "generated": column >= width}[self.scope]

        def make(device, dtype):
            return lambda x: x + named(x.shape[1])[..., None] * alpha * self.edit.vector

        return [FunctionForm(self.edit.site, self.edit.layer, None, make)]


@pytest.mark.parametrize("scope", ["all", "prompt", "generated", 3, "mask"])
def test_generation_under_a_scope_is_the_whole_text_run_anew_for_every_token(model, batch, scope):
    layer, ids, mask = Atlas(model).n_layers // 2, batch["input_ids"], batch["attention_mask"]
    tokens = (torch.arange(ids.shape[1]) % 2 == 0).expand_as(ids) if scope == "mask" else scope
    drawn = torch.randn(Atlas(model).d_model, generator=torch.Generator().manual_seed(1))
    edit = en.AddDirection(drawn, "resid_post", layer)
    with torch.no_grad():
        stream = model(**batch, output_hidden_states=True).hidden_states[layer + 1]
    alpha = 0.6 * float(stream[mask.bool()].norm(dim=-1).median())
    n_new = 4
    options = {"do_sample": False, "max_new_tokens": n_new, "min_new_tokens": n_new}
    plain = model.generate(**batch, **options)
    with en.steer(model, edit, alpha=alpha, tokens=tokens):
        cached = model.generate(**batch, **options)
    stops = model.generation_config.eos_token_id
    with en.steer(model, _OnlyAt(edit, mask, tokens), alpha=alpha):
        for _ in range(n_new):
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            with torch.no_grad():
                out = model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
                ).logits[:, -1]
            out[:, stops] = -torch.inf
            ids = torch.cat([ids, out.argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    assert torch.equal(cached, ids)
    assert not torch.equal(cached, plain)


def test_a_forecast_from_a_few_texts_names_the_order_of_a_small_shift_s_price(model, tokenizer, labelled):
    layer = Atlas(model).n_layers // 2
    acts = en.collect(model, tokenizer, list(labelled.texts), sites="resid_post", layers=[layer], progress=False)
    x, y = acts["resid_post"][:, 0].double(), torch.as_tensor(labelled.labels).bool()
    edit = en.AddDirection((x[y].mean(0) - x[~y].mean(0)).float(), "resid_post", layer)
    options = {"max_length": 24, "progress": False}
    metric = en.ShiftMetric.fit(model, tokenizer, TEXTS[:8], layers=[layer], samples=4, **options)
    alpha = float((0.03 / metric.price(edit, 1.0).value) ** 0.5)
    shift = language_shift(model, tokenizer, TEXTS[8:], edit, alpha=alpha, **options)
    measured = float(shift.kl.sum() / shift.tokens.sum())
    assert metric.price(edit, alpha).value == pytest.approx(0.03, rel=1e-3)
    assert 0.3 < measured / 0.03 < 3
    more = language_shift(model, tokenizer, TEXTS[8:], edit, alpha=4 * alpha, **options)
    assert more.kl.sum() > 4 * shift.kl.sum()


def test_a_small_study_runs_to_its_end_and_says_something(model, tokenizer):
    rude = corpus.labelled("rudeness", 96, seed=3)
    tense = corpus.labelled("tense", 64, seed=3)
    study = en.study(
        model,
        tokenizer,
        rude,
        concepts={"tense": tense},
        layers="best",
        prompts=corpus.prompts(4, seed=1),
        clean=TEXTS[:4],
        alphas=[6],
        methods=["ITI"],
        name="rudeness",
        max_length=48,
        max_new_tokens=4,
        samples=1,
        n_resamples=100,
        n_permutations=20,
        progress=False,
    )
    assert study.missing == {}
    assert len(study.answer()) >= 3
    assert study.probes["resid_post"].accuracy.max() > 0.6
    assert study.about["fingerprint"]["dtype"] == "float32"
    rows = study.tradeoff.to_frame().set_index(["method", "alpha"])
    assert rows["kl"].max() > 0
    assert np.isfinite(rows["ce"]).all()


def test_sampling_repeats_and_cross_entropy_is_that_of_transformers(model, tokenizer):
    options = {"max_new_tokens": 4, "samples": 2, "seed": 5, "progress": False}
    once, again = (continuations(model, tokenizer, SHORT[:2], **options) for _ in range(2))
    assert once == again
    row = torch.tensor([tokenizer(TEXTS[0]).input_ids[:24]])
    with torch.no_grad():
        theirs = float(model(input_ids=row, labels=row).loss)
    ours = cross_entropy(model, tokenizer, [TEXTS[0]], max_length=24, progress=False)
    assert ours.mean == pytest.approx(theirs, rel=1e-4)
