"""Transport: planted maps come back, and source becomes target."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.interventions import AddDirection, GaussianTransport, LinearTransport

D = 6


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def two_classes(n=200, m=150, seed=0, d=D):
    """Rows of class 1 (to leave) and 0 (to reach), of other means and covariances."""
    source = drawn(n, d, seed=seed) @ drawn(d, d, seed=seed + 1) + 3
    target = drawn(m, d, seed=seed + 2) @ drawn(d, d, seed=seed + 3) - 1
    return torch.cat([source, target]), torch.tensor([1] * n + [0] * m)


def moments(x):
    return x.mean(0), torch.cov(x.T)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_gaussian_transport_gives_the_source_the_targets_mean_and_covariance(seed):
    x, y = two_classes(seed=seed)
    edit = GaussianTransport.fit(x, y, layer=0, shrinkage=0)
    for found, wanted in zip(moments(edit(x[y == 1])), moments(x[y == 0]), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    # A shift of means alone does not.
    moved = AddDirection.mean_difference(x, y, "resid_post", 0)(x[y == 1])
    assert not torch.allclose(torch.cov(moved.T), moments(x[y == 0])[1], rtol=0.1, atol=0.1)


def test_no_other_map_with_the_same_moments_moves_less():
    """A Q for any rotation Q that keeps the target's covariance maps source to target too."""
    x, y = two_classes()
    edit = GaussianTransport.fit(x, y, layer=0, shrinkage=0)
    source, target = x[y == 1], x[y == 0]
    best = edit(source)
    values, vectors = torch.linalg.eigh(torch.cov(target.T))
    root, back = vectors * values.sqrt() @ vectors.T, vectors / values.sqrt() @ vectors.T
    for seed in range(20):
        turn = torch.linalg.qr(drawn(D, D, seed=seed)).Q
        other = (best - target.mean(0)) @ back @ turn @ root + target.mean(0)
        torch.testing.assert_close(torch.cov(other.T), torch.cov(target.T), rtol=1e-6, atol=1e-6)
        assert (other - source).square().sum() > (best - source).square().sum()


def test_with_equal_covariances_it_is_the_difference_of_means():
    rows, shift = drawn(100, D), drawn(D, seed=1)
    x, y = torch.cat([rows, rows + shift]), [1] * 100 + [0] * 100
    edit = GaussianTransport.fit(x, y, layer=0, shrinkage=0)
    torch.testing.assert_close(edit(rows), rows + shift, rtol=1e-7, atol=1e-7)


def test_shrunk_to_the_end_each_coordinate_goes_by_itself():
    x, y = two_classes()
    edit = GaussianTransport.fit(x, y, layer=0, shrinkage=1)
    source, target = x[y == 1], x[y == 0]
    wanted = (source - source.mean(0)) * (target.std(0) / source.std(0)) + target.mean(0)
    torch.testing.assert_close(edit(source), wanted)


def test_alpha_goes_along_the_geodesic():
    """Half-way, the covariance is that of the displacement interpolation, and the means are half-way."""
    x, y = two_classes()
    for edit in (GaussianTransport.fit(x, y, layer=0, shrinkage=0), LinearTransport.fit(x, y, layer=0)):
        source = x[y == 1]
        torch.testing.assert_close(edit(source, alpha=0.5), (source + edit(source)) / 2)
        torch.testing.assert_close(edit(source, alpha=0.5).mean(0), (source.mean(0) + x[y == 0].mean(0)) / 2)


def test_fewer_rows_than_coordinates_leave_alone_what_they_do_not_reach():
    x, y = two_classes(n=4, m=40, d=10)
    edit = GaussianTransport.fit(x, y, layer=0, shrinkage=0)
    source = x[y == 1]
    outside = torch.linalg.svd(source - source.mean(0)).Vh[3:]
    step = drawn(7, seed=9) @ outside
    torch.testing.assert_close(edit(source[0] + step) - edit(source[0]), step, rtol=1e-6, atol=1e-6)


def test_the_shrinkage_that_is_chosen_is_large_for_few_rows_and_small_for_many():
    few, many = (GaussianTransport.fit(*two_classes(n, n, d=12), layer=0).shrinkage for n in (24, 2000))
    assert many < few
    assert 0 < many < 0.01 < few <= 1


