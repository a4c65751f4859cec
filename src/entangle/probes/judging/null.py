"""Labels without meaning: permutations that keep everything but the tie between a label and its example."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from entangle.probes.splits import PARTS, Split

Labels = Int[Tensor, " example"]
Array: TypeAlias = np.ndarray[Any, Any]


def permuted_labels(
    labels: Labels, split: Split, n_permutations: int, *, seed: int = 0, groups: Labels | None = None
) -> Int[Tensor, "example permutation"]:
    """Shuffle labels within each part of the split, so that every part keeps its classes in proportion.

    With groups, a group whose examples share one label exchanges it with other such groups, whole; a group of several
    labels shuffles them within itself. Both keep what holds among the examples of a group.

    Args:
        labels: Class numbers.
        split: The parts; an example in none of them keeps its label.
        n_permutations: How many shuffles.
        seed: Seed of the shuffles.
        groups: Group numbers.
    """
    rng = np.random.default_rng(seed)
    result = labels.numpy()[:, None].repeat(n_permutations, 1)
    for name in PARTS:
        part = getattr(split, name).numpy()
        y, units = labels.numpy()[part], None if groups is None else groups.numpy()[part]
        for column in range(n_permutations):
            result[part, column] = rng.permutation(y) if units is None else permuted_within(y, units, rng)
    return torch.from_numpy(result)


def permuted_within(y: Array, groups: Array, rng: np.random.Generator) -> Array:
    """One shuffle of labels that keeps groups.

    A group whose examples share one label exchanges it, whole, with other such groups; a group of several labels
    shuffles them within itself. So one odd row frees no other group's rows.

    Args:
        y: Labels.
        groups: Group of each example.
        rng: Where chance comes from.

    Example:
        >>> y, groups = np.array([0, 0, 1, 1]), np.array([7, 7, 8, 8])
        >>> shuffled = en.probes.permuted_within(y, groups, np.random.default_rng(0))
        >>> bool(shuffled[0] == shuffled[1]), bool(shuffled[2] == shuffled[3])  # a group stays together
        (True, True)
    """
    _, first, unit = np.unique(groups, return_index=True, return_inverse=True)
    pure = np.bincount(unit, y != y[first][unit]) == 0
    exchanged = y[first].copy()
    exchanged[pure] = rng.permutation(y[first][pure])
    # Sorting by group, then at random, lines up a shuffled copy of each group with the group itself.
    ordered, shuffled = np.lexsort((np.arange(len(y)), unit)), np.lexsort((rng.random(len(y)), unit))
    within = np.empty_like(y)
    within[ordered] = y[shuffled]
    return np.where(pure[unit], exchanged[unit], within)
