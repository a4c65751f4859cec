"""What is reported can be believed: no leak through selection, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from entangle.probes import MeanDifferenceProbe, fit_probes


def selected_accuracies(n_seeds: int, n_cells: int = 256, n: int = 512, d: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Mean accuracy of the top 30 cells on noise, per seed: on the report part, and on the rows that chose them."""
    reported, naive = [], []
    for seed in range(n_seeds):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, n_cells, d, generator=generator)
        y = torch.randperm(n, generator=generator) % 2  # as many of each, so that chance is one half exactly
        grid = fit_probes(x, y, seed=seed, n_permutations=0, progress=False)
        top = [cell for (cell,) in grid.top(30)]
        reported.append(grid.accuracy[top].mean().item())
        naive.append(grid.selection_accuracy[top].mean().item())
    return np.array(reported), np.array(naive)


@pytest.mark.parametrize(("n_seeds", "n_cells"), [(8, 96), pytest.param(200, 256, marks=pytest.mark.slow)])
def test_selected_cells_on_noise_are_reported_at_chance(n_seeds, n_cells):
    reported, naive = selected_accuracies(n_seeds, n_cells)
    error = reported.std(ddof=1) / math.sqrt(n_seeds)
    print(f"{n_seeds} seeds: reported {reported.mean():.4f} +- {error:.4f}, naive {naive.mean():.4f}")
    assert abs(reported.mean() - 0.5) < 3 * error
    assert naive.mean() > 0.57  # the negative control: the rows that select a cell flatter it


def phi(z: torch.Tensor) -> torch.Tensor:
    return torch.special.ndtr(z)


def test_intervals_cover_the_truth():
    """A thousand data sets, one a cell, from two Gaussians; what each fitted probe is worth is then known exactly."""
    n, cells, d, shift = 600, 1000, 6, 0.5
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    x = torch.randn(n, cells, d, generator=generator)
    x[..., 0] += shift * (2 * y - 1)[:, None]
    grid = fit_probes(x, y, probe=MeanDifferenceProbe(), n_permutations=0, n_resamples=1000, progress=False)
    size = grid.coef_.norm(dim=-1)
    toward, offset = shift * grid.coef_[:, 0] / size, grid.intercept_ / size
    truths = {
        "interval": (phi(toward + offset) + phi(toward - offset)) / 2,
        "auroc_interval": phi(math.sqrt(2) * toward),
    }
    for name, truth in truths.items():
        estimate = getattr(grid, name)
        covered = ((estimate.low <= truth) & (truth <= estimate.high)).float().mean().item()
        print(f"{name}: {covered:.3f}")
        assert 0.93 <= covered <= 0.97
    half = (
        grid.interval.low + grid.interval.value
    ) / 2  # the negative control: an interval of half the width covers too little
    assert (
        (half <= truths["interval"]) & (truths["interval"] <= (grid.interval.high + grid.interval.value) / 2)
    ).float().mean() < 0.8
