"""Rotation and rescaling: what each does to length and angle, by its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.interventions import Ablate, AddDirection, KeepNorm, Rotate, When


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def angle_to(x, v):
    """In degrees, by the half-angle formula, which holds near 0 and near 180 too."""
    a, b = x / x.norm(dim=-1, keepdim=True), v / v.norm()
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1)))


@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(-1, 1), seed=st.integers(0, 1000), slerp=st.booleans(), size=st.sampled_from([1e-3, 1.0, 1e5]))
def test_rotation_keeps_the_norm_and_turns_by_the_angle_in_the_plane(alpha, seed, slerp, size):
    x, v = size * drawn(6, 7, seed=seed), drawn(7, seed=seed + 1)
    y = Rotate(v, layer=0, slerp=slerp)(x, alpha=alpha)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1), rtol=1e-12, atol=0)
    was, way = angle_to(x, v), angle_to(x, v if alpha >= 0 else -v)
    turn = abs(alpha) * way if slerp else (abs(alpha) * 180.0 * torch.ones(6)).minimum(way)
    torch.testing.assert_close(angle_to(y, v), was - math.copysign(1, alpha) * turn, atol=1e-5, rtol=0)
    # In the plane of x and v: a basis of it holds y whole.
    for before, after in zip(x, y, strict=True):
        plane = torch.linalg.qr(torch.stack([before, v], 1)).Q
        torch.testing.assert_close(plane @ (plane.T @ after), after, rtol=1e-8, atol=1e-9 * size)


def test_rotation_by_nothing_is_nothing_and_all_the_way_is_the_direction():
    x, v = drawn(5, 4), drawn(4, seed=1)
    assert torch.equal(Rotate(v, layer=0)(x, alpha=0.0), x)
    torch.testing.assert_close(Rotate(v, layer=0)(x), x.norm(dim=1, keepdim=True) * v / v.norm())
    torch.testing.assert_close(Rotate(v, layer=0)(x, alpha=-1.0), -x.norm(dim=1, keepdim=True) * v / v.norm())
    # By its own angle x reaches v; by one degree less it does not.
    degrees = float(angle_to(x[:1], v))
    assert float(angle_to(Rotate(v, layer=0, degrees=degrees)(x[:1]), v)) < 1e-5
    assert float(angle_to(Rotate(v, layer=0, degrees=degrees - 1)(x[:1]), v)) == pytest.approx(1.0, abs=1e-5)


def test_addition_that_reaches_as_far_changes_the_norm_where_rotation_does_not():
    x, v = drawn(50, 8), drawn(8, seed=1)
    added = AddDirection(3 * v, layer=0)(x)
    kept = KeepNorm(AddDirection(3 * v, layer=0))(x)
    assert float((added.norm(dim=1) / x.norm(dim=1) - 1).abs().min()) > 0.01
    torch.testing.assert_close(kept.norm(dim=1), x.norm(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(kept / kept.norm(dim=1, keepdim=True), added / added.norm(dim=1, keepdim=True))


def test_tokens_on_the_line_of_the_direction_have_no_plane():
    v = drawn(6)
    x = torch.stack([3 * v, -2 * v, torch.zeros(6, dtype=torch.float64)])
    some, whole = Rotate(v, layer=0)(x, alpha=0.5), Rotate(v, layer=0)(x)
    torch.testing.assert_close(some, x)  # on it, opposite with no plane to turn in, and zero
    torch.testing.assert_close(whole, torch.stack([3 * v, 2 * v, x[2]]))
    torch.testing.assert_close(KeepNorm(Ablate(v, layer=0))(x), torch.zeros_like(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("edit", [Rotate, lambda v, **where: KeepNorm(AddDirection(v, **where))])
def test_half_precision_is_worked_out_in_single_beside_massive_coordinates(edit):
    """One coordinate of 50,000 beside others of 10, as in streams of Gemma 3: squares overflow half precision."""
    x = 10 * drawn(20, 64, dtype=torch.float32)
    x[:, 5] = 5e4
    v = drawn(64, seed=1, dtype=torch.float32)
    whole = edit(v, layer=0)(x, alpha=0.1)
    for dtype, within in [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)]:
        half = edit(v, layer=0)(x.to(dtype), alpha=0.1)
        assert half.dtype == dtype
        torch.testing.assert_close(half.float().norm(dim=1), x.to(dtype).float().norm(dim=1), rtol=within, atol=0)
        torch.testing.assert_close(half.float(), whole, rtol=3 * within, atol=1.0)


def test_gradients_pass():
    x = drawn(3, 5).requires_grad_()
    v = drawn(5, seed=1)
    for edit in (Rotate(v, layer=0, degrees=20), KeepNorm(AddDirection(v, layer=0))):
        assert torch.autograd.gradcheck(edit, (x,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rotate(torch.ones(3), degrees=181), "at most half a turn, 180; got 181"),
        (lambda: Rotate(torch.ones(3), degrees=0), "above 0"),
        (lambda: Rotate(torch.ones(3), degrees=float("nan")), "above 0"),
        (lambda: Rotate(torch.zeros(3)), "zero"),
        (lambda: Rotate(torch.ones(3))(torch.ones(1, 3), alpha=1.01), "half a turn at most; got alpha 1.01 x 180"),
        (lambda: Rotate(torch.ones(3), degrees=60)(torch.ones(1, 3), alpha=-3.5), "got alpha -3.5 x 60 degrees = -210"),
        (lambda: Rotate(torch.ones(3), layer=0).affine(0.5), r"no affine map.*steer"),
        (lambda: KeepNorm(AddDirection(torch.ones(3), layer=0)).affine(), r"no affine map.*steer"),
        (lambda: KeepNorm(When(AddDirection(torch.ones(3), layer=0), torch.ones(3))).forms(), "condition outside"),
    ],
)
def test_what_no_rotation_is_says_so_in_one_line(make, message):
    with pytest.raises(EntangleError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_strongest_rotation_is_half_a_turn_also_inside_others():
    turn = Rotate(torch.ones(3), layer=0, degrees=60)
    assert turn.strongest == 3.0
    assert KeepNorm(turn).strongest == When(turn, torch.ones(3)).strongest == 3.0
    assert AddDirection(torch.ones(3)).strongest == math.inf
