"""Planted concepts: the whole pipeline must find what was put there, and nothing where nothing was put."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.metrics import cosines
from entangle.probes import fit_probes
from entangle.toy import PlantedConcepts, balanced_examples, recover, recovery_curve


@settings(max_examples=30, deadline=None)
@given(cosine=st.floats(-0.45, 0.95), n=st.integers(2, 3), seed=st.integers(0, 1000))
def test_directions_have_exactly_the_planted_cosines(cosine, n, seed):
    planted = PlantedConcepts(cosine, n_concepts=n, d_model=16, seed=seed)
    found = cosines(planted.directions)
    assert torch.allclose(found, torch.full((n, n), cosine).fill_diagonal_(1), atol=1e-5)
    assert torch.allclose(planted.entanglement, torch.tensor(abs(cosine)), atol=1e-5)


def test_labels_correlate_as_planted_and_noise_flips_them():
    for correlation, noise in ((0.0, 0.0), (0.4, 0.0), (0.4, 0.2)):
        labels = PlantedConcepts(correlation=correlation, label_noise=noise, n_concepts=3).sample(40_000).labels
        found = torch.corrcoef(torch.stack(list(labels.values())).float())
        expected = correlation * (1 - 2 * noise) ** 2
        assert torch.allclose(found, torch.full((3, 3), expected).fill_diagonal_(1), atol=0.02)


def test_class_means_differ_by_the_strength_along_the_direction_and_nothing_else():
    planted = PlantedConcepts(0.6, d_model=8, strength=3.0, correlation=0.5)
    sample = planted.sample(200_000)
    y = sample.labels["concept 0"]
    difference = sample.activations[y == 1].mean(0) - sample.activations[y == 0].mean(0)
    expected = 3.0 * (planted.directions.vectors[0] + 0.5 * planted.directions.vectors[1])
    assert torch.allclose(difference, expected, atol=0.03)
    assert torch.allclose(difference / difference.norm(), planted.mean_differences.vectors[0], atol=0.01)


def test_mean_differences_recover_planted_entanglement_within_the_reported_interval():
    for cosine in (0.2, 0.7):
        planted = PlantedConcepts(cosine, d_model=16)
        covered = 0
        for seed in range(20):
            found = recover(planted.sample(600, seed=seed), n_resamples=200)
            covered += found["corrected_low"] <= cosine <= found["corrected_high"]
        # At 95 % coverage fewer than 16 of 20 has a chance of 1 in 400.
        assert covered >= 16, f"{covered} of 20 at cosine {cosine}"


def test_correlated_labels_look_like_entanglement_until_they_are_balanced():
    planted = PlantedConcepts(0.3, d_model=16, correlation=0.5)
    sample = planted.sample(6000, seed=1)
    mixed = recover(sample, n_resamples=200)
    biased = float(cosines(planted.mean_differences)[0, 1])
    assert mixed["corrected_low"] > 0.3
    assert mixed["corrected_low"] < biased < mixed["corrected_high"]
    chosen = balanced_examples(sample.labels)
    labels = {name: label[chosen] for name, label in sample.labels.items()}
    assert torch.corrcoef(torch.stack(list(labels.values())).float())[0, 1] == pytest.approx(0, abs=1e-6)
    balanced = recover(type(sample)(sample.activations[chosen], labels), n_resamples=200)
    assert balanced["corrected_low"] < 0.3 < balanced["corrected_high"]


def test_the_probe_that_reads_best_is_not_the_direction_that_was_written():
    """Weights that discriminate cancel the other concept (Haufe et al. 2014): their cosine is not the planted one."""
    curve = recovery_curve("cosine", [0.6], n_repeats=6, n_examples=1500, d_model=16, n_resamples=100, progress=False)
    by_estimator = curve.groupby("estimator")
    assert by_estimator["covered"].mean()["mean_difference"] >= 0.6
    assert by_estimator["covered"].mean()["logistic"] == 0
    assert by_estimator["accuracy"].mean()["logistic"] >= by_estimator["accuracy"].mean()["mean_difference"] - 0.02


def test_probes_find_the_cells_that_hold_the_concept_and_only_those():
    planted = PlantedConcepts(0.5, d_model=12, label_noise=0.05)
    sample = planted.sample_grid(800, (3, 4), [(1, 2), (2, 0)])
    assert sample.activations.shape == (800, 3, 4, 12)
    grid = fit_probes(sample.activations, sample.labels["concept 1"].numpy(), n_permutations=50, progress=False)
    assert set(grid.top(2)) == {(1, 2), (2, 0)}
    p_values = torch.as_tensor(grid.p_values)
    assert float(p_values[1, 2]) < 0.05
    assert float(p_values[2, 0]) < 0.05
    elsewhere = torch.ones(3, 4, dtype=torch.bool)
    elsewhere[1, 2] = elsewhere[2, 0] = False
    assert int((p_values[elsewhere] < 0.05).sum()) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cosine": -0.9, "n_concepts": 3}, "no directions have these cosines"),
        ({"cosine": torch.tensor([[1.0, 0.2], [0.3, 1.0]])}, "symmetric matrix"),
        ({"cosine": torch.tensor([[2.0, 0.2], [0.2, 1.0]])}, "unit diagonal"),
        ({"n_concepts": 5, "d_model": 4}, "d_model must be at least"),
        ({"label_noise": 0.5}, "label_noise in"),
        ({"correlation": 1.0}, "correlation must lie"),
        ({"strength": 0.0}, "strength above 0"),
    ],
)
def test_impossible_plants_are_refused(arguments, message):
    with pytest.raises(EntangleError, match=message):
        PlantedConcepts(**arguments)


def test_balancing_needs_every_combination():
    same = torch.tensor([0, 1, 0, 1])
    with pytest.raises(EntangleError, match="never occur"):
        balanced_examples({"a": same, "b": same})