def test_rows_of_a_group_do_not_judge_each_other():
    """Every row is there five times: split by rows, copies vouch for the sample's own covariance."""
    rows, labels = two_classes(20, 20, d=12)
    x, y, groups = rows.repeat(5, 1), labels.repeat(5), torch.arange(40).repeat(5)
    by_row = GaussianTransport.fit(x, y, layer=0).shrinkage
    by_group = GaussianTransport.fit(x, y, layer=0, groups=groups).shrinkage
    assert by_row < by_group / 3


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_linear_transport_finds_a_planted_map_of_each_coordinate(seed):
    source, shift = drawn(80, D, seed=seed), drawn(D, seed=seed + 1)
    scale = drawn(D, seed=seed + 2).abs() + 0.1
    shuffled = torch.stack(
        [column[torch.randperm(80, generator=torch.Generator().manual_seed(j))] for j, column in enumerate(source.T)], 1
    )
    x, y = torch.cat([source, shuffled * scale + shift]), [1] * 80 + [0] * 80
    edit = LinearTransport.fit(x, y, layer=0)
    torch.testing.assert_close(edit.scale, scale)
    torch.testing.assert_close(edit(source), source * scale + shift)


def test_linear_transport_is_the_least_squares_fit_of_sorted_numbers():
    x, y = two_classes(90, 90)
    edit = LinearTransport.fit(x, y, layer=0)
    a, b = x[y == 1].sort(0).values, x[y == 0].sort(0).values
    for j in range(D):
        design = torch.stack([a[:, j], torch.ones(90, dtype=torch.float64)], 1)
        torch.testing.assert_close(edit(a)[:, j], design @ torch.linalg.lstsq(design, b[:, j]).solution)
    # Unsorted pairs are another regression.
    assert not torch.allclose(edit.scale, (a.std(0) / b.std(0)))


def test_unequal_numbers_of_rows_are_matched_by_quantile():
    quantiles = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double()).icdf
    a, b = normal(quantiles)[:, None], 2 * normal(quantiles[::3])[:, None] + 5
    edit = LinearTransport.fit(torch.cat([a, b]), [1] * 999 + [0] * 333, layer=0)
    assert float(edit.scale) == pytest.approx(2.0, rel=0.02)


def test_support_carries_only_what_was_seen():
    x, y = two_classes()
    free, bound = (LinearTransport.fit(x, y, layer=0, support=s) for s in (False, True))
    source = x[y == 1]
    torch.testing.assert_close(bound(source), free(source))
    beyond = source.amax(0) + 1
    assert torch.equal(bound(beyond), beyond)
    assert not torch.allclose(free(beyond), beyond)
    with pytest.raises(EntangleError, match=r"no affine map.*steer"):
        bound.affine()


@pytest.mark.parametrize("fit", [GaussianTransport.fit, LinearTransport.fit])
def test_dead_and_massive_coordinates(fit):
    """A coordinate that never changes is shifted; one of 50,000 beside others of 1 spoils nothing."""
    x, y = two_classes(300, 300)
    x[:, 0] = torch.where(y == 1, 7.0, 9.0)
    x[:, 1] = 5e4 + 500 * x[:, 1]
    options = {"shrinkage": 0.0} if fit == GaussianTransport.fit else {}
    edit = fit(x.float(), y, layer=0, **options)
    source, target = x[y == 1].float(), x[y == 0]
    moved = edit(source).double()
    torch.testing.assert_close(moved[:, 0], torch.full((300,), 9.0, dtype=torch.float64))
    torch.testing.assert_close(moved.mean(0), target.mean(0), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(moved.std(0)[1:], target.std(0)[1:], rtol=0.05, atol=1e-3)
    half = edit(source.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half[:, 2:].double(), moved[:, 2:], rtol=0.1, atol=3.0)


def test_classes_are_named_and_either_can_be_reached():
    x, y = two_classes()
    for fit in (GaussianTransport.fit, LinearTransport.fit):
        names = ["rude" if label else "polite" for label in y.tolist()]
        away, to = fit(x, names, layer=0, toward="polite"), fit(x, names, layer=0, toward="rude")
        torch.testing.assert_close(away(x[y == 1]).mean(0), x[y == 0].mean(0))
        torch.testing.assert_close(to(x[y == 0]).mean(0), x[y == 1].mean(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianTransport.fit(torch.ones(3, 2), [0, 1, 1]), "two rows or more of each class; got 2"),
        (lambda: LinearTransport.fit(torch.ones(3, 2), [1, 0, 0]), "two rows or more of each class; got 1"),
        (lambda: LinearTransport.fit(torch.ones(3, 2), [0, 0, 0]), "only the label"),
        (lambda: GaussianTransport.fit(torch.full((4, 2), float("nan")), [0, 1, 0, 1]), "NaN"),
        (lambda: GaussianTransport.fit(drawn(8, 2), [0, 1] * 4, shrinkage=2), "from 0 to 1, got 2"),
        (lambda: LinearTransport(torch.ones(2), torch.ones(3), torch.ones(2)), "use LinearTransport.fit"),
    ],
)
def test_what_cannot_be_fitted_says_so_in_one_line(make, message):
    with pytest.raises(EntangleError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
