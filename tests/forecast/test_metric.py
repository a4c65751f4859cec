"""The metric of shifts is the Fisher information of the next token, and its prices are those that are paid."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import entangle as en
from entangle.evaluation import kl
from entangle.forecast import NaturalShift, ShiftMetric
from entangle.models import Atlas, Place, hooked

WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"),
    *("a", "cat", "sat", "on", "the", "mat", "and", "looked", "at", "the", "moon"),
)
TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 3 + i % 5]) for i in range(12)]


def exact(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], places: list[Place]) -> Tensor:
    """J' (diag p - p p') J of a shift of all tokens at these places, by torch's own Jacobian."""
    total, n_tokens = torch.zeros((), dtype=torch.float64), 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]

        def logits(shift: Tensor, ids: Tensor = ids) -> Tensor:
            parts = shift.split([place.size for place in places])
            with hooked((place, lambda x, part=part: x + part) for place, part in zip(places, parts, strict=True)):
                return model(input_ids=ids, use_cache=False).logits[0, :-1]

        zero = torch.zeros(sum(place.size for place in places))
        p = logits(zero).softmax(-1).detach().double()
        j = torch.autograd.functional.jacobian(logits, zero, vectorize=True).double()
        total = (
            total
            + torch.einsum("tvi,tv,tvj->ij", j, p, j)
            - torch.einsum("ti,tj->ij", *(2 * [(j * p[..., None]).sum(1)]))
        )
        n_tokens += len(p)
    return total / n_tokens


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma3_text"])
def test_the_mean_outer_product_of_scores_is_the_fisher_information(
    model_type: str, tiny_model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model(model_type)
    metric = ShiftMetric.fit(model, tiny_tokenizer, TEXTS, layers=[0, 2], samples=60, progress=False)
    truth = exact(model, tiny_tokenizer, TEXTS, [Atlas(model).place("resid_post", layer) for layer in (0, 2)])
    shifts = torch.linalg.eigh(truth)[1][:, -6:].T  # the six dearest shifts, of both layers at once
    per_draw = (metric.scores.double() @ shifts.T).square().sum(0) / metric.counted.sum()
    error = per_draw.std(0) / len(per_draw) ** 0.5
    wanted = torch.einsum("kd,de,ke->k", shifts, truth, shifts)
    assert ((per_draw.mean(0) - wanted).abs() < 4 * error).all()
    assert ((per_draw.mean(0) / 2 - wanted).abs() > 4 * error).any()  # a factor of two would be seen
    assert metric.at(layers=[2]).matrix("resid_post", 2).shape == (32, 32)


def test_scores_do_not_depend_on_batches_or_padding(tiny_model, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    one, many = (
        ShiftMetric.fit(tiny_model("llama"), tiny_tokenizer, TEXTS, batch_tokens=n, progress=False) for n in (1, 4096)
    )
    torch.testing.assert_close(one.scores, many.scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.observed, many.observed, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.local_scores, many.local_scores, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one.scores, one.scores.roll(1, 0))


def test_a_shift_that_the_final_norm_takes_out_costs_nothing(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    metric = ShiftMetric.fit(tiny_model("gpt2"), tiny_tokenizer, TEXTS, layers=[2], progress=False)
    free = en.AddDirection(torch.ones(32), "resid_post", 2)  # a LayerNorm subtracts the mean
    dear = en.AddDirection(torch.ones(32) * torch.tensor([1.0, -1.0]).repeat(16), "resid_post", 2)
    assert metric.price(free).value < 1e-9 * metric.price(dear).value


@pytest.mark.parametrize("site", ["resid_post", "z", "attn_out", "mlp_out"])
def test_small_shifts_cost_what_was_foretold(site: str, tiny_model, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    metric = ShiftMetric.fit(model, tiny_tokenizer, TEXTS, sites=site, samples=100, progress=False)
    size = Atlas(model).size(site, 1)
    edit = en.AddDirection(torch.randn(size, generator=torch.Generator().manual_seed(0)), site, 1)
    alpha = (0.002 / metric.price(edit).value) ** 0.5
    foretold = metric.price(edit, alpha)
    measured = kl(model, tiny_tokenizer, TEXTS, edit, alpha=alpha, progress=False).mean
    assert measured == pytest.approx(foretold.value, rel=0.25)
    assert foretold.low < measured < foretold.high
    assert foretold.holds
    assert not metric.price(edit, 1e3 * alpha).holds


def test_what_several_layers_and_heads_cost_together_has_its_cross_terms(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama")
    metric = ShiftMetric.fit(model, tiny_tokenizer, TEXTS, sites="z", samples=200, progress=False)
    generator = torch.Generator().manual_seed(1)
    iti = en.ITI([(0, 1), (2, 3), (2, 0)], torch.randn(3, 8, generator=generator), torch.ones(3))
    alpha = (0.002 / metric.price(iti).value) ** 0.5
    measured = kl(model, tiny_tokenizer, TEXTS, iti, alpha=alpha, progress=False).mean
    assert measured == pytest.approx(metric.price(iti, alpha).value, rel=0.2)
    there_and_back = en.Compose((iti, en.ITI(iti.heads, -iti.directions, iti.sigmas)))
    assert metric.price(there_and_back).value < 1e-9


@pytest.mark.parametrize("edit", ["ablate", "scale", "erase-like"])
def test_what_moves_each_token_otherwise_is_priced_too(
    edit: str, tiny_model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama")
    texts = [" ".join(WORDS[(i * j) % 17] for j in range(1, 9)) for i in range(1, 40)]
    metric = ShiftMetric.fit(model, tiny_tokenizer, texts, layers=[1], samples=24, positions=8, progress=False)
    acts = en.collect(model, tiny_tokenizer, texts, sites="resid_post", layers=[1], tokens="all", progress=False)
    mean = acts["resid_post"][:, 0].mean(0)
    u = torch.randn(32, generator=torch.Generator().manual_seed(2))
    made = {
        "ablate": en.Ablate(u, "resid_post", 1),
        "scale": en.Scale(u, 0.2, "resid_post", 1, mean=mean),
        "erase-like": en.Ablate(torch.stack([u, u.roll(3)]), "resid_post", 1, mean=mean),
    }[edit]
    alpha = (0.002 / metric.price(made).value) ** 0.5
    measured = kl(model, tiny_tokenizer, texts, made, alpha=alpha, progress=False).mean
    assert measured == pytest.approx(metric.price(made, alpha).value, rel=0.35)


def test_a_shift_of_what_is_generated_alone_costs_less_than_of_all(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    fit = {
        tokens: ShiftMetric.fit(
            tiny_model("llama"),
            tiny_tokenizer,
            TEXTS,
            prompts=TEXTS[::-1],
            tokens=tokens,
            layers=[1],
            samples=30,
            progress=False,
        )
        for tokens in ("all", "prompt", "generated")
    }
    edit = en.AddDirection(torch.randn(32, generator=torch.Generator().manual_seed(3)), "resid_post", 1)
    prices = {tokens: metric.price(edit).value for tokens, metric in fit.items()}
    assert prices["prompt"] < prices["generated"] < 1.5 * prices["all"]
    # Scores add up: a shift of all is one of the prompt and one of the rest.
    together = fit["prompt"].scores + fit["generated"].scores
    torch.testing.assert_close(together, fit["all"].scores, atol=1e-4, rtol=1e-4)


def test_a_large_edit_is_foretold_by_reading_it_itself(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    options = {"sites": ["resid_post", "z"], "samples": 40, "progress": False}
    ShiftMetric.fit(model, tiny_tokenizer, TEXTS, **options).save(tmp_path)
    metric = ShiftMetric.load(tmp_path, model=model)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 32, generator=generator)
    edits = [
        en.AddDirection(vectors[0], "resid_post", 1),
        en.Compose((en.AddDirection(vectors[1], "resid_post", 0), en.AddDirection(vectors[2], "resid_post", 2))),
        en.AddDirection(vectors[0, :8], "z", 1, head=2),
    ]
    off = []
    for edit in edits:
        alpha = (0.8 / metric.price(edit, n_resamples=10).value) ** 0.5  # far beyond where the price is quadratic
        paid = kl(model, tiny_tokenizer, TEXTS, edit, alpha=alpha, progress=False).mean
        blind, read = (
            metric.price(edit, alpha, n_resamples=10, **given)
            for given in ({}, {"model": model, "tokenizer": tiny_tokenizer})
        )
        off.append((blind.value / paid - 1, read.value / paid - 1))
        assert read.holds == (read.off <= 0.15)
        assert read.off == pytest.approx(abs(read.value / blind.value - 1))
        assert read.paid_low < paid < read.paid_high < float("inf") == blind.paid_high
    blind_off, read_off = torch.tensor(off).abs().T
    assert (read_off < 0.15).all()  # what the draws leave
    assert blind_off.max() > 2
    small = metric.price(edits[0], alpha / 100, model=model, tokenizer=tiny_tokenizer)
    assert small.off < 0.05
    assert not en.models.is_hooked(model)


def test_an_edit_is_read_on_the_tokens_that_it_shifts(tiny_model, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    prompts, texts = [f"the {word}" for word in WORDS[:12]], [f" {text}" for text in TEXTS]
    edit = en.AddDirection(torch.randn(32, generator=torch.Generator().manual_seed(1)), "resid_post", 1)
    ratios = {}
    for tokens in ("all", "generated"):
        metric = ShiftMetric.fit(
            model, tiny_tokenizer, texts, prompts=prompts, tokens=tokens, samples=40, positions=1, progress=False
        )
        assert metric.read_flags[..., 1].sum() == metric.counted.sum()
        blind = metric.price(edit, 6.0, n_resamples=10).value
        read = metric.price(edit, 6.0, model=model, tokenizer=tiny_tokenizer, n_resamples=10).value
        ratios[tokens] = read / blind
    assert ratios["all"] != pytest.approx(ratios["generated"], rel=0.01)


def test_a_metric_of_before_edits_were_read_says_so(tiny_model, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    metric = ShiftMetric.fit(model, tiny_tokenizer, TEXTS, layers=[1], samples=1, progress=False)
    old = replace(metric, read_ids=torch.zeros(0, 0, dtype=torch.long))
    edit = en.AddDirection(torch.ones(32), "resid_post", 1)
    with pytest.raises(en.EntangleError, match="without texts to read an edit on: fit it anew"):
        old.price(edit, model=model, tokenizer=tiny_tokenizer)
    with pytest.raises(en.EntangleError, match="this metric came from another model"):
        metric.price(edit, model=tiny_model("gpt2"), tokenizer=tiny_tokenizer)


def test_a_metric_is_kept_and_refuses_another_model(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    metric = ShiftMetric.fit(tiny_model("llama"), tiny_tokenizer, TEXTS, sites=["z", "mlp_out"], progress=False)
    metric.save(tmp_path / "metric")
    again = ShiftMetric.load(tmp_path / "metric", model=tiny_model("llama"))
    assert again.keys == metric.keys
    assert torch.equal(again.scores, metric.scores)
    edit = en.AddDirection(torch.ones(32), "mlp_out", 1)
    assert again.price(edit) == metric.price(edit)
    with pytest.raises(en.EntangleError, match="model"):
        ShiftMetric.load(tmp_path / "metric", model=tiny_model("llama", 1))


def test_bad_input_is_refused_in_one_line(tiny_model, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    metric = ShiftMetric.fit(model, tiny_tokenizer, TEXTS, layers=[1], progress=False)
    with pytest.raises(en.EntangleError, match="8 texts or more"):
        ShiftMetric.fit(model, tiny_tokenizer, TEXTS[:3], progress=False)
    with pytest.raises(en.EntangleError, match="metric knows resid_post of layer 1"):
        metric.price(en.AddDirection(torch.ones(32), "resid_post", 2))
    with pytest.raises(en.EntangleError, match="32 numbers per token"):
        metric.price(en.AddDirection(torch.ones(16), "resid_post", 1))
    with pytest.raises(en.EntangleError, match="no affine map"):
        metric.price(en.Clamp(torch.ones(32), 0.0, 1.0, "resid_post", 1))
    with pytest.raises(en.EntangleError, match="constant shift"):
        metric.shift(en.Ablate(torch.ones(32), "resid_post", 1))
    with pytest.raises(en.EntangleError, match="prompts="):
        ShiftMetric.fit(model, tiny_tokenizer, TEXTS, tokens="generated", progress=False)
    natural = NaturalShift(torch.ones(32), ["resid_post"], [1], [32], list(metric.digests))
    with pytest.raises(en.EntangleError, match="fitted on all but"):
        metric.price(natural)
    with pytest.raises(en.EntangleError, match="another model"):
        metric.price(replace(en.AddDirection(torch.ones(32), "resid_post", 1), fingerprint={"architecture": "other"}))


def test_a_model_without_gradients_is_refused_and_left_as_it_was(
    tiny_tokenizer: PreTrainedTokenizerFast, tiny_model
) -> None:
    model = deepcopy(tiny_model("llama"))
    with torch.inference_mode():
        for name, parameter in list(model.named_parameters()):
            module = model.get_submodule(name.rpartition(".")[0])
            setattr(module, name.rpartition(".")[2], torch.nn.Parameter(parameter.clone(), requires_grad=False))
    before = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    with pytest.raises(en.EntangleError, match="gradients"):
        ShiftMetric.fit(model, tiny_tokenizer, TEXTS, progress=False)
    after = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    assert before == after


def test_half_precision_reads_the_edit_and_not_its_own_rounding(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of an edit is below the last digit of bfloat16: read there, a price is a fraction of what is paid."""
    half = deepcopy(tiny_model("llama")).bfloat16()
    metric = ShiftMetric.fit(half, tiny_tokenizer, TEXTS, layers=[1], samples=40, progress=False)
    edit = en.AddDirection(torch.randn(32, generator=torch.Generator().manual_seed(1)), "resid_post", 1)

    def off(alpha: float) -> float:
        read = metric.price(edit, alpha, model=half, tokenizer=tiny_tokenizer, n_resamples=10)
        return read.value / kl(half, tiny_tokenizer, TEXTS, edit, alpha=alpha, progress=False).mean - 1

    alphas = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
    assert max(abs(off(alpha)) for alpha in alphas) < 0.3
    monkeypatch.setattr("entangle.forecast.departure.NEAR_IN_HALF", (0.1,))
    monkeypatch.setattr("entangle.forecast.departure.ROUNDED", 0.0)
    assert min(off(alpha) for alpha in alphas) < -0.4


def test_places_go_by_their_full_names_too(tiny_model, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    metric = ShiftMetric.fit(model, tiny_tokenizer, TEXTS, layers=[0, 2], samples=4, progress=False)
    vector = torch.linspace(-1, 1, model.config.hidden_size)
    short = en.AddDirection(vector, "resid_post", 2)
    price = metric.price(short, 0.3)
    for name in ("blocks.2.hook_resid_post", "blocks.2.hook_out"):
        full = en.AddDirection(vector, name, None)
        assert metric.price(full, 0.3) == price
        both = metric.price(en.Compose([full, short]), 0.3)
        assert both.value == pytest.approx(4 * price.value, rel=1e-5)
    elsewhere = en.AddDirection(vector, "blocks.0.hook_resid_post", None)
    assert metric.price(elsewhere, 0.3) != price
    with pytest.raises(en.EntangleError, match="metric knows resid_post of layer 0"):
        metric.price(en.AddDirection(vector, "blocks.1.hook_resid_post", None), 0.3)
    with pytest.raises(en.EntangleError, match="give it site= and layer=, or a name that is one tensor"):
        metric.price(en.AddDirection(vector, "model.layers.2", None), 0.3)
