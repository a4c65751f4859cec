"""The report's intervals cover, its nulls are uniform, and its columns equal what is computed by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression

from entangle.concepts import refits
from entangle.concepts.report import entanglement_report
from entangle.concepts.result import EntanglementReport
from entangle.errors import EntangleError
from entangle.probes.estimators import make_probe

DIMS = 24


def concept(direction, n, *, seed, strength=1.0, noise=1.0, scale=None):
    """Balanced examples whose classes differ by `strength` along `direction`."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = noise * torch.randn(n, len(direction), generator=generator)
    if scale is not None:
        x = x * scale
    return x + strength * (y - 0.5)[:, None] * torch.nn.functional.normalize(direction, dim=0), y


def fitted(examples):
    """Mean differences as `Directions` look."""
    vectors = torch.stack([x[y == 1].mean(0) - x[y == 0].mean(0) for x, y in examples.values()])
    return SimpleNamespace(
        vectors=vectors, names=tuple(examples), site="resid_post", layer=3, head=None, estimator="mean_difference"
    )


def planted(cosine, n=400, seed=0, **more):
    """Two concepts whose true directions have this cosine, and an unrelated third."""
    a, b, c = torch.eye(DIMS)[:3]
    second = cosine * a + (1 - cosine**2) ** 0.5 * b
    directions = {"a": a, "b": second, "c": c}
    return {k: concept(v, n, seed=3 * seed + i, **more) for i, (k, v) in enumerate(directions.items())}


def small(examples, **more):
    return entanglement_report(fitted(examples), examples, n_resamples=200, n_permutations=100, n_splits=4, **more)


@pytest.fixture(scope="module")
def report():
    return small(planted(0.8))


def test_shows_what_was_planted(report):
    assert report.names == ("a", "b", "c")
    assert report.partner[:2] == ("b", "a")
    value, low, high = report.entanglement
    assert (low < value).all()
    assert (high > value).all()
    assert value[0] > report.null_95 > value[2]
    assert low[0] > value[2]
    _, low, high = report.corrected
    assert low[0, 1] < 0.8 < high[0, 1]
    assert low[0, 2] < 0 < high[0, 2]
    assert (report.percentile[:2] > 0.999).all()
    assert (report.permutation_percentile[:2] > 0.99).all()
    assert report.percentile[2] < 0.999
    assert float(report.agreement.min()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(value, (report.cosine.value.abs() - torch.eye(3)).amax(1))


@pytest.mark.parametrize(("cosine", "strength"), [(0.8, 1.0), (0.5, 1.0), (0.95, 2.0)])
def test_interval_of_a_cosine_covers_the_truth(cosine, strength):
    """Noise alone shrinks the measured cosine below the truth; the corrected interval holds the truth even so."""
    held, naive = [], []
    for seed in range(60):
        examples = {k: v for k, v in planted(cosine, n=300, seed=seed, strength=strength).items() if k != "c"}
        _, low, high = small(examples, seed=seed).corrected
        held.append(float(low[0, 1]) <= cosine <= float(high[0, 1]))
        draws = torch.stack(
            [
                refits.bootstrapped(k, refits.Sample(x, y == 1), refits.mean_difference, 200, i)
                for i, (k, (x, y)) in enumerate(examples.items())
            ]
        )
        percentile = torch.cosine_similarity(*draws, dim=1).quantile(torch.tensor([0.025, 0.975]))
        naive.append(float(percentile[0]) <= cosine <= float(percentile[1]))
    assert np.mean(held) >= 0.85
    assert np.mean(naive) < np.mean(held)


@pytest.mark.parametrize("strength", [0.7, 1.5])
def test_interval_of_the_measured_entanglement_is_as_wide_as_its_spread(strength):
    found = [small(planted(0.6, n=300, seed=seed, strength=strength), seed=seed) for seed in range(60)]
    values, lows, highs = (torch.stack([r.entanglement[k] for r in found])[:, 0] for k in range(3))
    # Two measurements differ by the noise of both.
    width = float((highs - lows).mean() / (2 * 1.96 * 2**0.5 * values.std()))
    assert 0.75 < width < 1.4
    assert float(((lows < values.mean()) & (values.mean() < highs)).double().mean()) > 0.85


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.5])
def test_the_interval_holds_where_noise_lies_along_one_axis(strength):
    """Noise along one axis makes any two measured directions alike; the interval of E must not trust that."""
    scale = torch.ones(DIMS).index_fill_(0, torch.tensor([0]), 6.0)
    found = []
    for seed in range(40):
        examples = {
            name: concept(torch.eye(DIMS)[i + 1], 300, seed=5 * seed + i, strength=strength, scale=scale)
            for i, name in enumerate("abc")
        }
        found.append(small(examples, seed=seed))
    values, lows, highs = (torch.stack([r.entanglement[k] for r in found])[:, 0] for k in range(3))
    assert float(((lows <= values.mean()) & (values.mean() <= highs)).double().mean()) > 0.9
    assert bool(((lows <= values) & (values <= highs)).all())
    assert 0.6 < float((highs - lows).mean() / (4 * 2**0.5 * values.std())) < 1.7


