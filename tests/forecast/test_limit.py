"""What a constant shift can buy at most: found without bias, invariant, and reached by the natural gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import entangle as en
from entangle.evaluation import cross_entropy
from entangle.forecast import Contrast, NaturalShift, ShiftMetric, limit_of
from entangle.forecast.spectrum import Spectrum

D = 6
FISHER = torch.diag(torch.tensor([9.0, 4.0, 1.0, 1.0, 0.25, 0.25], dtype=torch.float64))
GRADIENT = torch.tensor([1.0, 0, 0.5, 0, 0.25, 0], dtype=torch.float64)
TRUTH = math.sqrt(float(GRADIENT @ torch.linalg.solve(FISHER, GRADIENT)))


def planted(
    seed: int, *, texts: int = 60, noise: float = 1.0, rotation: Tensor | None = None
) -> tuple[ShiftMetric, Contrast]:
    """Scores of a known metric, and texts of a known contrast with noise."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 30, (texts,), generator=generator)
    scores = torch.randn(texts, 4, D, generator=generator, dtype=torch.float64) * tokens.sqrt()[:, None, None]
    scores = scores @ FISHER.sqrt()
    sides = [
        (side * GRADIENT / 2 + noise * torch.randn(texts, D, generator=generator, dtype=torch.float64)) * 20
        for side in (1, -1)
    ]
    if rotation is not None:
        scores, sides = scores @ rotation, [side @ rotation for side in sides]
    metric = ShiftMetric(
        keys=(("resid_post", 0),),
        sizes=(D,),
        scores=scores,
        observed=scores[:, 0],
        means=scores[:, 0],
        local_scores=scores[:, :, None],
        local_activations=scores[:, :1],
        counted=tokens,
        shifted=tokens,
        squares=torch.ones(texts, 1),
        heads={},
        settings={"tokens": "all"},
        departures=torch.ones(1, 0),
        departure_prices=torch.ones(1, 0),
        read_ids=torch.zeros(0, 0, dtype=torch.long),
        read_flags=torch.zeros(0, 0, 2, dtype=torch.bool),
        digests=tuple(map(str, range(texts))),
    )
    counts = torch.full((texts,), 20)
    return metric, Contrast(metric.keys, (D,), sides[0], sides[1], counts, counts)


def test_the_limit_is_found_without_the_bias_of_noise() -> None:
    limits, naive = [], []
    for seed in range(40):
        metric, contrast = planted(seed, texts=60, noise=2)
        limits.append(limit_of(metric, contrast).value ** 2)
        naive.append(float(contrast.gradient @ metric.spectrum().solve(contrast.gradient)))
    error = torch.tensor(limits).std() / len(limits) ** 0.5
    assert abs(sum(limits) / len(limits) - TRUTH**2) < 3 * error + 0.05 * TRUTH**2
    assert sum(naive) / len(naive) > TRUTH**2 + 3 * error  # what is not corrected is too large


def test_the_interval_holds_the_limit() -> None:
    held = 0
    for seed in range(60):
        metric, contrast = planted(seed, texts=120, noise=0.3)
        limit = limit_of(metric, contrast)
        held += limit.low <= TRUTH <= limit.high
    assert held >= 52  # .95 of 60, less three standard errors


