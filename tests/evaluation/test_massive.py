"""A few coordinates hundreds of times the rest: what every room makes of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import entangle as en
from entangle.concepts.report import entanglement_report
from entangle.errors import EntangleError
from entangle.metrics import massive_coordinates

DIMS = 24
MASSIVE = (5, 17)
OPTIONS = {"n_resamples": 100, "n_permutations": 60, "n_splits": 4}


def concept(direction, n, *, seed, strength):
    """Balanced examples whose classes differ by `strength` along `direction`."""
    y = torch.arange(n) % 2
    x = torch.randn(n, len(direction), generator=torch.Generator().manual_seed(seed))
    return x + strength * (y - 0.5)[:, None] * torch.nn.functional.normalize(direction, dim=0), y


def fitted(examples):
    """Mean differences as `Directions` look."""
    vectors = torch.stack([x[y == 1].mean(0) - x[y == 0].mean(0) for x, y in examples.values()])
    return SimpleNamespace(
        vectors=vectors, names=tuple(examples), site="resid_post", layer=3, head=None, estimator="mean_difference"
    )


def planted(cosine: float, *, massive: float, n: int = 600):
    """Two concepts whose true directions have a cosine, both said by the massive coordinates too, and a third."""
    a, b, c = torch.eye(DIMS)[:3]
    scale = torch.ones(DIMS)
    scale[list(MASSIVE)] = massive
    directions = {"a": a, "b": cosine * a + (1 - cosine**2) ** 0.5 * b, "c": c}
    examples = {}
    for i, (name, direction) in enumerate(directions.items()):
        x, y = concept(direction, n, seed=i, strength=3.0)
        x[:, MASSIVE[0]] += 0.8 * (y - 0.5)  # each class leans a little along a massive coordinate
        examples[name] = (x * scale, y)
    return examples


def report(examples):
    return entanglement_report(fitted(examples), examples, **OPTIONS)


def test_coordinates_that_stand_out_are_found_whatever_the_unit_and_no_others_are():
    x = torch.randn(400, 60, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 4, 60)
    assert massive_coordinates(x).tolist() == []
    x[:, [3, 40]] *= torch.tensor([1200.0, 300.0])
    x[:, 7] = 5e4  # large, but it never changes: no direction is long along it
    x[:, 8] = 0  # dead
    for unit in (1.0, 1e-6, 1e6):
        assert massive_coordinates(x * unit).tolist() == [3, 40]
    assert massive_coordinates(torch.zeros(5, 4)).tolist() == []
    with pytest.raises(EntangleError, match="factor must be above 1; got 1"):
        massive_coordinates(x, 1)


def test_one_coordinate_carries_every_cosine_and_setting_it_aside_shows_what_was_planted():
    carried = report(planted(0.6, massive=300.0))
    assert carried.massive == MASSIVE
    off = ~torch.eye(3, dtype=torch.bool)
    assert (carried.cosine.value[off].abs() > 0.95).all()
    assert (carried.entanglement.value > 0.95).all()
    assert carried.set_aside.value[0, 1] == pytest.approx(0.6, abs=0.08)
    assert (carried.set_aside.value[2, :2].abs() < 0.15).all()
    assert carried.entanglement_set_aside.value[0] == pytest.approx(0.6, abs=0.08)
    assert carried.entanglement_set_aside.value[2] < 0.15
    low, high = carried.set_aside.low[0, 1], carried.set_aside.high[0, 1]
    assert low < 0.6 < high < 0.95
    # The control: where nothing is massive nothing is set aside, and both say the same.
    tame = report(planted(0.6, massive=1.0))
    assert tame.massive == ()
    torch.testing.assert_close(tame.set_aside.value, tame.cosine.value)
    torch.testing.assert_close(tame.entanglement_set_aside.high, tame.entanglement.high)


def test_both_numbers_stand_in_table_pairs_and_files(tmp_path):
    carried = report(planted(0.6, massive=300.0))
    row = carried.to_frame().set_index("concept").loc["a"]
    assert row["massive"] == 2
    assert row["entanglement"] > 0.95 > row["set_aside_high"] > row["set_aside"] > row["set_aside_low"]
    pair = carried.pairs().iloc[0]
    assert pair["set_aside"] == pytest.approx(row["set_aside"])
    assert 0 <= pair["set_aside_percentile"] <= 1
    carried.save(tmp_path)
    again = type(carried).load(tmp_path)
    assert again.massive == MASSIVE
    torch.testing.assert_close(again.entanglement_set_aside.low, carried.entanglement_set_aside.low)


def test_directions_of_a_massive_coordinate_alone_keep_it():
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    x[:, 2] *= 1000
    found = entanglement_report(torch.eye(6)[[2, 3]], x, n_permutations=20)
    assert found.massive == ()
    assert torch.isfinite(found.entanglement_set_aside.value).all()


def test_erasure_leaves_nothing_linear_and_moves_nothing_else_where_coordinates_are_massive():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(800) % 2
    x = torch.randn(800, 12, generator=generator)
    x[:, 1] += y
    x[:, 2] += 0.5 * y
    x[:, 2] *= 3000  # massive, and it says the class
    x[:, 3] += 50_000  # massive and constant
    x[:, 4] = 0  # dead
    erased = en.Erase.fit(x, y, site="resid_post", layer=0)
    (form,) = erased.forms()
    after = form(x.double() if form.constant.dtype == torch.float64 else x)
    gap = (after[y == 1].double().mean(0) - after[y == 0].double().mean(0)).abs()
    assert (gap < 1e-3 * x.double().std(0).clamp(min=1e-6)).all()
    assert after[:, 4].abs().max() < 1e-6
    untouched = [i for i in range(12) if i not in (1, 2)]
    moved = (after - x).double().std(0)[untouched] / x.double().std(0)[untouched].clamp(min=1)
    assert (moved < 0.2).all()  # only what goes with the class moves


def test_whitening_is_the_same_in_whatever_unit_each_coordinate_is_measured():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 10, generator=generator) @ torch.randn(10, 10, generator=generator)
    directions = torch.randn(3, 10, generator=generator)
    unit = torch.ones(10)
    unit[2], unit[7] = 3000.0, 0.02
    tame, massive = (entanglement_report(directions * u, x * u, n_permutations=20) for u in (torch.ones(10), unit))
    torch.testing.assert_close(massive.whitened.value, tame.whitened.value, atol=1e-6, rtol=1e-4)
    assert (massive.cosine.value - tame.cosine.value).abs().max() > 0.1  # the control: plain cosines are not
    dead = torch.cat([x, torch.full((500, 1), 7.0)], 1)
    with_dead = entanglement_report(torch.cat([directions, torch.zeros(3, 1)], 1), dead, n_permutations=20)
    torch.testing.assert_close(with_dead.whitened.value, tame.whitened.value, atol=0.02, rtol=0.05)


def test_a_head_that_is_dead_in_half_precision_has_no_say_and_stops_nothing():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    z = torch.randn(200, 2, 3, 4, generator=generator)
    z[:, 1, 2] += 2 * (y[:, None] - 0.5)
    z[:, 0, 1] *= 1e-9  # below what float16 holds
    grid = en.fit_probes(z.half(), y, n_permutations=0, progress=False)
    assert (z.half()[:, 0, 1] == 0).all()
    assert grid.accuracy[0, 1] == pytest.approx(0.5, abs=0.1)
    assert grid.top(1) == [(1, 2)]
    assert torch.isfinite(torch.as_tensor(grid.directions)).all()
    for heads in ("probe", "random"):
        iti = en.ITI.fit(z.half(), y, top_k=5, heads=heads)
        assert (0, 1) not in iti.heads
        assert torch.isfinite(iti.directions).all()
        assert (iti.sigmas > 0).all()
        with pytest.raises(EntangleError, match=r"are not dead; got 6|only 5 heads of z ever change"):
            en.ITI.fit(z.half(), y, top_k=6, heads=heads)