def held_again(cosine, n, strength, repeats):
    """How often intervals hold a fresh measurement's E and cosine, and how often the quantiles of resamples do."""
    counts = np.zeros(3)
    for seed in range(repeats):
        once, again = (planted(cosine, n=n, seed=2 * seed + i, strength=strength) for i in range(2))
        found = small(once, seed=seed)
        directions = fitted(again).vectors.double()
        fresh = torch.nn.functional.normalize(directions, dim=1)
        fresh = (fresh @ fresh.T).abs() - torch.eye(3)
        counts[0] += float(
            ((found.entanglement.low <= fresh.amax(1)) & (fresh.amax(1) <= found.entanglement.high)).double().mean()
        )
        low, high = found.cosine.low[0, 1], found.cosine.high[0, 1]
        signed = torch.cosine_similarity(directions[0], directions[1], dim=0)
        counts[1] += float(low <= signed <= high)
        draws = torch.stack(
            [
                refits.bootstrapped(k, refits.Sample(x, y == 1), refits.mean_difference, 200, i)
                for i, (k, (x, y)) in enumerate(once.items())
            ]
        )
        ends = torch.cosine_similarity(draws[0], draws[1], dim=1).quantile(torch.tensor([0.025, 0.975]))
        counts[2] += float(ends[0] <= signed <= ends[1])
    return counts / repeats


def test_intervals_hold_a_new_measurement():
    of_e, of_cosine, naive = held_again(0.5, 300, 1.5, 80)
    assert of_e > 0.88
    assert of_cosine > 0.88
    assert naive < of_cosine


@pytest.mark.slow
@pytest.mark.parametrize("planting", [(0.0, 60, 2.0), (0.5, 300, 1.0), (0.8, 200, 2.0), (0.3, 100, 0.5)])
def test_intervals_hold_new_measurements_as_often_as_they_say(planting):
    """Cosines in .93 to .97; E, a maximum, in .93 to .99."""
    of_e, of_cosine, _ = held_again(*planting, 400)
    assert 0.93 <= of_cosine <= 0.975
    assert 0.93 <= of_e <= 0.995


def grouped(seed, odd_rows, n_groups=24, size=5):
    """Two concepts without any signal, labelled by group, whose groups' examples lie together; some rows relabelled."""
    rng = np.random.default_rng(seed)
    examples, groups = {}, np.arange(n_groups).repeat(size)
    axes = rng.normal(size=(2, DIMS)) * 2
    for name in "ab":
        x = rng.normal(size=(n_groups * size, DIMS)) + (rng.normal(size=(n_groups, 2)) @ axes)[groups]
        y = rng.permutation(np.arange(n_groups) % 2)[groups]
        y[rng.choice(len(y), odd_rows, replace=False)] ^= 1
        examples[name] = torch.tensor(x).float(), torch.tensor(y), groups
    plain = {name: (x, y) for name, (x, y, _) in examples.items()}
    return fitted(plain), examples, plain


