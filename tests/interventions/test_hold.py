"""Holding concepts still: the scores that must not move do not, those that must do, and nothing nearer does both."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.forecast.spectrum import Spectrum
from entangle.interventions import (
    Ablate,
    AddDirection,
    Clamp,
    Compose,
    Hold,
    Rotate,
    Scale,
    When,
    steer,
)

D = 8


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positive(seed=0):
    root = drawn(D, D, seed=seed)
    return root @ root.T + 0.1 * torch.eye(D, dtype=torch.float64)


def edits(v):
    return [
        AddDirection(v, layer=0),
        Ablate(v, layer=0, mean=v),
        Scale(v, 2.5, layer=0),
        Clamp(v, high=0.1, layer=0),
        Rotate(v, layer=0, degrees=40),
        When(AddDirection(v, layer=0), drawn(D, seed=7), layer=0),
        Compose([AddDirection(v, layer=0), Clamp(v, high=0.1, layer=0)]),
    ]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), with_metric=st.booleans(), alpha=st.sampled_from([-1.0, 0.5, 2.0]))
def test_what_is_held_does_not_move_and_what_is_kept_moves_as_before(seed, with_metric, alpha):
    v, still, keep, x = (drawn(*shape, seed=seed + i) for i, shape in enumerate([(D,), (2, D), (1, D), (20, D)]))
    metric = positive(seed) if with_metric else None
    for edit in edits(v):
        held = Hold.fit(edit, still, keep=keep, metric=metric)
        before, after, one = edit(x, alpha=alpha) - x, held(x, alpha=alpha) - x, dict(rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after @ still.T, torch.zeros(20, 2, dtype=torch.float64), **one)
        if not isinstance(edit, Compose):  # the second of its edits sees what the held first one made
            torch.testing.assert_close(after @ keep.T, before @ keep.T, **one)
        assert (before @ still.T).abs().max() > 0.01  # the edit alone does move them


def test_no_nearer_displacement_holds_and_keeps():
    """By the conditions of optimality: G (s' - s) is a combination of the readers."""
    v, still, keep, g = drawn(D), drawn(2, D, seed=1), drawn(1, D, seed=2), positive()
    for metric in (None, g):
        held = Hold.fit(AddDirection(v, layer=0), still, keep=keep, metric=metric)
        change = held(torch.zeros(D, dtype=torch.float64)) - v
        pull = change if metric is None else metric @ change
        readers = torch.cat([still, keep])
        fitted = readers.T @ torch.linalg.lstsq(readers.T, pull[:, None]).solution[:, 0]
        torch.testing.assert_close(fitted, pull, rtol=1e-4, atol=1e-4)
        # A metric that is another one asks for another displacement.
        assert not torch.allclose(
            change,
            Hold.fit(AddDirection(v, layer=0), still, keep=keep, metric=positive(9))(
                torch.zeros(D, dtype=torch.float64)
            )
            - v,
            atol=1e-3,
        )


def test_without_keep_it_is_the_projection():
    v, still = drawn(D), drawn(2, D, seed=1)
    held = Hold.fit(AddDirection(v, layer=0), still)(torch.zeros(D, dtype=torch.float64))
    basis = torch.linalg.qr(still.T).Q
    torch.testing.assert_close(held, v - basis @ (basis.T @ v), rtol=1e-5, atol=1e-5)


def test_a_forecasts_spectrum_is_a_metric():
    scores = drawn(30, 2, D)
    spectrum = Spectrum.of(scores, torch.full((30,), 5), [D], shrinkage=0.3)
    inverse = spectrum.solve(torch.eye(D, dtype=torch.float64))
    v, still, keep = drawn(D), drawn(1, D, seed=1), drawn(1, D, seed=2)
    by_solving = Hold.fit(AddDirection(v, layer=0), still, keep=keep, metric=spectrum)
    by_matrix = Hold.fit(AddDirection(v, layer=0), still, keep=keep, metric=torch.linalg.inv(inverse))
    torch.testing.assert_close(by_solving.ways, by_matrix.ways, rtol=1e-4, atol=1e-5)


def test_of_several_edits_none_undoes_another():
    vectors, readers, still = drawn(3, D), drawn(3, D, seed=1), drawn(1, D, seed=2)
    parts = [AddDirection(v, layer=0) for v in vectors]
    zero = torch.zeros(D, dtype=torch.float64)
    alone = torch.stack([readers[i] @ vectors[i] for i in range(3)])
    together = Hold.each(parts, readers, still=still)(zero)
    torch.testing.assert_close(readers @ together, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(still @ together, torch.zeros(1, dtype=torch.float64), rtol=0, atol=1e-4)
    plain = Compose(parts)(zero)
    assert (readers @ plain - alone).abs().max() > 0.5


def test_nothing_along_what_is_held_means_nothing_changes():
    still = torch.eye(D, dtype=torch.float64)[:2]
    v = torch.cat([torch.zeros(2), drawn(D - 2).float()])
    x = drawn(4, D)
    torch.testing.assert_close(Hold.fit(AddDirection(v, layer=0), still)(x), AddDirection(v, layer=0)(x))


def test_held_in_a_model_the_site_is_still(tiny_model):
    model = tiny_model("llama")
    from entangle.models import Atlas, hooked

    ids, seen = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0)), []
    v, still = drawn(32, dtype=torch.float32), drawn(2, 32, seed=1, dtype=torch.float32)
    place = Atlas(model).place("resid_post", 1)
    for edit in ([], AddDirection(v, layer=1), Hold.fit(AddDirection(v, layer=1), still)):
        with torch.no_grad(), steer(model, edit), hooked([(place, lambda x: seen.append(x @ still.T))]):
            model(input_ids=ids)
    torch.testing.assert_close(seen[2], seen[0], atol=1e-4, rtol=1e-4)
    assert (seen[1] - seen[0]).abs().max() > 0.5


V = torch.ones(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hold.fit(AddDirection(V), V, keep=2 * V), "1 directions to hold and 1 to keep depend on one another"),
        (lambda: Hold.fit(AddDirection(V), torch.zeros(3)), "depend on one another"),
        (lambda: Hold.fit(AddDirection(V), torch.ones(4)), r"got widths \[3, 4\]"),
        (lambda: Hold.fit(Compose([AddDirection(V, layer=0), AddDirection(V, layer=1)]), V), "acts at 2: hold each"),
        (lambda: Hold.fit(AddDirection(V), V, metric=torch.eye(2)), r"must be \[3, 3\]"),
        (lambda: Hold.fit(AddDirection(V), V, metric=-torch.eye(3)), "not positive definite"),
        (lambda: Hold.fit(AddDirection(V), V, metric="F"), "or something with solve, got str"),
        (lambda: Hold.fit(AddDirection(V), torch.ones(1, 1, 3)), r"got shape \[1, 1, 3\]"),
        (lambda: Hold.each([AddDirection(V)], V), "two edits or more"),
        (lambda: Hold(AddDirection(V), V, torch.ones(2, 3)), "use Hold.fit"),
    ],
)
def test_what_cannot_be_held_says_so_in_one_line(make, message):
    with pytest.raises(EntangleError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_metric_of_all_heads_is_none_of_one():
    class Whole:
        def at(self, sites, layers, /):
            return self

        def spectrum(self):
            raise NotImplementedError  # it is not asked

    edit, still = AddDirection(drawn(D), "z", 0, 1), drawn(D, seed=1)
    with pytest.raises(EntangleError, match="a metric of all of z does not say what head 1 alone costs"):
        Hold.fit(edit, still, metric=Whole())
    assert Hold.fit(edit, still, metric=positive()).ways.shape == (1, D)
