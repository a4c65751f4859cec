"""The probes as scikit-learn estimators, alone and over a grid."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from entangle.errors import EntangleError
from entangle.probes.estimators import PROBES, CellByCell, LogisticProbe, make_probe


@parametrize_with_checks([cls() for cls in PROBES.values()])
def test_scikit_learns_own_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.fixture(scope="module")
def grid_data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    x = rng.normal(size=(300, 2, 3, 6)).astype(np.float32)
    x[:, 1, 2, 0] += 2 * y
    return x, y


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_grid_is_its_cells(grid_data, name, n_classes):
    x, y = grid_data
    y = y + (np.arange(300) % 3 == 0) if n_classes == 3 else y
    together = make_probe(name).fit(x, y)
    outputs = () if n_classes == 2 else (3,)
    assert together.coef_.shape == (2, 3, *outputs, 6)
    assert together.intercept_.shape == (2, 3, *outputs)
    assert together.decision_function(x).shape == (300, 2, 3, *outputs)
    for cell in np.ndindex(2, 3):
        alone = make_probe(name).fit(x[:, *cell], y)
        np.testing.assert_allclose(
            together.coef_[cell], alone.coef_.squeeze(0) if n_classes == 2 else alone.coef_, atol=2e-4
        )
        np.testing.assert_allclose(together.score(x, y)[cell], alone.score(x[:, *cell], y), atol=0.011)


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("kind", ["strings", "bools", "floats", "tensor"])
def test_labels_of_any_kind(grid_data, name, kind):
    x, y = grid_data
    labels = {
        "strings": np.array(["no", "yes"])[y],
        "bools": y == 1,
        "floats": y * 2.0 - 1,
        "tensor": torch.from_numpy(y),
    }[kind]
    fitted = make_probe(name).fit(torch.from_numpy(x), labels)
    np.testing.assert_array_equal(fitted.coef_, make_probe(name).fit(torch.from_numpy(x), y).coef_)
    assert set(fitted.predict(x).flatten().tolist()) <= set(np.asarray(labels).tolist())


@pytest.mark.parametrize("weight", ["balanced", {0: 1.0, 1: 5.0}])
def test_class_weights_are_scikit_learns(grid_data, weight):
    x, y = grid_data[0][:, 1, 2].astype(np.float64), (grid_data[1] == 1) & (np.arange(300) % 3 == 0)
    sample = np.linspace(0.5, 2, 300)
    ours = LogisticProbe(class_weight=weight, tol=1e-14).fit(x, y.astype(int), sample_weight=sample)
    theirs = LogisticRegression(class_weight=weight, tol=1e-10, max_iter=10_000).fit(
        x, y.astype(int), sample_weight=sample
    )
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-5)
    assert not np.allclose(ours.coef_, LogisticProbe().fit(x, y.astype(int), sample_weight=sample).coef_, atol=1e-2)


def test_they_work_where_scikit_learns_do(grid_data):
    x, y = grid_data[0][:, 1, 2], grid_data[1]
    assert cross_val_score(make_pipeline(StandardScaler(), LogisticProbe()), x, y).mean() > 0.75
    assert clone(LogisticProbe(C=3.0)).C == 3.0


def test_a_cell_that_has_not_converged_is_named(grid_data):
    x, y = grid_data
    with pytest.warns(ConvergenceWarning, match=r"not converged after 1 steps: cell \(0, 0\), .* \(6 of 6\)"):
        probe = LogisticProbe(max_iter=1).fit(x, y)
    assert not probe.converged_[1, 2]


@pytest.mark.parametrize("name", ["logistic", "svm", "ridge"])
@pytest.mark.parametrize("penalty", [0.0, -1.0, float("inf"), float("nan")])
def test_no_penalty_is_refused(grid_data, name, penalty):
    parameter = "alpha" if name == "ridge" else "C"
    if name == "ridge" and penalty == float("inf"):
        return  # an infinite alpha is C = 0, refused as such below
    with pytest.raises(EntangleError, match="positive and finite"):
        make_probe(name, **{parameter: penalty}).fit(*grid_data)


@given(example=st.integers(0, 49), cell=st.integers(0, 3), value=st.sampled_from([np.nan, np.inf, -np.inf]))
@settings(deadline=None, max_examples=30)
def test_what_is_not_finite_is_pointed_at(example, cell, value):
    x = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0))
    x[example, cell, 1] = value
    with pytest.raises(EntangleError, match=rf"NaN or inf: example {example}, cell \({cell}\), feature 1 is"):
        LogisticProbe().fit(x, np.arange(50) % 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(50), "two classes or more"),
        (np.linspace(0, 1, 50), "continuous"),
        (np.arange(50), "must name classes"),
        (np.arange(49) % 2, "49"),
        (np.array([1, "a"] * 25, dtype=object), "of one kind"),
        (np.array([1, 2, None] * 16 + [1, 1], dtype=object), "missing"),
        (np.array([0.0, 1.0] * 24 + [0, np.nan]), "NaN"),
    ],
)
def test_labels_that_are_refused(labels, message):
    with pytest.raises(EntangleError, match=message) as caught:
        LogisticProbe().fit(torch.randn(50, 4, 3), labels)
    assert "\n" not in str(caught.value)


def test_any_linear_classifier_cell_by_cell(grid_data):
    x, y = grid_data
    solver = CellByCell(LogisticRegression()).solver(torch.from_numpy(x[:, 1]).transpose(0, 1), np.array([0, 1]))
    solution = solver(torch.from_numpy(y)[:, None])
    np.testing.assert_allclose(solution.coef[2, 0], LogisticRegression().fit(x[:, 1, 2], y).coef_)


def test_names_and_parameters_that_do_not_exist():
    with pytest.raises(EntangleError, match="must be one of logistic"):
        make_probe("forest")
    with pytest.raises(EntangleError, match="lda probe has no parameter C"):
        make_probe("lda", C=1.0)
    with pytest.raises(EntangleError, match="an instance"):
        make_probe(LogisticProbe)
