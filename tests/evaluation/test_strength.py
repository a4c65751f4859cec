"""A strength for a price: found in few readings, from any start, and refused where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

import entangle as en
from entangle.evaluation import Prompt, kl, strength_for
from entangle.evaluation.price.strength import _secant
from entangle.forecast import ShiftMetric

TEXTS = [f"the {a} fox {b} over the lazy dog" for a in ("quick", "brown", "cat") for b in ("jumps", "sat", "looked")]


def counted(price: Callable[[float], float]) -> tuple[Callable[[float], float], list[float]]:
    asked: list[float] = []

    def ask(alpha: float) -> float:
        asked.append(alpha)
        return price(alpha)

    return ask, asked


@settings(max_examples=200, deadline=None)
@given(
    scale=st.floats(1e-4, 1e4),
    target=st.floats(0.01, 2),
    ceiling=st.floats(3, 50),
    cubic=st.floats(-0.3, 2),
)
def test_any_price_that_rises_with_strength_is_met(scale: float, target: float, ceiling: float, cubic: float) -> None:
    def price(alpha: float) -> float:
        x = (alpha / scale) ** 2 * (1 + max(cubic, 0) * alpha / scale)
        return ceiling * -math.expm1(-x / ceiling)  # quadratic, then steeper, then flat

    ask, asked = counted(price)
    alpha = _secant(ask, target, 1.0, 0.03, 30)
    assert price(alpha) == pytest.approx(target, rel=0.03)
    assert len(asked) <= 20


@pytest.mark.parametrize("off", [0.7, 1.0, 1.4])
def test_from_a_forecast_three_readings_do(off: float) -> None:
    ask, asked = counted(lambda alpha: alpha**2 * (1 + 0.3 * alpha))
    _secant(ask, 0.1, off * 0.3, 0.03, 12)
    assert len(asked) <= 4


def test_what_was_read_for_one_price_is_not_read_again_for_another() -> None:
    ask, asked = counted(lambda alpha: alpha**2 * (1 + 0.3 * alpha))
    read: list[tuple[float, float]] = []
    strengths = [_secant(ask, target, 1.0, 0.03, 12, read=read) for target in (0.05, 0.1, 0.2, 0.4)]
    together = len(asked)
    assert _secant(ask, 0.1, 1.0, 0.03, 12, read=read) == strengths[1]
    assert len(asked) == together == len(read) <= 8
    asked.clear()
    for target in (0.05, 0.1, 0.2, 0.4):
        _secant(ask, target, 1.0, 0.03, 12)
    assert len(asked) > together


def test_logits_that_are_not_finite_are_too_dear() -> None:
    alpha = _secant(lambda alpha: alpha**2 if alpha < 10 else math.inf, 0.25, 1e3, 0.03, 12)
    assert alpha == pytest.approx(0.5, rel=0.02)


def test_a_price_that_no_strength_reaches_is_refused() -> None:
    with pytest.raises(en.EntangleError, match="no strength was found that costs 1 nats"):
        _secant(lambda alpha: 0.3 * -math.expm1(-(alpha**2)), 1.0, 1.0, 0.03, 8)
    with pytest.raises(en.EntangleError, match="no strength was found"):
        _secant(lambda alpha: 0.0, 1.0, 1.0, 0.03, 8)


def test_no_strength_is_tried_beyond_the_strongest(tiny_model, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Half a turn is the most that a rotation has: beyond it nothing is read, and a dearer price is refused."""
    ask, asked = counted(lambda alpha: alpha**2)
    assert _secant(ask, 0.9, 5.0, 0.03, 12, 1.0) == pytest.approx(0.9**0.5, rel=0.03)
    assert max(asked) <= 1.0
    ask, asked = counted(lambda alpha: alpha**2)
    with pytest.raises(en.EntangleError, match="no strength was found that costs 2 nats per token in"):
        _secant(ask, 2.0, 0.5, 0.03, 12, 1.0)
    assert max(asked) <= 1.0
    model = tiny_model("llama")
    turn = en.Rotate(torch.randn(32, generator=torch.Generator().manual_seed(0)), layer=1)
    alpha = strength_for(model, tiny_tokenizer, turn, TEXTS, kl=0.01)
    assert 0 < alpha <= 1
    assert kl(model, tiny_tokenizer, TEXTS, turn, alpha=alpha, progress=False).mean == pytest.approx(0.01, rel=0.04)


