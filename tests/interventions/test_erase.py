"""LEACE: its theorems, and equality with the authors' own code."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from entangle.errors import EntangleError
from entangle.interventions import Ablate, Erase, OracleErase, steer


def concept(seed=0, n=600, d=12, k=3):
    """Correlated features of uneven scale whose class means differ in two directions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=generator)
    means = torch.randn(k, d, generator=generator, dtype=torch.float64)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return noise @ mix + 3 * means[labels] + 5, labels


@pytest.mark.parametrize("k", [2, 3])
def test_no_linear_probe_beats_the_constant_on_the_fitted_data(k):
    x, labels = concept(k=k)
    erased = Erase.fit(x, labels)(x)
    constant = labels.bincount().max() / len(labels)
    grand = erased.mean(0)
    for c in range(k):
        torch.testing.assert_close(erased[labels == c].mean(0), grand, atol=1e-4, rtol=0)

    def loss_and_accuracy(features):
        features = (features - features.mean(0)) / features.std(0)
        probe = LogisticRegression(C=1e3, max_iter=5000).fit(features, labels)
        log = torch.from_numpy(probe.predict_log_proba(features))
        return -log.gather(1, labels[:, None]).mean(), probe.score(features, labels)

    entropy = -(labels.bincount() / len(labels)).log() @ (labels.bincount() / len(labels))
    loss, accuracy = loss_and_accuracy(erased)
    assert loss > entropy - 1e-4
    assert accuracy <= constant + 1e-9
    # Before the erasure, and after ablating the mean difference alone, a probe does beat it.
    assert loss_and_accuracy(x)[1] > constant + 0.2
    difference = x[labels == 0].mean(0) - x[labels == 1].mean(0)
    if k == 3:
        assert loss_and_accuracy(Ablate(difference, layer=0)(x))[0] < entropy - 0.05


def test_it_moves_least_among_affine_erasures():
    x, labels = concept(k=2)
    leace = Erase.fit(x, labels)

    def cost(edited):
        return (edited - x).square().sum(1).mean()

    z = (labels == 1).double() - (labels == 1).double().mean()
    cross = (x - x.mean(0)).T @ z
    for seed in range(50):
        # Any projection along any direction that is not orthogonal to Cov(x, z) erases: x - (x - m) w c^T / (w.c), w =
        # cross
        generator = torch.Generator().manual_seed(seed)
        w = leace.left[:, 0].double() + 0.1 * torch.randn(12, generator=generator, dtype=torch.float64)
        along = cross / (w @ cross)
        other = x - ((x - x.mean(0)) @ w)[:, None] * along
        torch.testing.assert_close(
            (other - other.mean(0)).T @ z, torch.zeros(12, dtype=torch.float64), atol=1e-8, rtol=0
        )
        assert cost(leace(x)) < cost(other)
    orthogonal = Ablate(cross, layer=0, mean=x.mean(0))(x)
    assert cost(leace(x)) < cost(orthogonal)


@pytest.mark.parametrize("k", [2, 3])
def test_equal_to_concept_erasure(k):
    concept_erasure = pytest.importorskip("concept_erasure")
    x, labels = concept(k=k)
    z = torch.nn.functional.one_hot(labels).double()
    theirs = concept_erasure.LeaceEraser.fit(x, z, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-6)
    torch.testing.assert_close(Erase.fit(x, labels)(x), theirs(x), atol=1e-5, rtol=1e-5)
    oracle = concept_erasure.OracleEraser.fit(x, z, svd_tol=1e-6)
    ours = OracleErase.fit(x, labels).given(labels)(x)
    torch.testing.assert_close(ours, oracle(x, z), atol=1e-5, rtol=1e-5)


def test_properties():
    x, labels = concept()
    erase = Erase.fit(x, labels)
    assert erase.left.shape == (12, 2)  # three classes differ in two directions
    torch.testing.assert_close(erase(erase(x)), erase(x), atol=1e-4, rtol=1e-4)  # idempotent
    torch.testing.assert_close(erase(x).mean(0), x.mean(0), atol=1e-4, rtol=1e-5)  # the mean stays
    one_hot = torch.nn.functional.one_hot(labels).double()
    torch.testing.assert_close(Erase.fit(x, one_hot)(x), erase(x), atol=1e-4, rtol=1e-4)


def test_singular_activations():
    """Fewer examples than dimensions, and dimensions that never vary."""
    x, labels = concept(n=30, d=40, k=2)
    x[:, 5] = 1.0
    erased = Erase.fit(x, labels)(x)
    torch.testing.assert_close(erased[labels == 0].mean(0), erased[labels == 1].mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(erased[:, 5], x[:, 5], atol=1e-5, rtol=0)


def test_the_oracle_moves_less_and_erases_too():
    x, labels = concept()
    oracle = OracleErase.fit(x, labels).given(labels)(x)
    for c in range(3):
        torch.testing.assert_close(oracle[labels == c].mean(0), oracle.mean(0), atol=1e-4, rtol=0)
    assert (oracle - x).square().mean() < (Erase.fit(x, labels)(x) - x).square().mean()


def test_in_a_running_model(tiny_model):
    """The next reader of a steered model's last-token activations finds equal class means, by either erasure."""
    from entangle.models import Atlas, hooked

    model, generator = tiny_model("llama"), torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    ids = torch.randint(3, 96, (60, 5), generator=generator)
    ids[labels == 1, 4] = ids[labels == 1, 4] % 20 + 3
    place, seen = Atlas(model).place("resid_post", 1), []

    def read(*edits):
        seen.clear()
        with torch.no_grad(), steer(model, list(edits)), hooked([(place, lambda x: seen.append(x[:, -1].clone()))]):
            model(input_ids=ids)
        return seen[0]

    x = read()
    for edit in [Erase.fit(x, labels, "resid_post", 1), OracleErase.fit(x, labels, "resid_post", 1).given(labels)]:
        edited = read(edit)
        torch.testing.assert_close(edited[labels == 0].mean(0), edited[labels == 1].mean(0), atol=1e-4, rtol=0)
    assert (x[labels == 0].mean(0) - x[labels == 1].mean(0)).abs().max() > 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: Erase.fit(x, torch.ones(600)), "labels that differ"),
        (lambda x, y: Erase.fit(x, y[:5]), "each of 600 examples"),
        (lambda x, y: Erase.fit(x * float("nan"), y), "NaN"),
        (lambda x, y: Erase.fit(torch.ones(600, 4), y), "nothing to erase"),
        (lambda x, y: OracleErase.fit(x, y).forms(), "needs the label"),
        (lambda x, y: OracleErase.fit(x, y).given(torch.tensor([7])), r"given \['7'\]"),
        (lambda x, y: OracleErase.fit(x, y).given(y[:7])(x), "7 labels, but the batch has 600 rows"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, message):
    with pytest.raises(EntangleError, match=message) as caught:
        make(*concept())
    assert "\n" not in str(caught.value)