@pytest.mark.parametrize("odd_rows", [0, 1, 3])
def test_the_null_of_grouped_labels_survives_odd_rows(odd_rows):
    alarms, blind = [], []
    for seed in range(60):
        directions, examples, plain = grouped(seed, odd_rows)
        options = {"n_resamples": 20, "n_permutations": 99, "n_splits": 2, "seed": seed}
        alarms += (entanglement_report(directions, examples, **options).permutation_percentile > 0.95).tolist()
        if odd_rows == 1:
            blind += (entanglement_report(directions, plain, **options).permutation_percentile > 0.95).tolist()
    assert np.mean(alarms) <= 0.125  # of 120, six expected
    assert not blind or np.mean(blind) > 0.125  # the control: without groups


def test_shuffles_keep_whole_groups_and_mixed_ones_within_themselves():
    groups = np.repeat(np.arange(6), 4)
    y = torch.tensor(np.repeat([0, 1, 0, 1, 0, 1], 4))
    y[0] = 1  # an odd row: the first group is mixed
    drawn = refits.shuffles(refits.Sample(torch.zeros(24, 2), y == 1, groups), 200, seed=0).numpy()
    assert (drawn[:, :4].sum(1) == 1).all()
    whole = drawn[:, 4:].reshape(200, 5, 4)
    assert (whole == whole[:, :, :1]).all()
    assert (whole[:, :, 0].sum(1) == 3).all()
    assert (
        len({tuple(row) for row in whole[:, :, 0].tolist()}) == 10
    )  # every way to give three of five groups the label


def test_percentiles_of_permutations_are_never_those_of_a_p_of_zero():
    found = small(planted(0.95, strength=4.0))
    assert float(found.permutation_percentile.max()) <= 100 / 101


@pytest.mark.slow
def test_percentiles_are_uniform_where_concepts_are_unrelated():
    isotropic, stretched = [], []
    scale = torch.linspace(0.1, 3, DIMS) ** 2
    for seed in range(60):
        for found, more in ((isotropic, {}), (stretched, {"scale": scale})):
            examples = {
                k: concept(torch.eye(DIMS)[0], 60, seed=9 * seed + i, strength=0, **more) for i, k in enumerate("ab")
            }
            result = small(examples, seed=seed)
            found.append(
                [float(p[0]) for p in (result.percentile, result.covariance_percentile, result.permutation_percentile)]
            )
    for column in range(3):
        assert stats.kstest(np.array(isotropic)[:, column], "uniform").pvalue > 0.01
    directions, covariance, permutation = np.array(stretched).T
    assert stats.kstest(covariance, "uniform").pvalue > 0.01
    assert stats.kstest(permutation, "uniform").pvalue > 0.001
    assert stats.kstest(directions, "uniform").pvalue < 0.01  # without the covariance, chance looks like a finding


def test_split_half_rises_with_the_signal():
    weak, strong = (small(planted(0.0, n=400, strength=s)).split_half for s in (0.2, 3.0))
    assert (strong > 0.9).all()
    assert (weak < 0.5).all()


def test_split_half_is_the_reliability_that_theory_gives():
    """With n / 2 examples and unit noise, each half is the truth plus noise of variance 8 / n per dimension."""
    n, strength = 2000, 1.0
    expected = strength**2 / (strength**2 + DIMS * 8 / n)
    found = small({k: concept(torch.eye(DIMS)[i], n, seed=i, strength=strength) for i, k in enumerate("ab")})
    assert found.split_half.tolist() == pytest.approx([expected] * 2, abs=0.03)


