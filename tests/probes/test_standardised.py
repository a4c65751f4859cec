"""Probes in the units of the data: scikit-learn's pipeline, whatever the scale of layers, coordinates and outliers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import entangle as en
from entangle.probes import LogisticProbe
from entangle.probes.fit import PENALTIES
from entangle.probes.splits import three_way

QUIET = {"progress": False, "n_permutations": 0}
FEATURES = 12


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers: in the second, two coordinates are hundreds of times the rest and one never changes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (600,), generator=generator)
    x = torch.randn(600, 2, FEATURES, generator=generator)
    x[:, :, :4] += 0.5 * (y[:, None, None] - 0.5)
    x[:, 1] *= torch.logspace(-1, 1, FEATURES)
    x[:, 1, 8:10] = 3000 * x[:, 1, 8:10] + 50_000
    x[:, 1, 11] = 4.2
    return x, y


@pytest.mark.parametrize("C", [1e-4, 0.01, 1.0])
def test_coefficients_are_those_of_a_scaled_pipeline(data, C: float) -> None:
    x, y = data
    grid = en.fit_probes(x, y, C=C, **QUIET)
    split = grid.split
    for layer in range(2):
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-10, max_iter=10_000))
        pipeline.fit(x[split.fit, layer].double().numpy(), y[split.fit].numpy())
        scaler, model = pipeline[0], pipeline[1]
        raw = model.coef_[0] / scaler.scale_
        np.testing.assert_allclose(grid.coef_[layer], raw, rtol=2e-3, atol=1e-4 * np.abs(raw).max())
        theirs = pipeline.decision_function(x[split.report, layer].double().numpy())
        np.testing.assert_allclose(grid.report_scores[:, layer], theirs, rtol=2e-3, atol=2e-3)


def test_ridge_is_scaled_likewise(data) -> None:
    x, y = data
    grid = en.fit_probes(x, y, probe="ridge", **QUIET)
    fitted = grid.split.fit
    pipeline = make_pipeline(StandardScaler(), RidgeClassifier()).fit(x[fitted, 1].double().numpy(), y[fitted].numpy())
    np.testing.assert_allclose(grid.coef_[1], np.ravel(pipeline[1].coef_) / pipeline[0].scale_, rtol=5e-3, atol=1e-7)


def test_no_unit_of_any_coordinate_matters(data) -> None:
    x, y = data
    units = torch.logspace(-4, 4, 2 * FEATURES).reshape(2, FEATURES)
    one, other = en.fit_probes(x, y, **QUIET), en.fit_probes(x * units, y, **QUIET)
    torch.testing.assert_close(one.report_scores, other.report_scores, rtol=1e-2, atol=1e-3)
    assert torch.equal(one.C, other.C)
    raw, rescaled = (en.fit_probes(each, y, C=0.01, standardise=False, **QUIET) for each in (x, x * units))
    assert not torch.allclose(raw.report_scores, rescaled.report_scores, rtol=1e-1, atol=1e-2)


def test_massive_coordinates_and_dead_ones_leave_accuracy_alone(data) -> None:
    x, y = data
    whole = en.fit_probes(x, y, **QUIET)
    tame = en.fit_probes(x[:, 1:, :8], y, **QUIET)
    assert whole.converged.all()
    assert whole.accuracy[1].item() == pytest.approx(tame.accuracy[0].item(), abs=0.05)
    assert whole.coef_[1, 11] == 0


def test_each_cell_takes_the_penalty_that_selection_rows_want() -> None:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(2, (300,), generator=generator)
    noise = torch.randn(300, 2, 150, generator=generator)
    noise[:, 0, :] += 0.12 * (2 * y[:, None] - 1)  # much weak evidence: a strong penalty
    noise[:, 1, 0] += 12.0 * (2 * y - 1)
    noise[:, 1, 1] = noise[:, 1, 0] + 0.01 * torch.randn(300, generator=generator)
    grid = en.fit_probes(noise, y, **QUIET)
    assert torch.isin(grid.C, torch.tensor(PENALTIES)).all()
    for layer in range(2):
        scores = []
        for C in PENALTIES:
            pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=10_000, tol=1e-8))
            pipeline.fit(noise[grid.split.fit, layer].numpy(), y[grid.split.fit].numpy())
            scores.append(pipeline.score(noise[grid.split.select, layer].numpy(), y[grid.split.select].numpy()))
        chosen = PENALTIES[int(np.argmax(scores))]
        assert grid.C[layer].item() == pytest.approx(chosen)
    assert grid.C[0] > min(PENALTIES)


def test_nothing_of_selection_or_report_rows_scales_the_features(data) -> None:
    x, y = data
    split = three_way(y, seed=0)
    other = x.clone()
    other[split.report] *= 100
    one, changed = (en.fit_probes(each, y, split=split, **QUIET) for each in (x, other))
    assert torch.equal(one.coef_, changed.coef_)
    assert torch.equal(one.C, changed.C)


def test_an_estimator_of_ones_own_is_taken_as_it_is(data) -> None:
    x, y = data
    grid = en.fit_probes(x[:, :1], y, probe=LogisticProbe(C=0.1), **QUIET)
    fitted = grid.split.fit
    theirs = LogisticRegression(C=0.1, tol=1e-10).fit(x[fitted, 0].numpy(), y[fitted].numpy())
    np.testing.assert_allclose(grid.coef_[0], theirs.coef_[0], rtol=1e-3, atol=1e-5)
    scaled = en.fit_probes(x[:, :1], y, probe=LogisticProbe(C=0.1), standardise=True, **QUIET)
    assert not torch.allclose(grid.coef_, scaled.coef_, rtol=1e-4)


def test_the_null_is_of_probes_under_the_penalty_that_was_chosen(data) -> None:
    x, y = data
    grid = en.fit_probes(x, y, n_permutations=6, progress=False)
    alone = [en.fit_probes(x[:, i : i + 1], y, C=grid.C[i].item(), n_permutations=6, progress=False) for i in range(2)]
    torch.testing.assert_close(grid.null, torch.cat([each.null for each in alone], 1), atol=0.02, rtol=0)
