"""Next tokens of a score: drawn from what the model says, whatever the number of tokens, and never one it forbids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from entangle.errors import EntangleError
from entangle.forecast.slopes import BLOCK, RUN, _drawn, _said


def whole(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One running sum over all tokens, in double precision."""
    cumulative = probabilities.double().cumsum(-1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:])


@settings(max_examples=60, deadline=None)
@given(vocabulary=st.integers(1, 4 * RUN), seed=st.integers(0, 2**20), flat=st.floats(0.1, 10))
def test_a_draw_by_runs_is_the_draw_by_one_running_sum(vocabulary: int, seed: int, flat: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, vocabulary, generator=generator) / flat
    logits[:, 1::3] = -torch.inf
    uniform = torch.rand(5, 7, generator=generator, dtype=torch.float64)
    probabilities = logits.softmax(-1)
    drawn = _drawn(probabilities, uniform)
    assert (drawn == whole(probabilities, uniform)).double().mean() > 0.9  # but where rounding decides
    assert bool((probabilities.gather(-1, drawn) > 0).all())


def test_shares_of_the_draws_are_the_probabilities() -> None:
    probabilities = torch.rand(1, 3 * RUN + 5, generator=torch.Generator().manual_seed(0)).square()
    probabilities /= probabilities.sum()
    uniform = (torch.arange(400_000, dtype=torch.float64)[None] + 0.5) / 400_000
    counts = torch.bincount(_drawn(probabilities, uniform)[0], minlength=probabilities.shape[1])
    assert (counts / 400_000 - probabilities[0]).abs().max() < 1e-5
    scattered = torch.rand(1, 400_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    counts = torch.bincount(_drawn(probabilities, scattered)[0], minlength=probabilities.shape[1])
    assert fits(counts, probabilities[0]) > 1e-3
    assert fits(counts, probabilities[0].roll(1)) < 1e-9  # a control: these are draws from no other distribution


def fits(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p-value of counts under probabilities, of the tokens that are expected five times or more."""
    expected = probabilities.double() * counts.sum()
    often = expected > 5
    return float(chisquare(counts[often], expected[often] * counts[often].sum() / expected[often].sum()).pvalue)


@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_are_in_the_vocabulary(uniform: float) -> None:
    probabilities = torch.zeros(1, 2 * RUN + 9)
    probabilities[0, 3 : RUN + 40] = torch.rand(RUN + 37, generator=torch.Generator().manual_seed(2)) + 0.1
    probabilities /= probabilities.sum()
    drawn = int(_drawn(probabilities, torch.tensor([[uniform]], dtype=torch.float64)))
    assert 0 <= drawn < RUN + 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_positions_change_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(9, 700, generator=generator).to(dtype)
    uniform = torch.rand(9, 4, generator=generator, dtype=torch.float64)
    together = _said(logits, uniform)
    assert logits.numel() <= BLOCK
    monkeypatch.setattr("entangle.forecast.slopes.BLOCK", 1400)
    apart = _said(logits, uniform)
    assert all(torch.equal(one, other) for one, other in zip(together, apart, strict=True))
    assert together[0].dtype is dtype
    assert torch.allclose(
        together[0].float(), logits.float().softmax(-1), atol=1e-2 if dtype is torch.bfloat16 else 1e-6
    )
    with pytest.raises(EntangleError, match="not finite"):
        _said(logits.masked_fill(torch.arange(700) == 5, torch.nan), uniform)
