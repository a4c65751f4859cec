"""Feature distributions: their frequencies, groups and exact expectations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.toy import BagOfWords, SparseFeatures


def draw(features, n_instances=1, rows=40_000):
    return features.sample(n_instances, rows, torch.Generator().manual_seed(0))


def phi(active: torch.Tensor) -> float:
    return float(torch.corrcoef(active.T.float())[0, 1])


def test_each_feature_is_active_as_often_as_asked_in_each_instance():
    p = torch.tensor([[0.1, 0.5, 0.9], [0.9, 0.2, 0.02]])
    active = draw(SparseFeatures(3, probability=p), 2) > 0
    assert torch.allclose(active.float().mean(1), p, atol=0.01)


def test_active_values_are_uniform_and_signed_only_if_asked():
    for signed, mean, low in ((False, 0.5, 0.0), (True, 0.0, -1.0)):
        values = draw(SparseFeatures(1, probability=1.0, signed=signed)).flatten()
        assert abs(float(values.mean()) - mean) < 0.01
        assert low <= float(values.min()) < low + 0.01


def test_groups_correlate_and_keep_their_frequencies_and_others_do_not():
    features = SparseFeatures(6, probability=0.3, correlated=[[0, 1]], anticorrelated=[[2, 3]])
    active = draw(features)[0] > 0
    assert torch.allclose(active.float().mean(0), torch.tensor(0.3), atol=0.01)
    assert bool((active[:, 0] == active[:, 1]).all())
    assert not bool((active[:, 2] & active[:, 3]).any())
    assert phi(active[:, 2:4]) == pytest.approx(-0.3 / 0.7, abs=0.02)
    assert phi(active[:, 4:]) == pytest.approx(0, abs=0.02)


def test_instances_draw_different_rows_unless_one_draw_is_shared():
    features = SparseFeatures(3, probability=torch.full((2, 1), 0.5))
    apart = draw(features, 2)
    assert not torch.equal(apart[0], apart[1])
    together = draw(features, 1)
    assert together.shape[0] == 2
    assert torch.equal(together[0], together[1])


def test_quadrature_is_the_expectation_that_samples_approach():
    features = SparseFeatures(2, probability=torch.tensor([[0.3, 0.05], [1.0, 0.5]]))
    rows, weights = features.quadrature()
    assert torch.allclose(weights.sum(1), torch.ones(2), atol=1e-5)

    def statistic(x):
        return (x[..., 0] ** 2 * (1 + x[..., 1])).exp()

    exact = (statistic(rows) * weights).sum(1)
    sampled = statistic(draw(features, 2, 400_000)).mean(1)
    assert torch.allclose(exact, sampled, rtol=2e-3)


def test_bag_of_words_holds_the_words_of_its_windows():
    texts = ["red blue green red", "blue yellow", "green green green green"] * 5
    bags = BagOfWords(texts, n_features=3, window=2)
    assert bags.words == ["blue", "green", "red"]
    batch = draw(bags, 2, 50)
    assert batch.shape == (2, 50, 3)
    assert set(batch.unique().tolist()) == {0.0, 1.0}
    assert int(bags.windows.sum(1).max()) <= 2
    assert not torch.equal(batch[0], batch[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 0.0}, r"probability must lie in \(0, 1\]"),
        ({"probability": 1.5}, r"probability must lie in \(0, 1\]"),
        ({"probability": torch.full((2,), 0.5)}, r"broadcast to \[instance, 3\]"),
        ({"correlated": [[0, 1]], "anticorrelated": [[1, 2]]}, "disjoint"),
        ({"correlated": [[0, 7]]}, "disjoint sets of features 0 to 2"),
        ({"probability": 0.6, "anticorrelated": [[0, 1]]}, "sum to more than 1"),
    ],
)
def test_impossible_features_are_refused(arguments, message):
    with pytest.raises(EntangleError, match=message):
        SparseFeatures(3, **arguments)


def test_quadrature_and_bags_refuse_what_they_cannot_do():
    with pytest.raises(EntangleError, match="at most 3 independent features"):
        SparseFeatures(4).quadrature()
    with pytest.raises(EntangleError, match="2 distinct words"):
        BagOfWords(["one two"], n_features=3)
    with pytest.raises(EntangleError, match="no words"):
        BagOfWords(["", "..."], n_features=3)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 3), p=st.floats(0.001, 1.0), nodes=st.integers(2, 6))
def test_quadrature_weights_are_a_distribution_with_the_right_mean(n, p, nodes):
    rows, weights = SparseFeatures(n, probability=p).quadrature(nodes)
    assert rows.shape == ((nodes + 1) ** n, n)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-4)
    assert torch.allclose(weights @ rows, torch.full((1, n), p / 2), atol=1e-4)
