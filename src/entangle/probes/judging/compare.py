"""Two grids on the same examples, such as the same probes in two models: is one better, and where?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.intervals.rates import paired_rate_interval
from entangle.metrics.statistics import Estimate, paired_difference, paired_permutation_test
from entangle.probes.grid import ProbeGrid
from entangle.probes.judging.scores import correct


@dataclass(frozen=True)
class GridComparison:
    """Accuracy of one grid minus another's, on the report part.

    Attributes:
        difference: Per cell, with paired intervals (Bonett & Price 2012; see `entangle.metrics.paired_rate_interval`).
        p_values: Per cell, two-sided, corrected for all cells (maximum over the grid of the difference under swaps).
        mean: Mean over the cells, with its interval over examples.
        p_examples: Of that mean, were an example's two results (in every cell together) exchangeable.
        p_cells: Of that mean, were a cell's two accuracies exchangeable. Cells are not independent, so it is too
            confident.

    Example:
        >>> noise = torch.randn(acts["z"].shape)
        >>> weaker = en.fit_probes(noise, labels, split=grid.split, n_permutations=0, progress=False)
        >>> comparison = en.probes.compare(grid, weaker, n_permutations=200)
        >>> comparison.mean.low > 0
        True
    """

    difference: Estimate
    p_values: Float[Tensor, "*grid"]
    mean: Estimate
    p_examples: float
    p_cells: float


def compare(
    a: ProbeGrid, b: ProbeGrid, *, n_permutations: int = 2000, n_resamples: int = 2000, seed: int = 0
) -> GridComparison:
    """Test whether grid `a` is more accurate than grid `b`, with results of the same example paired.

    Args:
        a: One grid.
        b: Another, of the same shape, on the same examples, labels and split.
        n_permutations: Random swaps.
        n_resamples: Bootstrap resamples.
        seed: Seed of both.

    Raises:
        EntangleError: The grids differ in shape, or in what they report on.

    Example:
        >>> layers = [en.fit_probes(acts["resid_post"][:, i], labels, progress=False) for i in (0, 1)]
        >>> comparison = en.probes.compare(*layers, n_permutations=200)
        >>> comparison.mean.low <= 0 <= comparison.mean.high  # one layer reads it as well as the other
        True
    """
    if a.shape != b.shape:
        raise EntangleError(f"two grids are compared cell by cell, but their shapes are {a.shape} and {b.shape}")
    if not torch.equal(a.split.report, b.split.report) or not torch.equal(a.report_labels, b.report_labels):
        raise EntangleError("two grids are compared on the same examples; fit both with one split= and the same labels")
    groups = None if a.groups is None else a.groups[a.split.report]
    of_a, of_b = (correct(grid.report_scores, grid.report_labels, grid.n_classes).double() for grid in (a, b))
    difference = of_a - of_b
    of_a, of_b = (hits.reshape(len(hits), -1) for hits in (of_a, of_b))
    options: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed, "groups": groups}
    across = [part.mean(1) for part in (of_a, of_b)]
    return GridComparison(
        paired_rate_interval(difference, groups=groups),
        _swapped(of_a - of_b, groups, n_permutations, seed).reshape(a.shape),
        paired_difference(*across, bounds=(-1, 1), **options),
        paired_permutation_test(*across, n_permutations=n_permutations, seed=seed, groups=groups),
        paired_permutation_test(of_a.mean(0), of_b.mean(0), n_permutations=n_permutations, seed=seed),
    )


def _swapped(
    difference: Float[Tensor, "example cell"], groups: Tensor | None, n_permutations: int, seed: int
) -> Float[Tensor, " cell"]:
    """Two-sided p of each cell's difference against the largest of any cell, when examples are swapped at random."""
    unit = torch.arange(len(difference)) if groups is None else torch.unique(groups, return_inverse=True)[1]
    generator = torch.Generator().manual_seed(seed)
    signs = 2.0 * torch.randint(2, (n_permutations, int(unit.max()) + 1), generator=generator).double() - 1
    sums = difference.new_zeros(signs.shape[1], difference.shape[1]).index_add_(0, unit, difference)
    largest = (signs @ sums).abs().amax(1)
    reached = (largest[:, None] >= sums.sum(0).abs() - 1e-9).sum(0)
    return (1 + reached).double() / (1 + n_permutations)
