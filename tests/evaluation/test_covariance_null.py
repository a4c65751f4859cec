"""Unrelated concepts look unrelated and related ones do not, however far apart the concepts' data sets are."""

import numpy as np
import pytest
import torch

import entangle as en
from entangle.concepts import entanglement_report
from entangle.concepts.spread import Spread, largest, pairwise, squared

K, D = 4, 32
Samples = dict[str, tuple[torch.Tensor, torch.Tensor]]


def data_sets(rng: np.random.Generator, *, apart: float = 3.0, signal: float = 0.0, cosine: float = 0.0,
              n: int = 200) -> Samples:  # fmt: skip
    """Concepts on data sets with means, scales and principal axes of their own, their true directions at one cosine."""
    gram = np.full((K, K), cosine)
    np.fill_diagonal(gram, 1)
    truth = np.linalg.cholesky(gram) @ np.linalg.qr(rng.normal(size=(D, K)))[0].T
    found = {}
    for i in range(K):
        axes = np.linalg.qr(rng.normal(size=(D, D)))[0] * np.logspace(0.4, -0.4, D)
        y, scale = np.arange(n) % 2, 10 ** rng.uniform(-0.5, 0.5)
        x = rng.normal(size=(n, D)) @ axes.T + np.outer(y - 0.5, signal * truth[i]) + apart * rng.normal(size=D)
        found[f"c{i}"] = (torch.from_numpy(scale * x).float(), torch.from_numpy(y))
    return found


def directions(samples: Samples) -> en.Directions:
    vectors = torch.stack([x[y == 1].mean(0) - x[y == 0].mean(0) for x, y in samples.values()])
    return en.Directions(vectors, tuple(samples), estimator="mean_difference")


def percentiles(samples: Samples, seed: int) -> dict[str, torch.Tensor]:
    """What the report says of its covariance null, without refitting anything."""
    v = torch.nn.functional.normalize(directions(samples).vectors.double(), dim=-1)
    spread = Spread.of([x for x, _ in samples.values()])
    measures = {"E": largest, "cosine": pairwise(), "whitened": pairwise(spread.whitening()),
                "readout": pairwise(spread.readout()), "variance_share": squared(spread.shares())}  # fmt: skip
    return spread.percentiles(measures, {name: measure(v) for name, measure in measures.items()}, 300, seed)


def rejected(n_trials: int, **how: float) -> dict[str, float]:
    """Share of trials in which a concept or pair is above its 95th percentile."""
    rng = np.random.default_rng(0)
    above: dict[str, list[float]] = {}
    for trial in range(n_trials):
        for name, share in percentiles(data_sets(rng, **how), trial).items():
            kept = share[~torch.eye(K, dtype=torch.bool)] if share.ndim == 2 else share
            above.setdefault(name, []).append(float((kept > 0.95).double().mean()))
    return {name: float(np.mean(shares)) for name, shares in above.items()}


def test_where_a_data_set_lies_and_how_large_it_is_changes_nothing() -> None:
    near, far = (data_sets(np.random.default_rng(3), apart=apart, signal=1.0, cosine=0.6) for apart in (0.0, 50.0))
    found = [entanglement_report(directions(s), s, n_resamples=20, n_permutations=100, n_splits=2) for s in (near, far)]
    for name in ("whitened", "readout", "variance_share", "component_overlap"):
        values = [getattr(report, name).value for report in found]
        torch.testing.assert_close(*values, atol=2e-3, rtol=1e-2)
    torch.testing.assert_close(found[0].covariance_percentile, found[1].covariance_percentile, atol=0.03, rtol=0)
    # the negative control: pooled, the distance between data sets would be variance
    pooled = torch.cat([x for x, _ in far.values()])
    alone = entanglement_report(directions(far), pooled, n_permutations=100)
    assert (alone.variance_share.value < 0.5 * found[1].variance_share.value).all()


def test_concepts_on_one_data_set_and_the_same_examples_given_to_each_agree() -> None:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(300, D)) * np.logspace(0.5, -0.5, D)).float()
    labels = {f"c{i}": torch.from_numpy(rng.permutation(np.arange(300) % 2)) for i in range(K)}
    found = directions({name: (x, y) for name, y in labels.items()})
    options = {"n_resamples": 20, "n_permutations": 2000, "n_splits": 2}
    shared = entanglement_report(found, x, labels, **options)
    own = entanglement_report(found, {name: (x.clone(), y) for name, y in labels.items()}, **options)
    for name in ("whitened", "readout", "variance_share", "component_overlap"):
        torch.testing.assert_close(getattr(shared, name).value, getattr(own, name).value)
        torch.testing.assert_close(shared.percentiles[name], own.percentiles[name], atol=0.05, rtol=0)
    torch.testing.assert_close(shared.covariance_percentile, own.covariance_percentile, atol=0.05, rtol=0)


def test_planted_cosines_stand_out_of_data_sets_that_lie_apart() -> None:
    assert rejected(8, signal=2.0, cosine=0.6)["E"] > 0.75
    assert rejected(8, signal=0.0)["E"] < 0.3


@pytest.mark.slow
def test_the_null_rejects_what_is_unrelated_in_one_of_twenty() -> None:
    for n in (60, 200):
        for name, share in rejected(300, n=n).items():
            assert 0.03 < share < 0.07, (n, name, share)


@pytest.mark.slow
@pytest.mark.parametrize(("signal", "least"), [(1.0, 0.45), (2.0, 0.9)])
def test_the_null_finds_planted_cosines_as_often_as_where_data_sets_lie_together(signal: float, least: float) -> None:
    apart, together = (rejected(60, signal=signal, cosine=0.6, apart=distance) for distance in (3.0, 0.0))
    assert apart["E"] > least
    assert abs(apart["E"] - together["E"]) < 0.05