def test_activation_columns_by_hand():
    x = torch.randn(500, DIMS, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.2, DIMS)
    vectors = torch.stack([torch.eye(DIMS)[0], torch.eye(DIMS)[1], torch.ones(DIMS)])
    result = entanglement_report(vectors, x, n_permutations=50, n_components=2)
    covariance = np.cov(x.numpy().T, bias=True)
    v = (vectors / vectors.norm(dim=1, keepdim=True)).numpy().astype(float)
    projections = np.corrcoef((x.numpy() @ v.T).T)
    assert result.readout.value.numpy() == pytest.approx(projections, abs=1e-5)
    share = np.einsum("id,de,ie->i", v, covariance, v) / np.trace(covariance)
    assert result.variance_share.value.numpy() == pytest.approx(share, abs=1e-6)
    leading = np.linalg.eigh(covariance)[1][:, -2:]
    assert result.component_overlap.value.numpy() == pytest.approx(((v @ leading) ** 2).sum(1), abs=1e-6)
    assert result.entanglement.low.isnan().all()
    assert result.split_half is None
    spread = x.numpy().astype(float).std(0)
    standard = (x.numpy() - x.numpy().mean(0)) / spread
    shrunk = ledoit_wolf(standard, assume_centered=True)[0] * np.outer(spread, spread)
    whitened = v @ np.linalg.inv(shrunk) @ v.T
    whitened /= np.sqrt(np.outer(np.diag(whitened), np.diag(whitened)))
    assert result.whitened.value.numpy() == pytest.approx(whitened, abs=1e-4)
    assert abs(whitened[0, 2]) > 0.01


def test_shared_activations_resample_together():
    """Two labels that are one another's copy have a cosine of 1 in every resample, if the resamples are the same."""
    x, y = concept(torch.eye(DIMS)[0], 200, seed=0)
    _, z = concept(torch.eye(DIMS)[1], 200, seed=1)
    labels = {"a": y, "copy": y, "other": z.roll(50)}
    vectors = fitted({k: (x, v) for k, v in labels.items()})
    together = entanglement_report(vectors, x, labels, n_resamples=100, n_permutations=20)
    mapped = entanglement_report(vectors, {k: (x, v) for k, v in labels.items()}, n_resamples=100, n_permutations=20)
    apart = entanglement_report(
        vectors, {k: (x.clone(), v) for k, v in labels.items()}, n_resamples=100, n_permutations=20
    )
    assert float(together.cosine.low[0, 1]) == pytest.approx(1, abs=1e-4)
    assert torch.equal(together.cosine.low, mapped.cosine.low)
    assert float(apart.cosine.low[0, 1]) < 0.99


def test_activations_are_looked_up_at_the_directions_place():
    class Held:
        sites = ("resid_post",)

        def __init__(self, rows):
            self.rows = rows

        def layers(self, site):
            return [1, 3]

        def __getitem__(self, site):
            return self.rows

    examples = planted(0.5)
    x = torch.randn(50, 2, DIMS)
    directions = fitted(examples)
    held = entanglement_report(directions, Held(x), n_permutations=20)
    there = entanglement_report(directions, x[:, 1], n_permutations=20)
    assert torch.equal(held.variance_share.value, there.variance_share.value)
    directions.layer = 2
    with pytest.raises(EntangleError, match=r"layers \[1, 3\]"):
        entanglement_report(directions, Held(x))


def test_concepts_that_co_occur_are_told_from_concepts_that_overlap():
    """Labels that agree on most examples make orthogonal concepts look alike, until the other one is held fixed."""
    generator = torch.Generator().manual_seed(0)
    y, other = torch.randint(2, (2, 2000), generator=generator)
    z = torch.where(torch.rand(2000, generator=generator) < 0.7, y, other)
    x = torch.randn(2000, DIMS, generator=generator)
    x[:, 0] += 2 * y
    x[:, 1] += 2 * z
    shown = fitted({"a": (x, y), "b": (x, z)})
    found = entanglement_report(shown, x, {"a": y, "b": z}, n_resamples=50, n_permutations=20)
    assert float(found.label_correlation[0, 1]) == pytest.approx(float(torch.corrcoef(torch.stack([y, z]))[0, 1]))
    assert float(found.cosine.value[0, 1]) > 0.5
    assert abs(float(found.conditional.value[0, 1])) < 0.1
    assert -0.2 < float(found.conditional.low[0, 1]) < float(found.conditional.high[0, 1]) < 0.2
    assert float(found.percentiles["conditional"][0, 1]) < 0.9 < float(found.percentiles["cosine"][0, 1])
    assert small(planted(0.5, n=60)).conditional is None


