"""Iterated probes find planted planes, and what LEACE erases; sampled gradients are those of the model."""

from __future__ import annotations

import pytest
import torch
from concept_erasure import LeaceFitter
from scipy.stats import kstest

from entangle.activations import collect
from entangle.concepts.interaction import interaction_gradients
from entangle.concepts.refits import Sample
from entangle.concepts.subspaces import _discriminants, nullspace_subspace, subspace_overlaps
from entangle.errors import EntangleError
from entangle.interventions import AddDirection, steer
from entangle.metrics import subspace_overlap

TEXTS = ["the cat sat on the mat", "a quick brown fox jumps over the lazy dog", "the moon sat"]


def planted(seed=0, n=4000, d=12):
    """Positives differ along axis 0, whose noise axis 1 tells of: a probe reads both, and so does a second one."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=generator)
    x = torch.randn(n, d, generator=generator)
    x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
    x[:, 0] += 2 * y
    return x, y


def test_two_dimensions_of_a_concept_are_found():
    x, y = planted()
    basis = nullspace_subspace(x, y, 2)
    assert torch.allclose(basis @ basis.T, torch.eye(2), atol=1e-5)
    assert float(subspace_overlap(basis, torch.eye(12)[:2])) > 0.95
    assert float(subspace_overlap(nullspace_subspace(x, y.roll(1), 2), torch.eye(12)[:2])) < 0.7


def test_a_projected_out_direction_is_not_found_again():
    x, y = planted()
    one, three = nullspace_subspace(x, y, 1), nullspace_subspace(x, y, 3)
    assert torch.allclose(three[:1], one, atol=1e-5)
    assert float((three[1:] @ one.T).abs().max()) < 1e-5


def test_a_mean_difference_leaves_nothing():
    x, y = planted()
    with pytest.raises(EntangleError, match="after 1 dimensions"):
        nullspace_subspace(x, y, 2, estimator="mean_difference")
    with pytest.raises(EntangleError, match="from 1 to 11"):
        nullspace_subspace(x, y, 12)
    with pytest.raises(EntangleError, match="estimator"):
        nullspace_subspace(x, y, 1, estimator="pca")


def correlated(k=1, n=4000, d=12, seed=0):
    """Labels that move activations whose noise is far from isotropic."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n, k), generator=generator)
    noise = torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator)
    return noise + 1.5 * labels.float() @ torch.randn(k, d, generator=generator), labels


def leace(x, labels):
    """What concept-erasure reads from (rows of the erased subspace), and its eraser."""
    fitter = LeaceFitter(x.shape[1], labels.shape[1], dtype=torch.float64, shrinkage=False)
    fitter.update(x.double(), labels.double())
    return fitter.eraser.proj_right, fitter.eraser


def test_one_linear_discriminant_is_what_leace_reads():
    """LEACE removes one dimension of a binary concept, and reads it along the direction a discriminant finds."""
    x, labels = correlated()
    rows, _ = leace(x, labels)
    y = labels[:, 0]
    everyone = torch.ones(1, len(x))
    for found in (nullspace_subspace(x, y, 1, estimator="lda"), _discriminants(x, y[None] == 1, everyone, 1)[0]):
        assert float(subspace_overlap(found, rows)) > 0.999
    difference = (x[y == 1].mean(0) - x[y == 0].mean(0))[None]
    assert float(subspace_overlap(difference, rows)) < 0.9  # which ignores the covariance
    assert float(subspace_overlap(nullspace_subspace(x, y.roll(1), 1, estimator="lda"), rows)) < 0.9


def test_discriminants_of_several_labels_span_what_leace_reads():
    x, labels = correlated(k=3)
    rows, _ = leace(x, labels)
    assert rows.shape == (3, 12)
    found = torch.cat([nullspace_subspace(x, y, 1, estimator="lda") for y in labels.T])
    assert float(subspace_overlap(found, rows)) > 0.999
    differences = torch.stack([x[y == 1].mean(0) - x[y == 0].mean(0) for y in labels.T])
    assert float(subspace_overlap(differences, rows)) < 0.95


