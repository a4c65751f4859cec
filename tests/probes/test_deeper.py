"""Comparison, description length, control tasks and the baselines that are probes themselves."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning

from entangle.errors import EntangleError
from entangle.probes import (
    LDAProbe,
    LogisticProbe,
    compare,
    control_labels,
    fit_probes,
    majority_class,
    mean_embeddings,
    online_mdl,
    random_direction,
    selectivity,
    split_half,
    three_way,
)

QUIET = {"n_permutations": 0, "n_resamples": 300, "progress": False}


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (1000,), generator=generator)
    x = torch.randn(1000, 3, 8, generator=generator)
    x[:, 1, 0] += 1.5 * y
    return x, y


def test_compare_finds_the_cell_that_differs(data):
    x, y = data
    better = x.clone()
    better[:, 2, 0] += 2 * y
    a, b = fit_probes(better, y, **QUIET), fit_probes(x, y, **QUIET)
    found = compare(a, b)
    assert found.difference.value.tolist() == pytest.approx((a.accuracy - b.accuracy).tolist(), abs=1e-6)
    assert found.difference.low[2] > 0.1
    assert found.p_values[2] < 0.01
    assert found.p_values[:2].min() > 0.5
    assert found.p_examples < 0.01
    assert found.mean.low > 0
    same = compare(a, a)
    assert same.p_examples == 1
    assert same.p_values.min() == 1
    reverse = compare(b, a)
    assert reverse.mean.value == pytest.approx(-found.mean.value)
    assert torch.equal(reverse.p_values, found.p_values)


def test_compare_refuses_other_examples(data):
    x, y = data
    grid = fit_probes(x, y, **QUIET)
    with pytest.raises(EntangleError, match="same examples"):
        compare(grid, fit_probes(x, y, seed=1, **QUIET))
    with pytest.raises(EntangleError, match="shapes"):
        compare(grid, fit_probes(x[:, :2], y, **QUIET))


def test_description_length_is_short_only_where_labels_are_known(data):
    x, y = data
    code = online_mdl(x, y, progress=False)
    assert code.uniform == pytest.approx(1000)
    assert code.compression[1] > 1.2
    assert code.compression[[0, 2]].max() < 1.0  # fitting noise costs bits


def test_description_length_by_hand(data):
    """Two portions: the first uniform, the second by the probe that saw the first."""
    x, y = data
    code = online_mdl(x[:, 1], y, portions=(0.5, 1.0), progress=False)
    order = np.random.default_rng(0).permutation(1000)
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    first, second = order[:500], order[500:]
    model = LogisticRegression(tol=1e-8).fit(x[first, 1], y[first])
    expected = 500 + log_loss(y[second], model.predict_proba(x[second, 1]), normalize=False) / math.log(2)
    assert code.bits.item() == pytest.approx(expected, rel=1e-3)
    with pytest.raises(EntangleError, match="end in 1"):
        online_mdl(x, y, portions=(0.5,), progress=False)


def test_selectivity_unmasks_a_probe_that_remembers_words():
    """In one cell the concept is a direction; in the other words are one-hot, from which anything can be learnt."""
    generator = torch.Generator().manual_seed(0)
    types = torch.randint(40, (2000,), generator=generator)
    y = (types < 20).long()
    meaning = torch.randn(2000, 40, generator=generator) * 0.3
    meaning[:, 0] += 3 * y
    words = torch.nn.functional.one_hot(types, 40).float()
    result = selectivity(torch.stack([meaning, words], 1), y, types, n_permutations=0, progress=False)
    assert result.task.accuracy.min() > 0.95
    assert result.difference.low[0] > 0.25
    assert abs(result.difference.value[1]) < 0.02


def test_control_labels_belong_to_types():
    types = np.array(["a", "b", "c", "d", "e", "f", "g", "h"])[np.arange(400) % 8]
    control = control_labels(types, np.arange(400) % 2 == 0)
    for word in set(types):
        assert len(set(control[torch.from_numpy(types == word)].tolist())) == 1
    with pytest.raises(EntangleError, match="too few to draw every class"):
        control_labels(["a"] * 40, np.arange(40) % 2)


def test_majority_class_and_random_direction(data):
    x, y = data
    skewed = (torch.arange(1000) % 4 == 0).long()
    split = three_way(skewed)
    result = majority_class(skewed, split)
    assert result.accuracy.value == pytest.approx(0.75)
    assert result.auroc.value == 0.5
    full, blind = fit_probes(x, y, **QUIET), random_direction(x, y, **QUIET)
    assert blind.coef_.shape == (3, 1)
    assert blind.accuracy[1] < full.accuracy[1] - 0.05


def test_mean_embeddings():
    table = torch.randn(10, 4)
    torch.testing.assert_close(mean_embeddings(table, [[1, 1, 3], [9]])[0], (2 * table[1] + table[3]) / 3)
    with pytest.raises(EntangleError, match="text 1 has no tokens"):
        mean_embeddings(table, [[1], []])


def test_probes_that_did_not_converge_are_counted_and_said():
    x = np.random.default_rng(0).normal(size=(600, 2, 16)) * np.logspace(0, -6, 16)
    y = (x[:, 0, 0] > 0).astype(int)  # separable in the first cell
    with pytest.warns(ConvergenceWarning, match="probes of the code"):
        code = online_mdl(x.astype(np.float32), y, C=1e8, progress=False)
    assert code.unconverged.shape == (2,)
    assert int(code.unconverged[0]) > 0
    with pytest.warns(ConvergenceWarning, match=r"of 8 probes of halves"):
        split_half(x.astype(np.float32), y, probe=LogisticProbe(1e8, max_iter=2), n_splits=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert int(online_mdl(x.astype(np.float32), y, progress=False).unconverged.sum()) == 0


@pytest.mark.parametrize(("d", "span"), [(64, 1e3), (128, 1e2)])
def test_discriminants_keep_directions_of_little_variance_in_single_precision(d, span):
    """The classes differ along directions that hardly vary; their variance is far from rounding all the same."""
    rng = np.random.default_rng(0)
    spread, y = np.logspace(0, -np.log10(span), d), np.arange(4000) % 2
    shift = np.where(np.arange(d) < d // 2, 0, rng.normal(size=d) * spread)
    shift *= 3 / np.linalg.norm(shift / spread)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    fit, test = ((rng.normal(size=(4000, d)) * spread + np.outer(y - 0.5, shift)) @ turn for _ in range(2))
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(fit, y).score(test, y)
    ours = LDAProbe(0).fit(fit.astype(np.float32), y).score(test.astype(np.float32), y)
    assert ours == pytest.approx(theirs, abs=0.005)


def test_discriminants_leave_out_what_is_rounding_alone():
    rng = np.random.default_rng(0)
    x = rng.normal(100, 1, (500, 6)).astype(np.float32)
    x[:, 5] = x[:, :5].sum(1)  # dependent but for rounding
    y = (x[:, 0] > 100).astype(int)
    coef = LDAProbe(0).fit(x, y).coef_[0]
    assert np.abs(coef).max() < 1e3