def test_every_number_moves_as_much_as_its_interval_says():
    """Over repeated data, intervals are as wide as two measurements are apart, and hold the mean."""
    scale = torch.linspace(0.3, 2, DIMS)
    unembedding = torch.randn(300, DIMS, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 3, DIMS)
    found = []
    for seed in range(40):
        examples = {
            name: concept(torch.eye(DIMS)[10] + torch.eye(DIMS)[i], 300, seed=9 * seed + i, strength=2.0, scale=scale)
            for i, name in enumerate("ab")
        }
        options = {"n_resamples": 100, "n_permutations": 20, "n_splits": 2, "unembedding": unembedding, "seed": seed}
        found.append(entanglement_report(fitted(examples), examples, **options))
    for name in ("whitened", "readout", "causal", "variance_share", "component_overlap"):
        cell = (0, 1) if getattr(found[0], name).value.ndim == 2 else 0
        value, low, high = (torch.stack([getattr(r, name)[end][cell] for r in found]) for end in range(3))
        assert ((low <= value) & (value <= high)).all()
        # The whitened cosine moves less than its interval says: the covariance, held fixed there, moves along with it.
        widest = 2.2 if name == "whitened" else 1.6
        assert 0.6 < float((high - low).mean() / (2 * 1.96 * 2**0.5 * value.std())) < widest, name
        assert float(((low <= value.mean()) & (value.mean() <= high)).double().mean()) > 0.85, name


def test_percentiles_are_uniform_for_directions_of_the_activations_own_covariance():
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(3, 0.2, DIMS)
    x = torch.randn(2000, DIMS, generator=generator) * scale
    draws = [torch.randn(2, DIMS, generator=generator) * scale for _ in range(80)]
    found = [entanglement_report(v, x, n_permutations=400, seed=i).percentiles for i, v in enumerate(draws)]
    uniform = [entanglement_report(v / scale, x, n_permutations=400, seed=i) for i, v in enumerate(draws)]
    for name in ("cosine", "whitened", "readout"):
        assert stats.kstest([float(p[name][0, 1]) for p in found], "uniform").pvalue > 0.01, name
    for name in ("variance_share", "component_overlap"):
        assert stats.kstest([float(p[name][0]) for p in found], "uniform").pvalue > 0.01, name
        assert stats.kstest([float(r.percentiles[name][0]) for r in uniform], "uniform").pvalue < 1e-6, name


def test_concepts_of_two_dimensions_that_share_one_of_them():
    """Overlap is a half where one of two dimensions is shared, above chance; and near chance where none is."""

    def planes(seed):
        """Each class is told by an axis whose noise a second axis knows of, so that a second probe finds that axis."""
        found = {}
        for i, (name, axes) in enumerate({"a": (0, 1), "b": (0, 2), "c": (3, 4)}.items()):
            generator = torch.Generator().manual_seed(3 * seed + i)
            x = torch.randn(1500, DIMS, generator=generator)
            y = torch.arange(1500) % 2
            x[:, axes[1]] = 0.8 * x[:, axes[0]] + 0.6 * x[:, axes[1]]
            x[:, axes[0]] += 2 * y
            found[name] = (x, y)
        return found

    examples = planes(0)
    options = {"n_resamples": 100, "n_permutations": 100, "n_splits": 2}
    found = entanglement_report(fitted(examples), examples, subspace_dims=2, **options)
    value, low, high = found.subspace_overlap
    assert float(value[0, 1]) == pytest.approx(0.5, abs=0.12)
    assert float(value[0, 2]) < 0.1
    assert value.diagonal().tolist() == pytest.approx([1] * 3)
    assert (low <= value + 1e-9).all()
    assert (value <= high + 1e-9).all()
    assert float(low[0, 1]) > float(high[0, 2])
    assert float(found.percentiles["subspace_overlap"][0, 1]) > 0.98
    assert "subspace_overlap_percentile" in found.pairs()
    assert entanglement_report(fitted(examples), examples, **options).subspace_overlap is None
    with pytest.raises(EntangleError, match="from 1 to 23"):
        entanglement_report(fitted(examples), examples, subspace_dims=DIMS, **options)
    with pytest.raises(EntangleError, match="labelled examples"):
        entanglement_report(fitted(examples), subspace_dims=2)


