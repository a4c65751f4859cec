"""Sweeps of autoencoders against solutions known in closed form."""

from __future__ import annotations

import json

import pytest
import torch

from entangle.toy import SparseFeatures, phase_diagram, polytope_census, rare_feature, superposition_study
from entangle.toy.autoencoders.sweeps import KEPT, Optimum, dimension_plateaus


@pytest.fixture(scope="module")
def diagram():
    return phase_diagram(n_cells=6, n_instances=6, steps=800, progress=False)


def candidate_losses(density: float, importance: float) -> dict[str, float]:
    """The best loss of each solution that Elhage et al. 2022 compare: keep one feature, or hold both as a pair."""
    rows, weights = SparseFeatures(2, probability=density).quadrature()
    weights = weights[0]
    scale = torch.linspace(0.5, 1.5, 101)[:, None, None]
    bias = torch.linspace(-0.5, 0.5, 101)[None, :, None]

    def loss(prediction, truth, weight):
        return ((prediction - truth) ** 2 * weights).sum(-1) * weight

    mean = density / 2
    x0, x1 = rows.unbind(1)
    pair = loss((scale * (x0 - x1) + bias).relu(), x0, 1) + loss((scale * (x1 - x0) + bias).relu(), x1, importance)
    return {
        "dropped": float(loss(torch.tensor(mean), x1, importance)),
        "dedicated dimension": float(loss(torch.tensor(mean), x0, 1)),
        "superposition": float(pair.min()),
    }


def test_each_cell_is_at_least_as_good_as_every_solution_in_closed_form(diagram):
    frame = diagram.to_frame()
    assert len(frame) == 36
    for cell in frame.itertuples():
        best = min(candidate_losses(cell.density, cell.importance).values())
        assert cell.loss <= best * 1.03 + 1e-7, cell


def test_where_one_solution_is_clearly_best_the_cell_is_in_its_phase(diagram):
    checked = set()
    for cell in diagram.to_frame().itertuples():
        losses = sorted((loss, phase) for phase, loss in candidate_losses(cell.density, cell.importance).items())
        if losses[1][0] > 1.5 * losses[0][0]:
            assert cell.phase == losses[0][1], cell
            checked.add(cell.phase)
    assert checked == {"dropped", "dedicated dimension", "superposition"}


def test_the_census_counts_what_random_starts_found():
    cases = (Optimum(5, 2, "pentagon"), Optimum(5, 2, "pentagon", probability=1.0))
    frame = polytope_census(cases, n_instances=6, steps=1000, batch_size=384, progress=False)
    sparse, dense = frame.iloc[:6], frame.iloc[6:]
    assert sparse["at_optimum"].mean() >= 0.5
    assert not dense["at_optimum"].any()
    assert (sparse["at_optimum"] == (sparse["found"] == "pentagon")).all()


def test_a_rare_feature_is_dropped_rather_than_entangled():
    frame = rare_feature(shares=(0.01, 1.0), n_instances=8, steps=1000, batch_size=256, progress=False)
    rare, common = frame[frame["share"] < 0.5], frame[frame["share"] == 1]
    assert rare["norm"].mean() < 0.5 < common["norm"].mean()
    assert rare["dropped"].mean() > 0.5 > common["dropped"].mean()
    assert rare["dimensionality"].mean() < 0.5 * common["dimensionality"].mean()
    assert (frame["dropped"] == (frame["norm"] < KEPT)).all()
    assert frame.loc[frame["dropped"], "entanglement_if_kept"].isna().all()


def test_dimensions_per_feature_fall_as_features_grow_sparser():
    frame = dimension_plateaus(30, 5, n_densities=5, steps=600, batch_size=256, progress=False)
    per_density = frame.groupby("density")["dimensions_per_feature"].first()
    assert len(frame) == 150
    assert per_density.is_monotonic_increasing
    assert per_density.iloc[-1] > 0.85
    assert per_density.iloc[0] < 0.3


@pytest.mark.slow
def test_the_whole_study_writes_figures_and_json(tmp_path):
    study = superposition_study(n_instances=4, n_cells=4, progress=False, out=tmp_path)
    record = json.loads((tmp_path / "superposition.json").read_text())
    assert {row["expected"] for row in record["geometry"]} == {
        "antipodal pair",
        "pentagon",
        "octahedron",
        "square antiprism",
    }
    assert len(record["phases"]) == 16
    assert study.settings["seconds"] > 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"superposition.json", "geometry.png", "phase_diagram.png", "plateaus.png", "rarity.png"}