def test_leace_leaves_nothing_to_find_and_one_null_space_projection_does():
    x, labels = correlated()
    y = labels[:, 0]
    _, eraser = leace(x, labels)
    with pytest.raises(EntangleError, match="after 0 dimensions"):
        nullspace_subspace(eraser(x.double()), y, 1, estimator="lda")
    first = nullspace_subspace(x, y, 1, estimator="lda")
    projected = x - x @ first.T @ first
    left = (projected[y == 1].mean(0) - projected[y == 0].mean(0)).norm()
    assert float(left) > 0.1 * float((x[y == 1].mean(0) - x[y == 0].mean(0)).norm())


def test_many_discriminants_at_once_are_iterated_ones():
    """The closed form equals probing, projecting out and probing again; a weight counts as repeated examples."""
    x, y = planted()
    counts = torch.arange(len(x)) % 3
    weights = torch.stack([torch.ones(len(x)), counts.float()])
    found = _discriminants(x, (y == 1).expand(2, -1), weights, 3)
    assert torch.allclose(found @ found.mT, torch.eye(3, dtype=torch.float64).expand(2, 3, 3), atol=1e-8)
    repeated = x.repeat_interleave(counts, 0), y.repeat_interleave(counts)
    for ours, data in zip(found, ((x, y), repeated), strict=True):
        for dims in (1, 2):
            theirs = nullspace_subspace(*data, dims, estimator="lda")
            assert float(subspace_overlap(ours[:dims], theirs)) > 0.995
    assert float(subspace_overlap(found[0, :2], torch.eye(12)[:2])) > 0.95


def test_chance_of_an_overlap_is_uniform_for_unrelated_labels():
    shares = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        pair = [
            Sample.of(name, torch.randn(80, 8, generator=generator), torch.randint(2, (80,), generator=generator))
            for name in "ab"
        ]
        options = {"n_resamples": 2, "n_permutations": 60, "level": 0.95, "seed": seed}
        shares.append(float(subspace_overlaps(pair, [0, 1], 2, **options)[1][0, 1]))
    assert kstest(shares, "uniform").pvalue > 0.01


def test_gradients_are_the_models(tiny_model, tiny_tokenizer):
    """Their second moment is that of finite differences: |J v|^2 summed over tokens."""
    model = tiny_model("olmo2")
    before = collect(model, tiny_tokenizer, TEXTS, sites="resid_post", tokens="all", progress=False)["resid_post"]
    g = interaction_gradients(model, tiny_tokenizer, TEXTS[2:], layer=0, later=2, n_projections=200)
    n_tokens = len(tiny_tokenizer(TEXTS[2])["input_ids"])
    assert g.shape == (200 * n_tokens, 32)
    v = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)
    estimated = g.reshape(200, n_tokens, 32) @ v

    def at(layer_edit):
        with steer(model, layer_edit, tokens=mask):
            found = collect(
                model, tiny_tokenizer, TEXTS[2:], sites="resid_post", layers=[2], tokens="all", progress=False
            )
        return found["resid_post"][:, 0]

    position = n_tokens - 1
    mask = torch.arange(n_tokens)[None] == position
    step = 1e-2
    difference = (at(AddDirection(step * v, "resid_post", 0)) - at(AddDirection(-step * v, "resid_post", 0))) / (
        2 * step
    )
    expected = float(difference.square().sum())
    assert float(estimated[:, position].square().mean()) == pytest.approx(expected, rel=0.3)
    after = collect(model, tiny_tokenizer, TEXTS, sites="resid_post", tokens="all", progress=False)["resid_post"]
    assert torch.equal(before, after)
    assert all(p.grad is None for p in model.parameters())


def test_gradients_run_downwards_only(tiny_model, tiny_tokenizer):
    with pytest.raises(EntangleError, match="later"):
        interaction_gradients(tiny_model("olmo2"), tiny_tokenizer, TEXTS, layer=1, later=1)
