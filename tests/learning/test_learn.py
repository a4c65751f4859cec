"""Learned vectors: gradients are what another way gives, the budget holds, and rest is told from unrest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import entangle as en
from entangle.errors import EntangleError
from entangle.evaluation import kl as measured
from entangle.interventions import AddDirection, Compose, Edit
from entangle.learning.bench import Bench
from entangle.learning.descent import Run
from entangle.learning.fit import places_of
from entangle.learning.objectives import BETA, OBJECTIVES, ReFTr1
from entangle.learning.sides import split
from entangle.learning.texts import Batch, parts, rows_of
from entangle.models import fingerprint, is_hooked

WORDS = [*"thequickbrownfox", *"jumpsoverlazydog"]


def texts(n, seed, words=WORDS):
    generator = torch.Generator().manual_seed(seed)
    return [" ".join(words[i] for i in torch.randint(len(words), (9,), generator=generator).tolist()) for _ in range(n)]


@pytest.fixture(scope="module")
def bench_of(tiny_model, tiny_tokenizer):
    def make(method, layers=(1,), seed=0):
        model = tiny_model("llama")
        sides = [rows_of(model, tiny_tokenizer, texts(12, seed, words), None, 64) for words in (WORDS[:9], WORDS[9:])]
        bench = Bench(model, tiny_tokenizer, places_of(model, "resid_post", list(layers)), 0.1, sides[0])
        return Run(bench, OBJECTIVES[method], sides, sides[0], 12, 0.05, seed), sides

    return make


@pytest.mark.parametrize("method", ["ssv", "bipo"])
def test_the_first_gradient_is_that_of_the_forecasts_contrast(bench_of, tiny_model, tiny_tokenizer, method):
    """Another implementation, by another road: the scores of the forecast room."""
    run, _ = bench_of(method)
    sides = texts(12, 0, WORDS[:9]), texts(12, 0, WORDS[9:])
    contrast = en.Contrast.fit(tiny_model("llama"), tiny_tokenizer, *sides, layers=[1], progress=False)
    gradient = torch.zeros(32)
    with torch.enable_grad():
        from entangle.models import hooked

        with hooked(run._shifting()):
            for sign in run.objective.signs:
                run.objective.sign = sign
                for loss in run._losses(range(12)):
                    run._add([gradient], loss / len(run.objective.signs))
    per_token = contrast.toward / contrast.toward_tokens[:, None]
    wanted = {
        "ssv": -per_token.mean(0),
        "bipo": -BETA / 2 * (contrast.toward.mean(0) - contrast.away.mean(0)),
    }[method]
    torch.testing.assert_close(gradient / run.bench.scales[0], wanted.float(), rtol=1e-3, atol=1e-5)


def test_reft_r1_adds_what_its_formula_says():
    objective = ReFTr1([6], [1.0], seed=0)
    x = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(0))
    objective.real = torch.ones(2, 12, dtype=torch.bool)
    objective.real[1, 5:] = False
    w = objective.vectors[0].detach() / objective.vectors[0].detach().norm()
    wanted = torch.stack(
        [(row @ w).clamp_min(0)[:end].sort(descending=True).values[:8] for row, end in zip(x, (12, 8), strict=True)]
    )
    levels = [float(wanted[0].mean()), float((x[1, :5] @ w).clamp_min(0).sum() / 8)]
    added = objective.shift(0, x)
    for row, level in enumerate(levels):
        torch.testing.assert_close(added[row], (level * w).expand(12, 6))
    torch.testing.assert_close(objective.constant(0), w * sum(levels) / 2)
    rest = ((x @ w).clamp_min(0) * objective.real).sum() - 8 * sum(levels)
    torch.testing.assert_close(objective.penalty(), 0.005 * rest / 24)


def test_the_budget_is_met_as_another_reading_has_it(bench_of, tiny_model, tiny_tokenizer):
    run, _ = bench_of("ssv")
    vector = torch.randn(32, generator=torch.Generator().manual_seed(3))
    for size in (0.01, 1.0, 100.0):
        (found,), before = run.bench.at_budget([size * vector])
        clean = texts(12, 0, WORDS[:9])
        paid = measured(tiny_model("llama"), tiny_tokenizer, clean, AddDirection(found, layer=1), progress=False).mean
        assert paid <= 0.1 * 1.03
        assert paid > 0.09 or size > 1
        assert (before > 0.1) == (size >= 1.0)


@pytest.fixture(scope="module")
def example():
    model, tokenizer, said, _, _, clean = en.example()
    model.zero_grad(set_to_none=True)  # left from its training
    return model, tokenizer, said[0::2], said[1::2], clean[:24]


@pytest.mark.parametrize(("method", "layers", "steps"), [("bipo", 1, 20), ("ssv", [0, 1], 20), ("reft-r1", 1, 80)])
def test_what_is_learned_gains_on_other_texts_for_its_price(example, tmp_path, method, layers, steps):
    model, tokenizer, polite, rude, clean = example
    before = fingerprint(model)
    learned = en.learn(
        model,
        tokenizer,
        polite[:32],
        rude[:32],
        method=method,
        layers=layers,
        clean=clean,
        steps=steps,
        must_converge=False,
        progress=False,
    )
    assert 0.05 < learned.kl <= 0.103
    assert isinstance(learned.edit, Compose if isinstance(layers, list) else AddDirection)
    # On texts that took no part it gains what it was learned for, and the opposite vector loses it.
    gains = []
    for alpha in (1.0, -1.0):
        sides = [
            en.evaluation.language_shift(model, tokenizer, side[32:], learned.edit, alpha=alpha, progress=False)
            for side in (polite, rude)
        ]
        polites, rudes = (float((each.plain_nats - each.nats).sum() / each.tokens.sum()) for each in sides)
        gains.append(polites - rudes if method == "bipo" else polites)
    assert gains[0] > 0 > gains[1]
    learned.edit.save_pretrained(tmp_path / "edit")
    x = torch.randn(3, 32)
    if not isinstance(layers, list):
        assert torch.equal(Edit.from_pretrained(tmp_path / "edit")(x), learned.edit(x))
    assert fingerprint(model) == before
    assert not is_hooked(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert list(learned.to_frame().columns) == ["step", "loss", "kl", "weight"]
    assert ("did not converge" in repr(learned)) == (not learned.converged)


def test_a_vector_that_did_not_come_to_rest_says_so_in_one_line(example):
    model, tokenizer, polite, rude, clean = example
    with pytest.raises(EntangleError, match=r"bipo did not converge in 10 steps .* give more steps=") as caught:
        en.learn(model, tokenizer, polite[:16], rude[:16], layers=1, clean=clean, steps=10, progress=False)
    assert "\n" not in str(caught.value)


def test_sides_that_are_one_teach_nothing(example):
    model, tokenizer, polite, _, clean = example
    with pytest.raises(EntangleError, match="found nothing that does better on the selection texts"):
        en.learn(model, tokenizer, polite[:16], polite[:16], layers=1, clean=clean, steps=50, progress=False)


def test_groups_are_not_divided():
    groups = [i // 3 for i in range(30)]
    fit, held = split(30, groups, torch.Generator().manual_seed(0))
    assert sorted(fit + held) == list(range(30))
    assert not {groups[i] for i in fit} & {groups[i] for i in held}
    assert len(held) == 6
    loose = split(30, None, torch.Generator().manual_seed(0))[1]
    assert len({groups[i] for i in loose}) > 2  # by pairs, groups are divided


def test_continuations_count_without_their_prompts(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    rows = rows_of(model, tiny_tokenizer, ["sat on the mat", "the moon"], ["a cat", "look at"], 64)
    batch = Batch.of(model, tiny_tokenizer, rows)
    found = batch.log_likelihood(model)
    for row, likelihood in zip(rows, found, strict=True):
        logs = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        wanted = sum(logs[i - 1, row.ids[i]] for i in range(row.begins, len(row.ids)))
        torch.testing.assert_close(likelihood, wanted, rtol=1e-4, atol=1e-4)
        assert row.begins > 1
    assert list(parts(model, rows)) == [[0, 1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lora"}, "method must be one of 'ssv', 'bipo', 'reft-r1'"),
        ({"kl": 0.0}, "positive budget"),
        ({"steps": 3}, "got kl=0.1, steps=3"),
        ({"away": 11}, "needs pairs, .* got 12 and 11"),
        ({"toward": 4, "away": 4}, "needs 10 pairs or more"),
        ({"layers": []}, "needs a layer"),
        ({"layers": 7}, "7"),
        ({"site": "resid_mid"}, "learn at attn_out"),
        ({"groups": [1, 2]}, "one for each of 12 pairs"),
        ({"prompts": (["a"], ["b"])}, "12 texts and 1 prompts"),
    ],
)
def test_what_cannot_be_learned_says_so_in_one_line(tiny_model, tiny_tokenizer, options, message):
    sides = [texts(options.pop(side, 12), i) for i, side in enumerate(("toward", "away"))]
    with pytest.raises(EntangleError, match=message) as caught:
        en.learn(tiny_model("llama"), tiny_tokenizer, *sides, **{"layers": 1, "progress": False, **options})
    assert "\n" not in str(caught.value)


def test_layers_count_from_the_end_as_far_as_there_are_layers(tiny_model):
    model = tiny_model("llama")
    assert [place.layer for place in places_of(model, "resid_post", [-1, 0])] == [2, 0]
    assert [place.layer for place in places_of(model, "resid_post", np.int64(-3))] == [0]
    for layer in (-4, 3):
        with pytest.raises(EntangleError, match=rf"layer {layer} was asked for, but .* has layers 0 to 2"):
            places_of(model, "resid_post", layer)
