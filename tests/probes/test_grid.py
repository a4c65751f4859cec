"""A grid of probes: no leak, an honest null, intervals, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import entangle as en
from entangle.errors import EntangleError
from entangle.probes import LogisticProbe, ProbeGrid, Split, fit_probes, separation, three_way


def fit(x, y, **options) -> ProbeGrid:
    return fit_probes(x, y, **{"progress": False, "n_permutations": 0, "n_resamples": 200} | options)


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (900,), generator=generator)
    x = torch.randn(900, 3, 2, 8, generator=generator)
    x[:, 2, 1, 3] += 2 * y
    x[:, 0, 0, 3] += 0.7 * y
    return x, y


@pytest.fixture(scope="module")
def grid(data) -> ProbeGrid:
    return fit(*data, n_permutations=40, layers=[4, 5, 9])


def test_the_numbers_are_those_of_the_report_part(data, grid):
    x, y = data
    split = grid.split
    for cell in np.ndindex(3, 2):
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=grid.C[cell].item(), tol=1e-8))
        theirs = pipeline.fit(x[split.fit][:, *cell], y[split.fit])
        held_out = x[split.report][:, *cell]
        assert grid.accuracy[cell].item() == pytest.approx(theirs.score(held_out, y[split.report]), abs=0.011)
        area = roc_auc_score(y[split.report], theirs.decision_function(held_out))
        assert grid.auroc[cell].item() == pytest.approx(area, abs=1e-3)
        assert grid.selection_accuracy[cell].item() == pytest.approx(
            theirs.score(x[split.select][:, *cell], y[split.select]), abs=0.011
        )


def test_what_is_reported_does_not_depend_on_report_labels(data, grid):
    """Nothing about the report part reaches the fit or the choice of cells: labels there may be anything."""
    x, y = data
    other = y.clone()
    other[grid.split.report] = 1 - other[grid.split.report]
    flipped = fit(x, other, split=grid.split)
    assert torch.equal(flipped.coef_, grid.coef_)
    assert flipped.top(6) == grid.top(6)
    torch.testing.assert_close(flipped.accuracy, 1 - grid.accuracy)


def test_top_ranks_by_the_select_part(grid):
    best = grid.top(3)
    assert best[:2] == [(2, 1), (0, 0)]
    values = [grid.selection_accuracy[cell].item() for cell in best]
    assert values == sorted(values, reverse=True)
    with pytest.raises(EntangleError, match="from 1 to the 6 cells"):
        grid.top(7)


def test_equals_are_told_apart_by_how_far_the_classes_lie_apart():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 2
    shift = torch.tensor([6.0, 60.0, 0.5, 20.0])  # all but the third make no mistake
    x = torch.randn(300, 4, 3, generator=generator) + shift[:, None] * (2.0 * y - 1)[:, None, None]
    grid = fit(x, y, n_permutations=0)
    assert (grid.selection_accuracy[[0, 1, 3]] == 1).all()
    assert grid.top(4) == [(1,), (3,), (0,), (2,)]
    other_units = fit(x * torch.tensor([100.0, 1.0, 1.0, 0.01])[:, None], y, n_permutations=0)
    assert other_units.top(4) == grid.top(4)
    assert fit(x.flip(1), y, n_permutations=0).top(4) == [(2,), (0,), (3,), (1,)]


def test_separation_of_scores_without_spread_is_endless_and_of_equal_ones_nothing():
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert separation(scores, torch.tensor([1, 1, 0, 0]), 2).tolist() == [torch.inf, 0.0]


def test_p_values_find_the_signal_and_nothing_else(grid):
    assert grid.null.shape == (40, 3, 2)
    assert grid.p_values[2, 1].item() == pytest.approx(1 / 41)
    assert grid.p_values[1].min().item() > 0.05
    assert abs(grid.null.mean().item() - 0.5) < 0.02
    assert grid.accuracy[2, 1].item() > grid.null_ceiling() > 0.5


def test_intervals_hold_their_value(grid):
    for estimate in (grid.interval, grid.auroc_interval):
        assert estimate.low.shape == (3, 2)
        assert bool((estimate.low <= estimate.value).all())
        assert bool((estimate.value <= estimate.high).all())
    torch.testing.assert_close(grid.interval.value.float(), grid.accuracy)


def test_directions_point_to_the_second_class(data, grid):
    torch.testing.assert_close(grid.directions.norm(dim=-1), torch.ones(3, 2))
    assert grid.directions[2, 1, 3].item() > 0.9
    turned = fit(data[0], 1 - data[1], split=grid.split)
    torch.testing.assert_close(turned.directions, -grid.directions, atol=1e-3, rtol=0)


def test_frame_and_plot(grid):
    frame = grid.to_frame()
    assert list(frame["layer"]) == [4, 4, 5, 5, 9, 9]
    assert list(frame["head"]) == [0, 1] * 3
    assert {"accuracy", "accuracy_low", "accuracy_high", "auroc", "p_value", "selection_accuracy"} <= set(frame.columns)
    assert frame.loc[frame.accuracy.idxmax(), ["layer", "head"]].tolist() == [9, 1]
    axes = grid.plot(top=2)
    assert axes.get_ylabel() == "layer"


def test_it_comes_back_from_disk(grid, tmp_path):
    grid.save(tmp_path / "grid")
    back = ProbeGrid.load(tmp_path / "grid")
    assert back.to_frame().equals(grid.to_frame())
    assert back.top(6) == grid.top(6)
    assert {path.name for path in (tmp_path / "grid").iterdir()} == {"tensors.safetensors", "meta.json"}


def test_another_model_is_refused(data, tmp_path, tiny_model):
    model, other = tiny_model("llama", 0), tiny_model("llama", 1)
    fit(*data, fingerprint=en.models.fingerprint(model)).save(tmp_path)
    ProbeGrid.load(tmp_path, model=model)
    ProbeGrid.load(tmp_path, fingerprint=en.models.fingerprint(model))
    for whose in ({"model": other}, {"fingerprint": en.models.fingerprint(other)}):
        with pytest.raises(EntangleError, match="these probes came from another model"):
            ProbeGrid.load(tmp_path, **whose)
    fit(*data).save(tmp_path)
    with pytest.raises(EntangleError, match="without a model's fingerprint"):
        ProbeGrid.load(tmp_path, model=model)


@pytest.mark.parametrize("damage", ["missing", "json", "tensors", "kind"])
def test_damaged_files_are_refused(grid, tmp_path, damage):
    grid.save(tmp_path)
    if damage == "missing":
        (tmp_path / "tensors.safetensors").unlink()
    elif damage == "tensors":
        (tmp_path / "tensors.safetensors").write_bytes(b"short")
    else:
        (tmp_path / "meta.json").write_text("{" if damage == "json" else '{"kind": "Other", "version": 1}')
    with pytest.raises(EntangleError, match="ProbeGrid"):
        ProbeGrid.load(tmp_path)


def test_groups_reach_split_null_and_intervals():
    """Copies of a text in a group make a naive interval far too narrow and a naive split leak."""
    generator = torch.Generator().manual_seed(1)
    unique = torch.randn(60, 1, 200, generator=generator)
    y = torch.arange(60) % 2
    x, labels, groups = unique.repeat_interleave(12, 0), y.repeat_interleave(12), torch.arange(60).repeat_interleave(12)
    honest = fit(x, labels, groups=groups, n_permutations=30)
    leaky = fit(x, labels)
    assert leaky.accuracy.item() == 1.0
    assert honest.accuracy.item() < 0.9
    width = honest.interval.high - honest.interval.low
    naive = fit(x, labels, split=honest.split).interval
    assert (width / (naive.high - naive.low)).item() > 2
    assert honest.p_values.item() > 0.01


def test_the_penalty_is_chosen_on_the_select_part(data):
    x, y = data
    choice = fit(x, y, C=[1e-6, 1.0])
    each = [fit(x, y, C=c, split=choice.split) for c in (1e-6, 1.0)]
    for cell in np.ndindex(3, 2):
        best = max((0, 1), key=lambda i: (each[i].selection_accuracy[cell].item(), -i))
        assert choice.C[cell].item() == pytest.approx([1e-6, 1.0][best])
        assert choice.accuracy[cell] == each[best].accuracy[cell]


def test_three_classes():
    generator = torch.Generator().manual_seed(0)
    y = np.array(["a", "b", "c"])[torch.randint(3, (600,), generator=generator).numpy()]
    x = torch.randn(600, 2, 5, generator=generator)
    x[:, 1, :3] += 3 * torch.from_numpy(y[:, None] == np.array(["a", "b", "c"]))
    grid = fit(x, y, n_permutations=20)
    assert grid.coef_.shape == (2, 3, 5)
    assert grid.accuracy[1] > 0.85 > 0.5 > grid.accuracy[0]
    assert grid.p_values[1] < 0.05 < grid.p_values[0]
    assert grid.top(1) == [(1,)]


class Store:
    """A file-like array: a shape, and slices along the first two axes."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.read = array, array.shape, []

    def __getitem__(self, key):
        self.read.append(key)
        return self.array[key]


