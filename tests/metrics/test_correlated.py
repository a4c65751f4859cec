"""Holding the other concept fixed undoes what co-occurrence does to a cosine, and nothing else."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LinearRegression

from entangle.errors import EntangleError
from entangle.metrics import conditional_cosines, cosines, interaction_cosines, local_interaction_basis


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(overlap, n=4000):
    """Two concepts along orthogonal axes of 10 dimensions; the second copies the first on a share `overlap`."""
    generator = torch.Generator().manual_seed(0)
    first, other = torch.randint(2, (2, n), generator=generator)
    second = torch.where(torch.rand(n, generator=generator) < overlap, first, other)
    x = normal(n, 10)
    x[:, 0] += 3 * first
    x[:, 1] += 3 * second
    return x, torch.stack([first, second], 1)


def mean_differences(x, y):
    return torch.stack([x[c == 1].mean(0) - x[c == 0].mean(0) for c in y.T])


def test_agrees_with_a_regression_on_both_labels():
    x, y = labelled(0.6)
    y = torch.cat([y, torch.randint(2, (len(y), 1), generator=torch.Generator().manual_seed(3))], 1)
    found = conditional_cosines(x, y)
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        coef = torch.from_numpy(LinearRegression().fit(y[:, [i, j]], x).coef_.T)
        assert float(found[i, j]) == pytest.approx(float(cosines(coef)[0, 1]), abs=1e-9)
    assert torch.allclose(found, found.T)


def test_co_occurrence_is_undone():
    x, y = labelled(0.7)
    assert float(cosines(mean_differences(x, y))[0, 1]) > 0.6
    assert abs(float(conditional_cosines(x, y)[0, 1])) < 0.05


def test_balanced_designs_are_left_alone_and_true_overlap_stays():
    x, y = labelled(0.0)
    y = torch.cartesian_prod(torch.arange(2), torch.arange(2)).repeat(1000, 1)
    x = normal(4000, 10)
    x[:, 0] += 3 * y[:, 0] + 2 * y[:, 1]
    x[:, 1] += 2 * y[:, 1]
    plain = float(cosines(mean_differences(x, y))[0, 1])
    assert plain == pytest.approx(0.5**0.5, abs=0.05)
    assert float(conditional_cosines(x, y)[0, 1]) == pytest.approx(plain, abs=1e-9)


def test_labels_that_determine_one_another_say_nothing():
    x, y = labelled(0.5)
    found = conditional_cosines(x, torch.cat([y, 1 - y[:, :1]], 1))
    assert found[0, 2].isnan()
    assert not found[0, 1].isnan()
    with pytest.raises(EntangleError, match="example, concept"):
        conditional_cosines(x, y[:, 0])


def reader(seed=1):
    """A later layer that reads 3 of 6 dimensions, and a nonlinear one's Jacobians."""
    a = normal(4, 6, seed=seed)
    a[:, 3:] = 0
    return a


def gradients(a, n=20_000, seed=2):
    return normal(n, len(a), seed=seed) @ a


def test_interaction_cosines_are_those_of_the_pulled_back_metric():
    a, v = normal(6, 6, seed=1), normal(5, 6, seed=4)
    g = gradients(a)
    found = interaction_cosines(v, local_interaction_basis(normal(500, 6) @ normal(6, 6, seed=9), g))
    moment = g.T @ g / len(g)
    expected = v @ moment @ v.T
    scale = expected.diagonal().sqrt()
    assert torch.allclose(found, expected / scale / scale[:, None], atol=1e-6)
    assert torch.allclose(found, cosines(v @ a.T), atol=0.05)  # the responses A v, up to sampling


def test_what_the_later_layer_does_not_read_is_left_out():
    basis = local_interaction_basis(normal(500, 6), gradients(reader()))
    assert len(basis) == 3
    seen, unseen = torch.eye(6, dtype=torch.float64)[:1], torch.eye(6, dtype=torch.float64)[4:5]
    found = interaction_cosines(torch.cat([seen, seen + 5 * unseen]), basis)
    assert float(found[0, 1]) == pytest.approx(1, abs=1e-3)
    assert float(cosines(torch.cat([seen, seen + 5 * unseen]))[0, 1]) < 0.3


def test_reparametrisation_changes_nothing():
    x, v, g, m = normal(500, 6), normal(4, 6, seed=4), gradients(normal(4, 6, seed=1)), normal(6, 6, seed=8)
    before = interaction_cosines(v, local_interaction_basis(x, g, tolerance=1e-9))
    after = interaction_cosines(v @ m.T, local_interaction_basis(x @ m.T, g @ torch.linalg.inv(m), tolerance=1e-9))
    assert torch.allclose(before, after, atol=1e-5)
    assert not torch.allclose(cosines(v @ m.T), cosines(v), atol=0.1)


def test_interaction_coordinates_are_uncorrelated_and_sorted():
    x = normal(500, 6) @ normal(6, 6, seed=9)
    basis = local_interaction_basis(x, gradients(normal(4, 6, seed=1)))
    covariance = torch.cov((x @ basis.T).T)
    off = covariance - covariance.diagonal().diag()
    assert off.abs().max() < 1e-2 * covariance.diagonal().max()
    assert (covariance.diagonal().diff() <= 0).all()


def test_interaction_input_is_checked():
    with pytest.raises(EntangleError, match="sample, d"):
        local_interaction_basis(normal(5, 3), normal(5, 4))
    with pytest.raises(EntangleError, match="a basis of as many"):
        interaction_cosines(normal(2, 3), normal(2, 4))


def test_a_weight_counts_as_repeated_examples():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (300, 3), generator=generator)
    x = torch.randn(300, 8, generator=generator) + labels.float() @ torch.randn(3, 8, generator=generator) + 5
    counts = torch.randint(4, (2, 300), generator=generator)
    found = conditional_cosines(x, labels, counts)
    for ours, own in zip(found, counts, strict=True):
        repeated = conditional_cosines(x.repeat_interleave(own, 0), labels.repeat_interleave(own, 0))
        assert torch.allclose(ours, repeated, atol=1e-9)
    assert not torch.allclose(found[0], conditional_cosines(x, labels), atol=1e-3)
    with pytest.raises(EntangleError, match=r"\[resample, 300\]"):
        conditional_cosines(x, labels, counts.T)
