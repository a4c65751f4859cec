"""Cells in which there is nothing to read score chance and are named, and the others score as without them."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import entangle as en
from entangle.errors import EntangleError

PROBES = ("logistic", "mean_difference", "lda", "ridge", "svm")
Y = torch.arange(300) % 2


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(300, 2, 3, 8, generator=torch.Generator().manual_seed(0)) + Y[:, None, None, None] * 0.5


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("value", [0.0, 3.7, -1e6])
def test_a_cell_that_never_varies_is_at_chance_and_said_to_be(probe: str, value: float, x: torch.Tensor) -> None:
    whole = en.fit_probes(x, Y, probe=probe, n_permutations=3, progress=False)
    dead = x.clone()
    dead[:, 1, 1] = value
    grid = en.fit_probes(dead, Y, probe=probe, n_permutations=3, progress=False)
    assert grid.constant.nonzero().tolist() == [[1, 1]]
    assert not whole.constant.any()
    assert (grid.accuracy[1, 1], grid.auroc[1, 1]) == (0.5, 0.5)
    assert grid.coef_[1, 1].abs().max() == 0
    others = ~grid.constant
    torch.testing.assert_close(grid.accuracy[others], whole.accuracy[others])
    assert (whole.accuracy[1, 1], whole.auroc[1, 1]) != (0.5, 0.5)
    assert grid.to_frame()["constant"].sum() == 1


def test_a_grid_remembers_its_dead_cells(x: torch.Tensor, tmp_path: object) -> None:
    x[:, 0, 2] = 0
    en.fit_probes(x, Y, n_permutations=0, progress=False).save(tmp_path)
    assert en.ProbeGrid.load(tmp_path).constant.nonzero().tolist() == [[0, 2]]


@pytest.mark.parametrize("probe", PROBES)
def test_a_feature_that_never_varies_or_is_there_twice_changes_no_prediction(probe: str, x: torch.Tensor) -> None:
    cell = x[:, 0, 0]
    plain = en.fit_probes(cell, Y, probe=probe, n_permutations=0, progress=False)
    with_constant = torch.cat([cell, torch.full((300, 1), 5.0)], 1)
    grid = en.fit_probes(with_constant, Y, probe=probe, n_permutations=0, progress=False)
    if probe != "lda":  # whose shrinkage counts the features
        torch.testing.assert_close(grid.report_scores, plain.report_scores, atol=1e-4, rtol=1e-3)
    assert grid.coef_[-1] == 0
    twice = en.fit_probes(torch.cat([cell, cell], 1), Y, probe=probe, n_permutations=0, progress=False)
    torch.testing.assert_close(twice.coef_[:8], twice.coef_[8:], atol=1e-4, rtol=1e-3)
    assert abs(float(twice.auroc - plain.auroc)) < 0.05


@pytest.mark.parametrize("shrinkage", [0, "oas", 0.3, 1])
def test_a_dead_cell_at_any_shrinkage(shrinkage: float | str, x: torch.Tensor) -> None:
    x[:, 1, 1] = 2
    found = en.LDAProbe(shrinkage).fit(x, Y)
    assert np.isfinite(found.coef_).all()
    assert (found.coef_[1, 1] == 0).all()


def test_lda_of_live_cells_is_still_that_of_scikit_learn(x: torch.Tensor) -> None:
    cell = x[:, 0, 0].double().numpy()
    found = en.LDAProbe(0.3).fit(cell, Y.numpy())
    other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(cell, Y.numpy())
    np.testing.assert_allclose(found.decision_function(cell), other.decision_function(cell), atol=0.05)


def test_classes_without_spread_are_told_apart_along_their_means() -> None:
    points = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 1.0]])
    found = en.LDAProbe().fit(points[torch.arange(20) % 2], torch.arange(20) % 2)
    direction = torch.from_numpy(found.coef_[0])
    assert torch.nn.functional.cosine_similarity(direction, (points[1] - points[0]).double(), dim=0) > 1 - 1e-9
    assert found.score(points, torch.arange(2)) == 1


@pytest.mark.parametrize("probe", [probe for probe in PROBES if probe != "lda"])
def test_one_row_a_class_is_enough_to_draw_a_line(probe: str) -> None:
    x, y = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), [0, 1]
    assert en.probes.estimators.make_probe(probe).fit(x, y).predict(x).tolist() == y


def test_one_row_a_class_has_no_covariance() -> None:
    with pytest.raises(EntangleError, match="more examples than classes"):
        en.LDAProbe().fit(torch.eye(2), [0, 1])


@pytest.mark.parametrize("probe", PROBES)
def test_half_precision_that_overflowed_is_pointed_at(probe: str, x: torch.Tensor) -> None:
    x[17, 1, 2, 3] = 1e5
    with pytest.raises(EntangleError, match=r"NaN or inf: example 17, cell \(1, 2\), feature 3 is inf"):
        en.fit_probes(x.half(), Y, probe=probe, n_permutations=0, progress=False)
    large = x.clone()
    large[:, 0, 0] *= 1e4  # within half precision, whose squares are not
    grid = en.fit_probes(large.clamp(-6e4, 6e4).half(), Y, probe=probe, n_permutations=0, progress=False)
    assert grid.report_scores.isfinite().all()


def test_heads_that_never_vary_are_no_places_to_steer(x: torch.Tensor) -> None:
    class Acts:
        fingerprint = None

        def layers(self, site: str) -> list[int]:
            return [0, 1]

        def __getitem__(self, site: str) -> torch.Tensor:
            return x

    x[:, 1, 1] = 0
    found = en.evaluation.methods.places.iti_places(Acts(), Y, top_k=[5])["ITI 5 heads"]
    assert (1, 1) not in found.heads
    with pytest.raises(EntangleError, match="the 5 cells of the grid that converged and are not dead; got 6"):
        en.ITI.fit(x, Y, top_k=6)


@pytest.mark.parametrize("probe", PROBES)
def test_a_broken_cell_is_marked_and_the_others_are_as_without_it(probe: str, x: torch.Tensor) -> None:
    whole = en.fit_probes(x, Y, probe=probe, n_permutations=2, progress=False)
    x[17, 1, 2, 3] = torch.nan
    grid = en.fit_probes(x, Y, probe=probe, n_permutations=2, broken="mark", progress=False)
    assert list(grid.broken) == [(1, 2)]
    assert "example 17, cell (1, 2), feature 3 is nan" in grid.broken[1, 2]
    assert (1, 2) not in grid.top(5)
    assert not grid.coef_[1, 2].any()
    others = torch.ones(2, 3, dtype=torch.bool)
    others[1, 2] = False
    assert torch.equal(grid.converged, others)
    torch.testing.assert_close(grid.coef_[others], whole.coef_[others])
    assert torch.equal(grid.accuracy[others], whole.accuracy[others])


def test_a_grid_whose_cells_are_all_broken_is_refused(x: torch.Tensor) -> None:
    x[17] = torch.nan
    with pytest.raises(EntangleError, match=r"cell \(0, 0\), feature 0 is nan"):
        en.fit_probes(x, Y, broken="mark", progress=False)
    with pytest.raises(EntangleError, match='"refuse" or "mark"'):
        en.fit_probes(x, Y, broken="skip", progress=False)  # type: ignore[arg-type]