def test_a_rotation_of_the_stream_changes_nothing() -> None:
    rotation = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64))[0]
    (metric, contrast), (turned, turned_contrast) = planted(3), planted(3, rotation=rotation)
    one, other = limit_of(metric, contrast), limit_of(turned, turned_contrast)
    assert one.value == pytest.approx(other.value, rel=1e-9)
    assert one.reached == pytest.approx(other.reached, rel=1e-9)
    v = torch.randn(D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    prices = [
        each.price(en.AddDirection(vector, "resid_post", 0)).value
        for each, vector in ((metric, v), (turned, v @ rotation))
    ]
    assert prices[0] == pytest.approx(prices[1], rel=1e-5)


def test_the_natural_shift_buys_most_for_its_price() -> None:
    metric, contrast = planted(0, texts=400, noise=0.3)
    shift = NaturalShift.fit(metric, contrast)
    assert metric.price(shift, 0.3).value == pytest.approx(0.09, rel=1e-6)
    efficiency = metric.efficiency(shift, contrast)
    assert efficiency == pytest.approx(1, abs=0.1)
    for other in (GRADIENT, torch.ones(D), torch.eye(D)[1]):
        assert metric.efficiency(en.AddDirection(other, "resid_post", 0), contrast) < efficiency + 0.02
    assert metric.efficiency(en.AddDirection(GRADIENT, "resid_post", 0), contrast) < 0.9 * efficiency


def test_fewer_samples_are_shrunk_further_and_the_inverse_is_the_inverse() -> None:
    few, many = (planted(1, texts=n)[0] for n in (10, 400))
    shrinkages = [Spectrum.of(metric.scores, metric.counted, metric.sizes).shrinkage for metric in (few, many)]
    assert shrinkages[0] > shrinkages[1]
    spectrum = many.spectrum()
    mean = float(many.matrix("resid_post", 0).trace()) / D
    shrunk = (1 - spectrum.shrinkage) * many.matrix("resid_post", 0) + spectrum.shrinkage * mean * torch.eye(D)
    g = torch.randn(3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(spectrum.solve(g), torch.linalg.solve(shrunk, g.T).T)
    torch.testing.assert_close(spectrum.whiten(g) @ spectrum.whiten(g).T, g @ spectrum.solve(g).T)


def test_more_dimensions_than_samples_have_the_same_inverse() -> None:
    scores = torch.randn(9, 2, 40, generator=torch.Generator().manual_seed(6))
    tokens = torch.full((9,), 7)
    spectrum = Spectrum.of(scores, tokens, (25, 15), shrinkage=0.2)
    matrix = scores.flatten(0, 1).double()
    matrix = matrix.T @ matrix / (2 * tokens.sum())
    sphere = torch.cat([matrix.diagonal()[:25].mean().expand(25), matrix.diagonal()[25:].mean().expand(15)])
    shrunk = 0.8 * matrix + 0.2 * torch.diag(sphere)
    g = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(spectrum.solve(g), torch.linalg.solve(shrunk, g))


def test_the_gradient_of_a_contrast_is_what_a_small_shift_gains(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:

    model = tiny_model("llama")
    toward = [f"the cat sat on {w}" for w in ["the", "a", "mat", "moon", "dog", "fox", "over", "lazy"]]
    away = [f"quick {w} jumps over" for w in ["the", "a", "mat", "moon", "dog", "fox", "brown", "lazy"]]
    contrast = Contrast.fit(model, tiny_tokenizer, toward, away, layers=[0, 1], progress=False)
    v = torch.randn(32, generator=torch.Generator().manual_seed(8))
    edit = en.AddDirection(v, "resid_post", 1)

    def value(alpha: float) -> float:
        with en.steer(model, edit, alpha=alpha):
            near, far = (cross_entropy(model, tiny_tokenizer, texts, progress=False).mean for texts in (toward, away))
        return far - near

    wanted = (value(1e-2) - value(-1e-2)) / 2e-2
    assert contrast.at([("resid_post", 1)]).buys(v) == pytest.approx(wanted, rel=1e-2)
    assert contrast.at([("resid_post", 0)]).buys(v) != pytest.approx(wanted, rel=0.2)


def test_the_contrast_of_continuations_counts_them_alone(tiny_model, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    prompts = [f"the {w} looked at" for w in ["cat", "dog", "fox", "moon", "mat", "lazy", "brown", "quick"]]
    sides = [["the moon and the mat"] * 8, ["a lazy dog over the fox"] * 8]
    fit = {"sites": "resid_post", "layers": [1], "progress": False}
    contrast = Contrast.fit(model, tiny_tokenizer, *sides, prompts=(prompts, prompts), **fit)
    v = torch.randn(32, generator=torch.Generator().manual_seed(8))

    def value(alpha: float) -> float:
        means = []
        for side in sides:
            nats, tokens = 0.0, 0
            for prompt, text in zip(prompts, side, strict=True):
                before = tiny_tokenizer(prompt)["input_ids"]
                after = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
                with torch.no_grad(), en.steer(model, en.AddDirection(v, "resid_post", 1), alpha=alpha):
                    logp = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
                said = logp[len(before) - 1 : -1].gather(-1, torch.tensor(after)[:, None])
                nats, tokens = nats + float(said.sum()), tokens + len(after)
            means.append(nats / tokens)
        return means[0] - means[1]

    wanted = (value(1e-2) - value(-1e-2)) / 2e-2
    assert contrast.buys(v) == pytest.approx(wanted, rel=1e-2)
    whole = Contrast.fit(model, tiny_tokenizer, *sides, **fit)  # without what came before
    assert whole.buys(v) != pytest.approx(wanted, rel=0.1)


def test_texts_to_select_on_choose_the_shrinkage() -> None:
    chosen, blind, random = [], [], []
    for seed in range(6):
        metric, contrast = planted(seed, texts=80, noise=3.0)  # more noise in g than the metric's own texts tell
        clear, noisy = (planted(seed + 100, texts=n, noise=noise)[1] for n, noise in ((400, 0.3), (10, 30.0)))
        for gains, selection in ((chosen, clear), (blind, None), (random, noisy)):
            v = NaturalShift.fit(metric, contrast, selection=selection).vector.double()
            gains.append(float(GRADIENT @ v / (v @ FISHER @ v).sqrt()))
    assert sum(chosen) > sum(blind) + 0.2
    assert sum(chosen) > sum(random)  # it is the selection's texts that know


def test_texts_to_select_on_choose_the_place() -> None:
    metrics = [planted(seed, texts=80)[0] for seed in (5, 6)]
    wide = ("scores", "observed", "means", "local_scores", "local_activations")
    metric = replace(
        metrics[0],
        keys=(("resid_post", 0), ("resid_post", 1)),
        sizes=(D, D),
        squares=torch.ones(80, 2),
        departures=torch.ones(2, 0),
        departure_prices=torch.ones(2, 0),
        read_ids=torch.zeros(0, 0, dtype=torch.long),
        read_flags=torch.zeros(0, 0, 2, dtype=torch.bool),
        **{name: torch.cat([getattr(metric, name) for metric in metrics], -1) for name in wide},
    )

    def contrast(seed: int, nothing: int) -> Contrast:
        """The planted contrast at one place, noise alone at the other."""
        parts = [planted(seed + place, texts=80)[1] for place in (0, 1)]
        toward, away = ([getattr(part, side) for part in parts] for side in ("toward", "away"))
        toward[nothing] = toward[nothing] - 20 * GRADIENT
        keys, sizes = metric.keys, metric.sizes
        return replace(parts[0], keys=keys, sizes=sizes, toward=torch.cat(toward, -1), away=torch.cat(away, -1))

    for nothing in (0, 1):
        shift = NaturalShift.choose(metric, contrast(20, nothing), contrast(40, nothing))
        assert 1 - nothing in shift.layers
        parts = dict(zip(shift.layers, shift.vector.split(D)[-len(shift.layers) :], strict=True))
        assert nothing not in parts or parts[nothing].norm() < parts[1 - nothing].norm() / 2
        assert metric.price(shift, 0.3).value == pytest.approx(0.09, rel=1e-6)


def test_metric_and_contrast_on_the_same_texts_are_refused(tiny_model, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    texts = [f"the cat sat on {w}" for w in ["the", "a", "mat", "moon", "dog", "fox", "over", "lazy", "brown", "quick"]]
    others = [f"a {w} looked at the moon" for w in ["the", "a", "mat", "moon", "dog", "fox", "over", "lazy"]]
    metric = ShiftMetric.fit(model, tiny_tokenizer, texts, layers=[1], progress=False)
    with pytest.raises(en.EntangleError, match="share 10"):
        NaturalShift.fit(metric, Contrast.fit(model, tiny_tokenizer, texts, others, layers=[1], progress=False))
    with pytest.raises(en.EntangleError, match="resid_post of layer 1"):
        metric.limit(Contrast.fit(model, tiny_tokenizer, others, texts, layers=[0], progress=False))
    with pytest.raises(en.EntangleError, match="8 texts or more on each side"):
        Contrast.fit(model, tiny_tokenizer, texts[:2], others, progress=False)


def test_a_natural_shift_steers_is_saved_and_bakes(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path
) -> None:
    model = tiny_model("llama")
    clean = [
        f"{a} {b} over the moon" for a in ["the", "a", "mat", "dog"] for b in ["fox", "cat", "dog", "lazy", "quick"]
    ]
    toward = [f"the cat sat on {w}" for w in ["the", "a", "mat", "moon", "dog", "fox", "over", "lazy"]]
    away = [f"quick {w} jumps over" for w in ["the", "a", "mat", "moon", "dog", "fox", "brown", "lazy"]]
    metric = ShiftMetric.fit(model, tiny_tokenizer, clean, layers=[0, 1], progress=False)
    shift = NaturalShift.fit(metric, Contrast.fit(model, tiny_tokenizer, toward, away, layers=[0, 1], progress=False))
    shift.save_pretrained(tmp_path / "shift", model=model)
    again = NaturalShift.from_pretrained(tmp_path / "shift", model=model)
    assert torch.equal(again.vector, shift.vector)
    assert list(again.documents) == list(shift.documents)
    ids = tiny_tokenizer(clean[0], return_tensors="pt")["input_ids"]
    with torch.no_grad(), en.steer(model, again, alpha=0.5):
        steered = model(ids).logits
    with torch.no_grad():
        baked = again.bake(model, 0.5)(ids).logits
        plain = model(ids).logits
    torch.testing.assert_close(steered, baked, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(steered, plain, atol=1e-2)
