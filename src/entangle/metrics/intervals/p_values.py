"""P-values by permutation, and what becomes of them where there are many."""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.intervals.estimate import block_sizes, finite, group_indices


def paired_permutation_test(
    a: Float[Tensor, " example"] | ArrayLike,
    b: Float[Tensor, " example"] | ArrayLike,
    *,
    n_permutations: int = 10_000,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> float:
    """Two-sided p-value of the mean of `a - b` when the two conditions of an example may be swapped (sign flips).

    Args:
        a: One value per example under the first condition.
        b: The same examples under the second condition.
        n_permutations: Number of random swaps; the p-value is at least `1 / (n_permutations + 1)`. Where there are no
            more ways to swap than that, each is taken once, and the p-value is exact.
        seed: Seed of the swaps.
        groups: Swaps whole groups of examples together.

    Returns:
        `(1 + number of swaps at least as extreme) / (1 + n_permutations)` (Phipson & Smyth 2010), never 0.

    Example:
        >>> en.metrics.paired_permutation_test([3.0, 9.0, 6.0, 5.0], [2.0, 7.0, 5.0, 4.0])  # 2 of 16 swaps
        0.125
    """
    difference = paired(a, b)
    if difference.ndim != 1:
        raise EntangleError(f"a paired test takes one value per example, not shape {tuple(difference.shape)}")
    groups_of = group_indices(groups, len(difference))
    sums = torch.zeros(int(groups_of.max()) + 1, dtype=torch.float64).index_add_(0, groups_of, difference)
    # The slack counts a swap that gives the same sum in another order of addition as a tie.
    threshold = sums.sum().abs() - 1e-12 * sums.abs().sum()
    if 2 ** len(sums) <= n_permutations:
        every = torch.tensor(list(product((1.0, -1.0), repeat=len(sums))), dtype=torch.float64)
        return float(((every @ sums).abs() >= threshold).double().mean())
    generator = torch.Generator().manual_seed(seed)
    extreme = 0
    for size in block_sizes(n_permutations, len(sums)):
        signs = torch.randint(2, (size, len(sums)), generator=generator).double().mul_(2).sub_(1)
        extreme += int(((signs @ sums).abs() >= threshold).sum())
    return (1 + extreme) / (1 + n_permutations)


def holm(p_values: Float[Tensor, "*test"] | ArrayLike) -> Float[Tensor, "*test"]:
    """P-values adjusted for multiple tests by Holm's step-down (Holm 1979): valid under any dependence.

    Args:
        p_values: Any shape; all of them are one family.

    Returns:
        Adjusted p-values of the same shape, in float64.

    Example:
        >>> en.metrics.holm([0.01, 0.04, 0.03])
        tensor([0.0300, 0.0600, 0.0600], dtype=torch.float64)
    """
    p = finite(p_values, "p_values")
    if bool(((p < 0) | (p > 1)).any()):
        raise EntangleError("p_values must lie in [0, 1]")
    ordered, order = p.flatten().sort()
    steps = torch.arange(len(ordered), 0, -1, dtype=torch.float64)
    adjusted = (ordered * steps).cummax(0).values.clamp(max=1)
    return torch.empty_like(adjusted).scatter_(0, order, adjusted).reshape(p.shape)


def max_statistic_p(
    observed: Float[Tensor, "*cell"] | ArrayLike, null: Float[Tensor, "permutation *cell"] | ArrayLike
) -> Float[Tensor, "*cell"]:
    """P-values over a grid against the null of the grid's maximum (Westfall & Young 1993, single step).

    Corrects for looking at every cell, and loses nothing to how strongly the cells move together.

    Args:
        observed: The statistic of each cell; large is extreme.
        null: The same statistic under each permutation.

    Returns:
        Adjusted p-values shaped like `observed`, in float64, at least `1 / (permutations + 1)`.

    Example:
        >>> null = torch.linspace(0.4, 0.6, 99)[:, None].expand(99, 2)
        >>> en.metrics.max_statistic_p(torch.tensor([0.5, 0.9]), null)
        tensor([0.5100, 0.0100], dtype=torch.float64)
    """
    x, draws = finite(observed, "observed"), finite(null, "null")
    if draws.shape[1:] != x.shape or len(draws) == 0:
        raise EntangleError(
            f"null must be [permutation, *{tuple(x.shape)}] like observed, with a permutation or more; "
            f"got {tuple(draws.shape)}"
        )
    maxima = draws.reshape(len(draws), -1).amax(1).sort().values
    reached = len(maxima) - torch.searchsorted(maxima, x.contiguous(), side="left")
    return (1 + reached).double() / (1 + len(maxima))


def paired(a: Tensor | ArrayLike, b: Tensor | ArrayLike) -> Tensor:
    """`a - b` of the same examples, in float64."""
    x, y = finite(a, "a"), finite(b, "b")
    if x.shape != y.shape:
        raise EntangleError(
            f"paired conditions need one shape, not {tuple(x.shape)} and {tuple(y.shape)}; "
            "measure both on the same examples"
        )
    return x - y
