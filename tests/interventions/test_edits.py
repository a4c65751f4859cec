"""Edits: what each does to a vector, by its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.interventions import Ablate, AddDirection, Affine, Clamp, Compose, Scale, Set


@pytest.fixture
def x():
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1


@pytest.fixture
def v():
    return torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def component(x, v):
    return x @ (v / v.norm())


def rest(x, v):
    u = v / v.norm()
    return x - (x @ u)[:, None] * u


def test_add_adds_alpha_times_the_vector(x, v):
    torch.testing.assert_close(AddDirection(v, layer=0)(x, alpha=2.5), x + 2.5 * v)


def test_pairs_and_classes_give_the_mean_difference(x):
    y = x.flip(0) * 2
    torch.testing.assert_close(AddDirection.from_pairs(x, y, "resid_post", 0).vector, (x - y).mean(0))
    labels = torch.tensor([1, 0] * 20)
    away_from_1 = AddDirection.mean_difference(x, labels, "resid_post", 0).vector
    torch.testing.assert_close(away_from_1, x[labels == 0].mean(0) - x[labels == 1].mean(0))
    toward_1 = AddDirection.mean_difference(x, labels, "resid_post", 0, toward=1).vector
    torch.testing.assert_close(toward_1, -away_from_1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_unit_direction_is_kept_bit_for_bit(dtype):
    """Divided by its length again, about one in three would change in its last digit, and so what was saved."""
    for seed in range(50):
        v = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        once = Set(v, 1.0).direction
        assert torch.equal(Set(once, 1.0).direction, once)
        assert once.norm() == pytest.approx(1.0, abs=1e-6)


def test_ablate_leaves_nothing_of_the_span_and_all_of_the_rest(x):
    directions = torch.randn(3, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    directions = torch.cat([directions, directions[:1] * 2])  # dependent rows span no more
    edited = Ablate(directions, layer=0)(x)
    torch.testing.assert_close(edited @ directions.T, torch.zeros(40, 4, dtype=torch.float64), atol=1e-12, rtol=0)
    outside = torch.linalg.qr(torch.cat([directions[:3], torch.eye(8, dtype=torch.float64)]).T).Q[:, 3:8]
    torch.testing.assert_close(edited @ outside, x @ outside)
    torch.testing.assert_close(Ablate(directions, layer=0)(edited), edited)  # idempotent


def test_mean_ablation_sets_the_component_to_the_means(x, v):
    edited = Ablate(v, layer=0, mean=x.mean(0))(x)
    torch.testing.assert_close(component(edited, v), component(x.mean(0).expand_as(x), v))
    torch.testing.assert_close(rest(edited, v), rest(x, v))


@pytest.mark.parametrize("length", [1.0, 7.0])
def test_set_scale_and_clamp_move_the_component_only(x, v, length):
    was = component(x, v)
    cases = {
        Set(length * v, 1.5, layer=0): torch.full_like(was, 1.5),
        Scale(length * v, -2.0, layer=0): -2 * was,
        Clamp(length * v, low=-1, high=2, layer=0): was.clamp(-1, 2),
        Clamp(length * v, high=0.5, layer=0): was.clamp(max=0.5),
    }
    for edit, wanted in cases.items():
        torch.testing.assert_close(component(edit(x), v), wanted)
        torch.testing.assert_close(rest(edit(x), v), rest(x, v))


@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(-20, 20), seed=st.integers(0, 1000))
def test_alpha_scales_the_displacement_of_every_edit(alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    x, v, w = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in [(5, 6), (6,), (6, 2)])
    edits = [
        AddDirection(v, layer=0),
        Ablate(w.T, layer=0, mean=v),
        Scale(v, 3.0, layer=0),
        Set(v, 2.0, layer=0),
        Clamp(v, low=0.1, layer=0),
        Affine(layer=0, mean=v, left=w, right=w.T, bias=-v),
    ]
    for edit in edits:
        torch.testing.assert_close(edit(x, alpha=alpha), x + alpha * (edit(x) - x), atol=1e-9, rtol=1e-9)


def test_compose_runs_the_edits_in_order(x, v):
    add, ablate = AddDirection(v, layer=0), Ablate(v, layer=0)
    torch.testing.assert_close(component(Compose([ablate, add])(x), v), v.norm().expand(40))
    torch.testing.assert_close(
        component(Compose([add, ablate])(x), v), torch.zeros(40, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_only_affine_edits_have_affine_forms(v):
    assert len(Compose([Ablate(v, layer=0), Set(v, 1.0, layer=1)]).affine(2.0)) == 2
    with pytest.raises(EntangleError, match=r"Clamp is no affine map.*steer"):
        Clamp(v, low=0, layer=0).affine()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AddDirection(torch.tensor([1.0, float("nan")]), layer=0), "NaN"),
        (lambda: AddDirection(torch.ones(2, 2), layer=0), r"must be a vector \[d\], got shape \[2, 2\]"),
        (lambda: AddDirection(torch.ones(0), layer=0), "must be a vector"),
        (lambda: Ablate(torch.zeros(2, 3), layer=0).forms(), "all zero"),
        (lambda: Scale(torch.zeros(3), 2.0, layer=0), "zero"),
        (lambda: Set(torch.zeros(3), 2.0, layer=0), "zero"),
        (lambda: Clamp(torch.ones(3), layer=0), "needs a low or a high"),
        (lambda: Clamp(torch.ones(3), low=2, high=1, layer=0), "low <= high"),
        (lambda: Compose([]), "at least one"),
        (lambda: AddDirection.from_pairs(torch.ones(2, 3), torch.ones(3, 3), "z"), "one shape"),
        (lambda: AddDirection.mean_difference(torch.ones(4, 3), torch.ones(4), "z"), "only the label '1'"),
        (lambda: AddDirection.mean_difference(torch.ones(3, 3), torch.tensor([0, 1, 2]), "z"), "have 3 values"),
        (lambda: AddDirection.mean_difference(torch.ones(4, 3), torch.tensor([0, 1]), "z"), "each of 4 examples"),
        (
            lambda: AddDirection.mean_difference(torch.ones(2, 3), torch.tensor([0, 1]), "z", toward=5),
            "toward must be one of",
        ),
        (lambda: AddDirection(torch.ones(3), layer=0).strength("strong"), "no strength 'strong'"),
        (lambda: AddDirection(torch.ones(3), layer=0).strength(float("inf")), "finite number, got inf"),
    ],
)
def test_bad_edits_are_refused_in_one_line(make, message):
    with pytest.raises(EntangleError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