def test_a_store_is_read_a_block_at_a_time(data, grid, monkeypatch):
    monkeypatch.setattr("entangle.probes.fit.BLOCK_BYTES", 4 * 900 * 8)
    store = Store(data[0].numpy())
    streamed = fit(store, data[1])
    assert len(store.read) == 6
    torch.testing.assert_close(streamed.coef_, grid.coef_, atol=1e-4, rtol=1e-4)


def test_half_precision_and_far_from_zero(data, grid):
    """Activations may sit far from the origin, or come in bfloat16; probes see differences."""
    x, y = data
    shifted = fit(x + 1000, y, split=grid.split)
    assert (shifted.accuracy - grid.accuracy).abs().max() < 0.02
    assert (fit(x.bfloat16(), y, split=grid.split).accuracy - grid.accuracy).abs().max() < 0.03


@given(
    n=st.integers(8, 40),
    kind=st.sampled_from(
        ["nan", "one class", "lengths", "part without a class", "empty", "permutations", "probe", "layers"]
    ),
)
@settings(deadline=None, max_examples=40)
def test_bad_input_is_one_clear_line(n, kind):
    x, y, options = torch.randn(n, 2, 3), torch.arange(n) % 2, {}
    if kind == "nan":
        x[n // 2, 1, 0] = torch.nan
    elif kind == "one class":
        y = torch.zeros(n)
    elif kind == "lengths":
        y = y[:-1]
    elif kind == "part without a class":
        options["split"] = Split(torch.arange(4), torch.tensor([4, 6]), torch.tensor([5, 7]))
    elif kind == "empty":
        x = x[:, :0]
    elif kind == "permutations":
        options["n_permutations"] = -1
    elif kind == "probe":
        options["probe"] = "forest"
    else:
        options["layers"] = [1, 2, 3]
    with pytest.raises(EntangleError) as caught:
        fit(x, y, **options)
    assert "\n" not in str(caught.value)


def test_cells_that_do_not_converge_are_marked_and_left_out_of_choices(data):
    grid = fit(*data, probe=LogisticProbe(max_iter=1))
    assert not grid.converged.any()
    assert not grid.to_frame()["converged"].any()
    with pytest.raises(EntangleError, match="0 cells of the grid that converged"):
        grid.top(1)
    assert fit(*data).converged.all()


def test_a_split_of_ones_own(data):
    split = three_way(data[1], fractions=(0.2, 0.4, 0.4), seed=5)
    assert len(fit(*data, split=split).report_scores) == 360
