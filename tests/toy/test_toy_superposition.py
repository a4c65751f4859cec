"""Autoencoders whose best solution is known: the geometry they find, and what dense data deny them."""

from __future__ import annotations

import math

import pytest
import torch

from entangle.errors import EntangleError
from entangle.metrics import cosines, entanglement
from entangle.toy import BagOfWords, SparseFeatures, SuperpositionModel, geometry


def trained(n_features, n_hidden, probability, *, n_instances=8, steps=1200, batch_size=384, **arguments):
    model = SuperpositionModel(n_features, n_hidden, n_instances, **arguments)
    history = model.fit(
        SparseFeatures(n_features, probability=probability), steps=steps, batch_size=batch_size, progress=False
    )
    return model, int(history.losses[-1].argmin())


def test_five_sparse_features_in_two_dimensions_form_a_pentagon():
    model, best = trained(5, 2, 0.05)
    assert geometry(model.dictionaries[best]).name == "pentagon"
    assert torch.allclose(model.dimensionality()[best], torch.tensor(2 / 5), atol=0.01)
    assert torch.allclose(model.entanglement()[best], torch.tensor(math.cos(math.pi / 5)), atol=0.01)
    found = sum(geometry(dictionary).name == "pentagon" for dictionary in model.dictionaries)
    assert found >= 6, f"{found} of 8 random starts"


def test_six_sparse_features_in_three_dimensions_form_an_octahedron():
    model, best = trained(6, 3, 0.05)
    assert geometry(model.dictionaries[best]).name == "octahedron"
    assert torch.allclose(model.dimensionality()[best], torch.tensor(1 / 2), atol=0.03)
    assert torch.allclose(model.entanglement()[best], torch.tensor(1.0), atol=0.01)


def test_two_sparse_features_share_one_dimension_as_an_antipodal_pair():
    model, best = trained(2, 1, 0.05)
    assert geometry(model.dictionaries[best]).name == "antipodal pair"
    assert float(cosines(model.dictionaries[best])[0, 1]) == pytest.approx(-1)


def test_dense_features_are_not_superposed():
    model, best = trained(5, 2, 1.0, importance=0.7 ** torch.arange(5))
    found = geometry(model.dictionaries[best], min_norm=0.8)
    assert found.name == "2 x dedicated dimension"
    assert found.dropped == (2, 3, 4)


def test_a_linear_model_finds_principal_components_however_sparse_the_data():
    for probability in (1.0, 0.05):
        model, best = trained(5, 2, probability, output="linear", importance=0.7 ** torch.arange(5), n_instances=3)
        gram = model.dictionaries[best] @ model.dictionaries[best].mT
        # A projection on the two most important features, which have equal variance before importance weighs them.
        assert torch.allclose(gram, torch.diag(torch.tensor([1.0, 1, 0, 0, 0])), atol=0.05)


def test_correlated_features_lie_closer_than_independent_ones():
    def pair_cosine(**groups):
        model = SuperpositionModel(4, 2, 4)
        data = SparseFeatures(4, probability=0.05, **groups)
        losses = model.fit(data, steps=1200, batch_size=384, progress=False).losses[-1]
        return float(cosines(model.dictionaries[int(losses.argmin())])[0, 1])

    assert pair_cosine(correlated=[[0, 1], [2, 3]]) == pytest.approx(0, abs=0.05)
    assert pair_cosine(anticorrelated=[[0, 1], [2, 3]]) == pytest.approx(-1, abs=0.05)


def test_the_absolute_value_model_computes_in_superposition():
    data = SparseFeatures(6, probability=0.02, signed=True)
    model = SuperpositionModel.absolute_value(6, 8, 4)
    model.fit(data, steps=1500, batch_size=384, progress=False)
    x = data.sample(1, 4096, torch.Generator().manual_seed(9))
    nothing = x.abs().square().sum(-1).mean()
    with torch.no_grad():
        best = model.loss(x).min()
    # Exact absolute values need two neurons a feature, twelve; eight already do far better than silence.
    assert 0 < float(best) < 0.4 * float(nothing)


def test_any_function_can_be_the_output():
    model, _ = trained(2, 2, 0.3, output=torch.nn.functional.softplus, n_instances=2, steps=300)
    x = torch.rand(2, 5, 2)
    assert torch.allclose(model(x), torch.nn.functional.softplus(x @ model.W.mT @ model.W + model.bias[:, None]))
    named = SuperpositionModel(2, 2, 1, output="abs")
    assert bool((named(torch.randn(1, 20, 2)) >= 0).all())


def test_training_stops_early_where_nothing_improves_and_not_before():
    data = SparseFeatures(2, probability=0.3)
    stopped = SuperpositionModel(2, 2, 2).fit(data, steps=5000, batch_size=None, patience=3, progress=False)
    assert stopped.stopped_early
    assert stopped.steps[-1] < 5000
    full = SuperpositionModel(2, 2, 2).fit(data, steps=300, batch_size=None, progress=False)
    assert not full.stopped_early
    assert full.steps == [100, 200, 300]


def test_instances_do_not_feel_one_another():
    data = SparseFeatures(3, probability=0.2)
    small, large = SuperpositionModel(3, 2, 1, seed=1), SuperpositionModel(3, 2, 4, seed=2)
    with torch.no_grad():
        large.W[3] = small.W[0]
    for model in (small, large):
        model.fit(data, steps=50, batch_size=None, progress=False)
    assert torch.allclose(small.W[0], large.W[3], atol=1e-5)
    assert not torch.allclose(large.W[0], large.W[3], atol=1e-2)


def test_features_are_directions_for_the_rest_of_the_library():
    model, best = trained(5, 2, 0.05, steps=300)
    directions = model.directions(best)
    assert directions.names == tuple(f"feature {i}" for i in range(5))
    assert torch.allclose(entanglement(directions), model.entanglement()[best], atol=1e-5)


def test_bags_of_words_train():
    texts = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog met"] * 20
    bags = BagOfWords(texts, n_features=8, window=4)
    model = SuperpositionModel(8, 3, 2)
    history = model.fit(bags, steps=300, batch_size=128, progress=False)
    # Words that occur together can be told from three numbers far better than by how often each occurs.
    assert bool((history.losses[-1] < 0.5 * bags.windows.var(0).mean()).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_hidden": 0}, "must be positive"),
        ({"importance": torch.ones(3)}, r"broadcast to \[2, 4\]"),
        ({"importance": -1.0}, "not negative"),
        ({"output": "gelu"}, "one of relu, linear, abs"),
    ],
)
def test_impossible_models_are_refused(arguments, message):
    with pytest.raises(EntangleError, match=message):
        SuperpositionModel(**{"n_features": 4, "n_hidden": 2, "n_instances": 2} | arguments)


def test_data_and_model_must_agree():
    with pytest.raises(EntangleError, match="4 features, the data 3"):
        SuperpositionModel(4, 2).fit(SparseFeatures(3), progress=False)
    bags = BagOfWords(["one two three four"], n_features=4)
    with pytest.raises(EntangleError, match="give a batch_size"):
        SuperpositionModel(4, 2).fit(bags, batch_size=None, progress=False)
    with pytest.raises(EntangleError, match="lower lr"):
        SuperpositionModel(4, 2).fit(SparseFeatures(4), lr=1e30, steps=200, progress=False)