def test_what_is_saved_is_what_is_loaded(tmp_path, report):
    report.save(tmp_path / "report")
    again = EntanglementReport.load(tmp_path / "report")
    assert again.to_dict() == report.to_dict()
    assert again.pairs().equals(report.pairs())
    assert again.to_frame().equals(report.to_frame())
    bare = entanglement_report(torch.eye(3, 5))
    bare.save(tmp_path / "bare")
    assert EntanglementReport.load(tmp_path / "bare").to_dict() == bare.to_dict()
    with pytest.raises(EntangleError, match="holds no saved EntanglementReport"):
        EntanglementReport.load(tmp_path)


def test_causal_cosines_need_the_unembedding():
    unembedding = torch.randn(300, DIMS, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 3, DIMS)
    vectors = torch.randn(3, DIMS, generator=torch.Generator().manual_seed(1))
    found = entanglement_report(vectors, unembedding=unembedding).causal.value
    covariance = torch.from_numpy(np.cov(unembedding.numpy().T, bias=True)).float()
    expected = vectors @ covariance @ vectors.T
    assert found.numpy() == pytest.approx(
        (expected / expected.diag().sqrt() / expected.diag().sqrt()[:, None]).numpy(), abs=1e-5
    )
    assert entanglement_report(vectors).causal is None


def test_groups_widen_the_interval():
    examples = planted(0.3, n=40)
    repeated = {k: (x.repeat(10, 1), y.repeat(10)) for k, (x, y) in examples.items()}
    grouped = {k: (x, y, np.arange(40).tolist() * 10) for k, (x, y) in repeated.items()}
    naive = small(repeated).cosine
    honest = entanglement_report(fitted(repeated), grouped, n_resamples=200, n_permutations=100, n_splits=4).cosine
    assert float(honest.high[0, 2] - honest.low[0, 2]) > 2 * float(naive.high[0, 2] - naive.low[0, 2])


def test_logistic_refit_equals_sklearn():
    x, y = concept(torch.eye(DIMS)[0], 120, seed=0)
    weights = torch.stack([torch.ones(120), torch.arange(120.0) % 3])
    labels = torch.stack([y == 1, (y == 1).roll(30)])
    ours = refits.logistic(x, labels, weights)
    for i in range(2):
        theirs = LogisticRegression(tol=1e-8, max_iter=1000).fit(x, labels[i], sample_weight=weights[i]).coef_[0]
        assert ours[i].numpy() == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize("probe", ["mean_difference", "logistic", "lda", "ridge", "svm"])
def test_every_probe_can_be_refitted(probe):
    """A refit on counts is the fit on the repeated examples."""
    x, y = concept(torch.eye(DIMS)[0], 120, seed=0)
    counts = torch.arange(120) % 3
    repeated = make_probe(probe).fit(x.repeat_interleave(counts, 0), y.repeat_interleave(counts))
    weights = torch.stack([counts.float(), torch.ones(120)])
    ours = refits.ESTIMATORS[probe](x, (y == 1).expand(2, -1), weights)
    assert float(torch.cosine_similarity(ours[0], torch.from_numpy(repeated.coef_[0]), dim=0)) > 0.99999
    permutations = torch.stack([(y == 1).roll(i) for i in range(3)])
    together = refits.ESTIMATORS[probe](x, permutations, torch.ones(3, 120))
    alone = make_probe(probe).fit(x, permutations[2])
    assert float(torch.cosine_similarity(together[2], torch.from_numpy(alone.coef_[0]), dim=0)) > 0.99999


