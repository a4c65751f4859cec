"""Affine forms: what composition, widening and scaling must equal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.interventions.forms import AffineForm, FunctionForm, merged


def random_form(generator, d=6, rank=2, *, mean=True, low_rank=True, bias=True, head=None):
    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    low_rank = low_rank or not bias
    return AffineForm(
        "resid_post",
        1,
        head,
        draw(d) if mean and low_rank else None,
        draw(d, rank) if low_rank else None,
        draw(rank, d) if low_rank else None,
        draw(d) if bias else None,
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), flags=st.lists(st.booleans(), min_size=6, max_size=6))
def test_then_is_one_after_the_other(seed, flags):
    generator = torch.Generator().manual_seed(seed)
    first = random_form(generator, mean=flags[0], low_rank=flags[1], bias=flags[2])
    second = random_form(generator, mean=flags[3], low_rank=flags[4], bias=flags[5])
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(first.then(second)(x), second(first(x)))
    # The order matters, so a composition that forgot it would show.
    if first.left is not None and second.left is not None:
        assert not torch.allclose(first.then(second)(x), first(second(x)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), head=st.integers(0, 2), low_rank=st.booleans())
def test_widened_acts_on_its_head_and_leaves_the_others(seed, head, low_rank):
    generator = torch.Generator().manual_seed(seed)
    form = random_form(generator, d=4, low_rank=low_rank, head=head)
    x = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    expected = x.clone()
    expected[:, head] = form(x[:, head])
    torch.testing.assert_close(form.widened(4, 3)(x.flatten(1)).unflatten(1, (3, 4)), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -2.0])
def test_scaled_scales_the_displacement(alpha):
    generator = torch.Generator().manual_seed(0)
    form = random_form(generator)
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(form.scaled(alpha)(x), x + alpha * (form(x) - x))


def test_constant_is_what_is_added_to_zero():
    form = random_form(torch.Generator().manual_seed(3))
    torch.testing.assert_close(form.constant, form(torch.zeros(6, dtype=torch.float64)))


def test_merged_makes_runs_of_affine_forms_one():
    generator = torch.Generator().manual_seed(0)
    forms = [random_form(generator, d=4, head=head) for head in (0, 2, 2)]
    between = FunctionForm("z", 1, None, lambda device, dtype: torch.relu)
    assert len(merged(forms, head_size=4, n_heads=3)) == 1
    assert len(merged([*forms, between, *forms], head_size=4, n_heads=3)) == 3


def test_half_precision_is_worked_out_in_single():
    """1 - u u^T in bfloat16 would leave a component of about 2^-8 |x|; worked out in single only the last rounding
    stays.
    """
    torch.manual_seed(0)
    u = torch.nn.functional.normalize(torch.randn(256), dim=0)
    x = (100 * u + torch.randn(50, 256)).bfloat16()
    ablate = AffineForm("resid_post", 0, None, None, -u[:, None], u[None])
    left = (ablate.prepare(x.device, x.dtype)(x).float() @ u).abs().max()
    half = u.bfloat16()
    left_by_half = ((x - (x @ half)[:, None] * half).float() @ u).abs().max()
    assert left < 0.05 < left_by_half


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "needs a bias"),
        ({"left": torch.ones(4, 1)}, "both of left"),
        ({"left": torch.ones(4, 1), "right": torch.ones(2, 4)}, "right of an affine form of width 4 must be"),
        ({"left": torch.ones(4, 1), "right": torch.ones(1, 4), "mean": torch.ones(3)}, "mean of an affine form"),
        ({"bias": torch.tensor([1.0, float("nan")])}, "NaN or infinity"),
        ({"bias": torch.tensor([1.0, float("inf")])}, "NaN or infinity"),
    ],
)
def test_bad_forms_are_refused(tensors, message):
    with pytest.raises(EntangleError, match=message) as caught:
        AffineForm("resid_post", 0, **tensors)
    assert "\n" not in str(caught.value)
