"""The Pareto front and comparison at equal cost, on sweeps whose truth is known."""

import numpy as np
import pytest

from entangle.errors import EntangleError
from entangle.evaluation import LanguageShift, Tradeoff, matched, pareto
from entangle.evaluation.price.conditions import Condition

PROMPTS, DOCUMENTS, TOKENS = 80, 60, 50


def condition(method, alpha, toxicity, cost, *, noise=0.1, seed=0):
    """A condition whose prompts and documents vary around the given means, alike in every condition of one seed."""
    rng = np.random.default_rng(seed)
    scores = np.clip(toxicity + noise * rng.standard_normal((PROMPTS, 1)), 0, 1)
    plain = TOKENS * (4 + 0.3 * rng.standard_normal(DOCUMENTS))
    nats = plain + TOKENS * cost * (1 + noise * rng.standard_normal(DOCUMENTS))
    tokens = np.full(DOCUMENTS, TOKENS)
    shift = LanguageShift(tokens, nats, plain, TOKENS * cost * np.ones(DOCUMENTS), tokens.astype(float))
    texts = [["word"]] * PROMPTS
    fluency = [[20.0]] * PROMPTS, [[5]] * PROMPTS
    return Condition(method, alpha, "", texts, shift, fluency=fluency, scores={"s": scores.tolist()})


def result(*changed, plain=None, settings=None):
    plain = condition("", 0.0, 0.6, 0.0) if plain is None else plain
    return Tradeoff(plain, changed, ("p",) * PROMPTS, ("s",), settings or {})


def test_the_front_is_what_nothing_beats_on_both():
    sweep = result(
        condition("a", 4.0, 0.4, 0.2),
        condition("a", 8.0, 0.2, 0.8),
        condition("b", 4.0, 0.5, 0.5),  # a at 4 is both cheaper and less toxic
        condition("b", 8.0, 0.1, 2.0),
    )
    table = pareto(sweep).set_index(["method", "alpha"])
    assert table["on_front"].to_dict() == {
        ("plain", 0): True, ("a", 4): True, ("b", 4): False, ("a", 8): True, ("b", 8): True
    }  # fmt: skip
    assert table.loc[("b", 4.0), "front_share"] == 0
    assert table.loc[("a", 4.0), "front_share"] == 1
    assert table["ce"].is_monotonic_increasing


def test_a_close_call_is_on_the_front_in_some_resamples_only():
    sweep = result(condition("a", 1.0, 0.4, 0.2, seed=1), condition("b", 1.0, 0.41, 0.201, seed=2))
    shares = pareto(sweep).set_index("method")["front_share"]
    assert 0.05 < shares["b"] < 0.95
    assert shares["plain"] > 0.99


def test_equal_cost_finds_the_known_gap():
    sweep = result(
        condition("good", 1.0, 0.4, 0.5),
        condition("good", 2.0, 0.2, 1.0),
        condition("bad", 1.0, 0.5, 0.5),
        condition("bad", 2.0, 0.4, 1.0),
    )
    found = matched((sweep, "good"), (sweep, "bad"), cost=0.75)
    assert found.first.value == pytest.approx(0.3, abs=0.03)
    assert found.difference.value == pytest.approx(-0.15, abs=0.02)
    assert found.difference.high < 0
    # Noise shared by both conditions of a prompt cancels from the difference.
    width = found.difference.high - found.difference.low
    assert width < 0.5 * (found.first.high - found.first.low)


def test_a_method_equals_itself_exactly():
    sweep = result(condition("a", 1.0, 0.4, 0.5))
    assert matched((sweep, "a"), (sweep, "a"), cost=0.2).difference == (0, 0, 0)


@pytest.mark.parametrize("edge", [1 - 1e-12, 1 + 1e-12])
def test_a_method_can_be_compared_at_its_own_price(edge):
    sweep = result(condition("a", 1.0, 0.4, 0.5), condition("b", 1.0, 0.3, 0.5))
    measured = sweep.to_frame().query("method == 'a' and alpha == 1").iloc[0]
    found = matched((sweep, "a"), (sweep, "b"), cost=measured["ce_change"] * edge)
    assert found.first.value == pytest.approx(measured["toxicity"])


def test_two_models_are_compared_by_what_they_pay():
    one = result(condition("iti", 1.0, 0.2, 0.5))
    two = result(condition("iti", 1.0, 0.5, 0.5), plain=condition("", 0.0, 0.7, 0.0))
    assert matched((one, "iti"), (two, "iti"), cost=0.45).difference.value == pytest.approx(-0.28, abs=0.02)


def test_what_cannot_be_compared_is_said():
    sweep = result(condition("a", 1.0, 0.4, 0.5))
    with pytest.raises(EntangleError, match="no method 'b' in this sweep; it has a"):
        matched((sweep, "a"), (sweep, "b"), cost=0.2)
    with pytest.raises(EntangleError, match=r"a costs 0 to 0\.\d+; compare at a cost in that range, not 3"):
        matched((sweep, "a"), (sweep, "a"), cost=3)
    other = result(condition("a", 1.0, 0.4, 0.5), settings={"prompts": "another hash"})
    with pytest.raises(EntangleError, match="same prompts"):
        matched((sweep, "a"), (other, "a"), cost=0.2)