def test_a_metric_that_cannot_foretell_an_edit_is_not_asked(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama")
    metric = ShiftMetric.fit(model, tiny_tokenizer, TEXTS, layers=[1], samples=1, directions=0, progress=False)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    for edit in (
        en.KeepNorm(en.AddDirection(vector, layer=1)),
        en.Rotate(vector, layer=1),
        en.AddDirection(vector, layer=0),
    ):
        found = [strength_for(model, tiny_tokenizer, edit, TEXTS, kl=0.02, metric=each) for each in (metric, None)]
        assert found[0] == found[1]


def test_the_strength_found_costs_the_price(tiny_model, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    edit = en.AddDirection(torch.randn(32, generator=torch.Generator().manual_seed(0)), "resid_post", 1)
    metric = ShiftMetric.fit(model, tiny_tokenizer, TEXTS, layers=[1], samples=20, progress=False)
    for start in (None, metric):
        alpha = strength_for(model, tiny_tokenizer, edit, TEXTS, kl=0.05, metric=start)
        paid = kl(model, tiny_tokenizer, TEXTS, edit, alpha=alpha, progress=False).mean
        assert paid == pytest.approx(0.05, rel=0.03)
    with pytest.raises(en.EntangleError, match="strengths of its own"):
        strength_for(model, tiny_tokenizer, Prompt(), TEXTS, kl=0.05)
    with pytest.raises(en.EntangleError, match="positive number of nats"):
        strength_for(model, tiny_tokenizer, edit, TEXTS, kl=-1.0)


CLEAN = [f"a {a} {b} on the mat" for a in ("dog", "moon", "lazy", "fox") for b in ("sat", "looked", "jumps")]


def sweep(model, tokenizer, edits, folder=None, **given):
    return en.tradeoff(
        model,
        tokenizer,
        edits,
        prompts=["the quick", "a cat", "the lazy dog"],
        scorer=lambda texts: [float(len(text) % 7) / 7 for text in texts],
        texts=CLEAN,
        max_new_tokens=3,
        save_to=folder,
        progress=False,
        **given,
    )


def test_methods_are_compared_at_one_price(tiny_model, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path) -> None:
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(1)
    edits = {
        "short": en.AddDirection(torch.randn(32, generator=generator), "resid_post", 1),
        "long": en.AddDirection(500 * torch.randn(32, generator=generator), "resid_post", 0),
        "prompt": Prompt("the moon "),
    }
    at_price = sweep(model, tiny_tokenizer, edits, tmp_path / "sweep", costs=[0.02, 0.05], cost_texts=TEXTS)
    frame = at_price.to_frame()
    priced = frame[frame["cost"].notna()]
    assert list(priced["cost"]) == [0.02, 0.05] * 2
    for _, row in priced.iterrows():
        on_solving = kl(model, tiny_tokenizer, TEXTS, edits[row["method"]], alpha=row["alpha"], progress=False).mean
        assert on_solving == pytest.approx(row["cost"], rel=0.03)
        assert row["kl"] == pytest.approx(row["cost"], rel=0.8)  # on other texts, so only about
    alphas = priced.set_index(["method", "cost"])["alpha"]
    assert alphas["long", 0.05] < alphas["short", 0.05] / 50
    prompted = frame[frame["method"] == "prompt"]
    assert list(prompted["alpha"]) == [0, 1]  # it is there or not, whatever the price

    # What was solved and measured is taken up again.
    again = sweep(model, tiny_tokenizer, edits, tmp_path / "sweep", costs=[0.02, 0.05], cost_texts=TEXTS)
    assert again.to_frame().equals(frame)


def test_prices_are_solved_on_documents_that_are_not_reported(
    tiny_model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model, edit = tiny_model("llama"), en.AddDirection(torch.ones(32), "resid_post", 1)
    with pytest.raises(en.EntangleError, match="12 are in both"):
        sweep(model, tiny_tokenizer, edit, costs=[0.1], cost_texts=CLEAN)
    with pytest.raises(en.EntangleError, match="needs cost_texts="):
        sweep(model, tiny_tokenizer, edit, costs=[0.1])
    with pytest.raises(en.EntangleError, match="one of them"):
        sweep(model, tiny_tokenizer, edit)
    with pytest.raises(en.EntangleError, match="one of them"):
        sweep(model, tiny_tokenizer, edit, alphas=[1.0], costs=[0.1], cost_texts=TEXTS)
    with pytest.raises(en.EntangleError, match="positive numbers of nats"):
        sweep(model, tiny_tokenizer, edit, costs=[0.0], cost_texts=TEXTS)