def test_logistic_directions_get_intervals():
    examples = planted(0.8, n=200)
    directions = fitted(examples)
    directions.estimator = "logistic"
    directions.vectors = torch.stack(
        [refits.full(refits.Sample(x, y == 1), refits.logistic) for x, y in examples.values()]
    )
    result = entanglement_report(directions, examples, n_resamples=100, n_permutations=20, n_splits=2)
    assert float(result.corrected.low[0, 1]) < 0.8 < float(result.corrected.high[0, 1])
    assert float(result.agreement.min()) == pytest.approx(1, abs=1e-4)
    assert result.settings["estimator"] == "logistic"


def test_same_seed_same_report_other_seed_other_interval():
    examples = planted(0.5, n=60)
    again, other = small(examples).to_dict(), small(examples, seed=1).to_dict()
    assert small(examples).to_dict() == again
    assert other["entanglement_low"] != again["entanglement_low"]
    assert other["entanglement"] == again["entanglement"]


def test_frames_and_json(report):
    frame = report.to_frame()
    assert list(frame.concept) == ["a", "b", "c"]
    assert set(frame.layer) == {3}
    pairs = report.pairs()
    assert len(pairs) == 3
    assert pairs.cosine[0] == pytest.approx(float(report.cosine.value[0, 1]))
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["names"] == ["a", "b", "c"]
    bare = entanglement_report(torch.eye(3, 5))
    assert json.loads(json.dumps(bare.to_dict(), allow_nan=False))["entanglement_low"] == [None] * 3
    assert bare.to_frame().split_half.isna().all()


def test_plot_writes_every_cell(report):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = report.plot()
    assert len([t for t in axes.texts if t.get_text()]) >= 6
    assert "resid_post" in axes.get_title(loc="left")
    report.plot("whitened")
    with pytest.raises(EntangleError, match="given what they need"):
        entanglement_report(torch.eye(3, 5)).plot("whitened")


X, Y = torch.randn(40, DIMS), torch.arange(40) % 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: entanglement_report(torch.eye(1, 5)), "2 directions"),
        (lambda: entanglement_report(torch.eye(2, DIMS), {"a": (X, Y), "b": (X, Y)}), "estimator="),
        (lambda: entanglement_report(torch.eye(2, DIMS), X[:, :3]), r"\[example, 24\]"),
        (lambda: entanglement_report(torch.eye(2, DIMS), X.index_fill(0, torch.tensor([1]), torch.nan)), "1 of 40"),
        (lambda: entanglement_report(torch.eye(2, DIMS), torch.ones(9, DIMS)), "do not vary"),
        (lambda: entanglement_report(torch.eye(2, DIMS), None, {"a": Y}), "give both"),
        (lambda: entanglement_report(torch.eye(3, DIMS), {"a": (X, Y), "b": (X, Y)}), "examples for each"),
        (lambda: entanglement_report(torch.eye(2, DIMS), {"a": (X, Y)}, {"a": Y}), "twice"),
        (
            lambda: entanglement_report(torch.eye(2, DIMS), X, {"a": Y, "b": Y[:9]}),
            "'b' must be one for each of 40",
        ),
        (
            lambda: entanglement_report(torch.eye(2, DIMS), X, {"a": Y, "b": Y * 0}),
            "'b' have only the label",
        ),
        (
            lambda: entanglement_report(torch.eye(2, DIMS), X, {"a": Y, "b": torch.arange(40) % 3}),
            "'b' have 3 values",
        ),
        (
            lambda: entanglement_report(torch.eye(2, DIMS), {"a": (X, Y, [1]), "b": (X, Y)}, estimator="logistic"),
            "1 groups for 40",
        ),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(EntangleError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(2, 8), st.integers(0, 2**31))
def test_any_directions_give_percentiles_and_cosines_in_range(n, d, seed):
    result = entanglement_report(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))
    assert ((result.percentile >= 0) & (result.percentile <= 1)).all()
    assert ((result.entanglement.value >= 0) & (result.entanglement.value <= 1)).all()
    assert result.null_mean < result.null_95 <= 1
