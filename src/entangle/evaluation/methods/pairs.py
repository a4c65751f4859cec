"""Differences of paired texts: how rows are paired, their leading component, and how far they agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entangle.errors import EntangleError


def paired_rows(
    target: Bool[Tensor, " example"], names: Sequence[Any] | None = None, *, seed: int = 0
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Rows of the target class and of the other one, in pairs.

    Args:
        target: Which rows are of the class that is steered to.
        names: A name per row: rows of one name are paired, the first of either class, the second, and so on; those
            without a partner are left out. Without names, rows are paired at random, as many as the smaller class has.
        seed: Of random pairs.

    Returns:
        The rows on the target's side, and those on the other, pair by pair.

    Raises:
        EntangleError: No pair can be made.

    Example:
        >>> en.evaluation.paired_rows(torch.tensor([True, False, True, False]), ["a", "b", "b", "a"])
        (tensor([0, 2]), tensor([3, 1]))
    """
    sides = [torch.nonzero(side)[:, 0].tolist() for side in (target, ~target)]
    if names is None:
        generator = torch.Generator().manual_seed(seed)
        shuffled = [[side[i] for i in torch.randperm(len(side), generator=generator).tolist()] for side in sides]
        pairs = list(zip(*shuffled, strict=False))
    else:
        names = list(names)  # by position, whatever the index of a pandas column says
        if len(names) != len(target):
            raise EntangleError(f"pairs need a name for each row; got {len(names)} names for {len(target)} rows")
        waiting: dict[Any, list[int]] = {}
        for row in sides[1]:
            waiting.setdefault(names[row], []).append(row)
        pairs = [(row, waiting[names[row]].pop(0)) for row in sides[0] if waiting.get(names[row])]
    if not pairs:
        raise EntangleError("no row of one class has a partner in the other: give names that pairs share, or none")
    one, other = (torch.tensor(side) for side in zip(*pairs, strict=True))
    return one, other


def leading_component(differences: Float[Tensor, "pair d"], *, centred: bool = False) -> Float[Tensor, " d"]:
    """The direction along which differences of pairs are largest, in mean square; signed by their mean.

    Uncentred it is the reading direction of linear artificial tomography (Zou et al. 2023, arXiv 2310.01405), whose
    pairs stand in random order, so that their mean is zero and the component includes the difference of means. Centred,
    as some libraries take it, it is where pairs differ from one another, and may miss what all share.

    Args:
        differences: Target minus other, a row per pair; two or more.
        centred: Take the mean difference off first.

    Returns:
        A unit vector.

    Raises:
        EntangleError: Fewer than two pairs, or no difference between them.

    Example:
        >>> along = torch.tensor([[4.0, 1.0], [4.0, -1.0]])
        >>> en.evaluation.leading_component(along), en.evaluation.leading_component(along, centred=True).abs()
        (tensor([1., 0.]), tensor([0., 1.]))
    """
    if differences.ndim != 2 or len(differences) < 2:
        raise EntangleError(f"a component needs two pairs or more, [pair, d]; got {list(differences.shape)}: give more")
    x = differences.double()
    mean = x.mean(0)
    moved = x - mean if centred else x
    values, vectors = torch.linalg.eigh(moved.T @ moved)
    if not values[-1] > 0:
        raise EntangleError("the pairs do not differ, so no component leads: check the pairs and the site")
    leading = vectors[:, -1]
    # Of a centred component the mean difference may be at a right angle to it: then either sign is as good.
    signed: Tensor = leading if leading @ mean >= 0 else -leading
    return signed.to(differences)


def agreement(differences: Float[Tensor, "pair d"], direction: Float[Tensor, " d"]) -> Float[np.ndarray, " pair"]:
    """The cosine of each pair's difference with a direction: how far the training texts agree on it.

    Of pairs without a difference it is 0.

    Example:
        >>> differences = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
        >>> en.evaluation.agreement(differences, torch.tensor([1.0, 0.0]))
        array([1., 0.])
    """
    x, v = differences.double(), direction.double()
    cosines = (x @ v) / (x.norm(dim=1) * v.norm()).clamp_min(torch.finfo(torch.float64).tiny)
    return cosines.numpy()  # type: ignore[no-any-return]
