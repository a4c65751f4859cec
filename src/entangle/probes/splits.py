"""Three-way splits: one part to fit on, one to select with, one to report on; no group has examples in two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from entangle.errors import EntangleError
from entangle.probes.inputs import encode_groups, encode_labels

PARTS = ("fit", "select", "report")


@dataclass(frozen=True)
class Split:
    """Which examples do what, as indices in increasing order.

    Attributes:
        fit: Train the probes.
        select: Choose among them: heads, layers, the strength of the penalty.
        report: Give the numbers that are shown. Nothing is ever chosen with these.
    """

    fit: Int[Tensor, " example"]
    select: Int[Tensor, " example"]
    report: Int[Tensor, " example"]

    def check(self, labels: Int[Tensor, " example"], groups: Int[Tensor, " example"] | None = None) -> None:
        """Refuse a split that leaks or cannot be used.

        Args:
            labels: Class numbers of all examples.
            groups: Group numbers of all examples.

        Raises:
            EntangleError: An index outside the data, an example or a group in two parts, or a part without every class.
        """
        n, n_classes = len(labels), int(labels.max()) + 1
        owner = torch.full((n,), -1)
        for number, name in enumerate(PARTS):
            part: Tensor = getattr(self, name)
            if len(part) and not (int(part.min()) >= 0 and int(part.max()) < n):
                raise EntangleError(
                    f"the {name} part of the split names example {int(part.max())} of {n}; split these examples"
                )
            if bool((owner[part] >= 0).any()) or len(set(part.tolist())) < len(part):
                raise EntangleError(f"the {name} part of the split repeats an example of this or another part")
            missing = set(range(n_classes)) - set(labels[part].tolist())
            if missing:
                raise EntangleError(
                    f"the {name} part of the split ({len(part)} examples) has none of class number {min(missing)}; "
                    "give more examples, larger fractions, or fewer classes"
                )
            owner[part] = number
        if groups is not None:
            used = owner >= 0
            pairs = torch.unique(torch.stack([groups[used], owner[used]]), dim=1)
            names, counts = torch.unique(pairs[0], return_counts=True)
            if bool((counts > 1).any()):
                raise EntangleError(
                    f"group number {int(names[counts > 1][0])} has examples in two parts of the split; keep it whole"
                )


def three_way(
    labels: npt.ArrayLike | Tensor | Sequence[Any],
    *,
    groups: npt.ArrayLike | Tensor | Sequence[Any] | None = None,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> Split:
    """Split examples into fit, select and report, each with the classes in proportion.

    Args:
        labels: One label per example, of any kind.
        groups: A group per example (author, document, template...): a group is never divided. Proportions then hold as
            nearly as whole groups allow.
        fractions: Shares of fit, select and report; they add up to 1.
        seed: Seed of the shuffle.

    Returns:
        The split; the same arguments give the same one.

    Raises:
        EntangleError: A class has too few examples, or all its examples too few groups, to be in every part.
    """
    codes, classes = encode_labels(labels)
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise EntangleError(f"fractions must be three positive shares that add up to 1, not {fractions}")
    units = encode_groups(groups, len(codes))
    rng = np.random.default_rng(seed)
    y = codes.numpy()
    owner = _by_class(y, fractions, rng) if units is None else _by_group(y, units.numpy(), fractions, rng)
    for number, name in enumerate(PARTS):
        for code, value in enumerate(classes):
            if not np.any((owner == number) & (y == code)):
                what = "examples" if units is None else "groups"
                raise EntangleError(
                    f"class {value!r} ({int((y == code).sum())} examples) has too few {what} for the {name} part; "
                    "give more, or larger fractions"
                )
    return Split(*(torch.from_numpy(np.flatnonzero(owner == number)) for number in range(3)))


def _by_class(
    y: npt.NDArray[np.int64], fractions: tuple[float, ...], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Cut each class, shuffled, at the fractions; at least one example a part where there are three."""
    owner = np.empty(len(y), np.int64)
    for code in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == code))
        cuts = np.round(np.cumsum(fractions)[:2] * len(members)).astype(int)
        if len(members) >= 3:
            cuts[0] = np.clip(cuts[0], 1, len(members) - 2)
            cuts[1] = np.clip(cuts[1], cuts[0] + 1, len(members) - 1)
        for number, part in enumerate(np.split(members, cuts)):
            owner[part] = number
    return owner


def _by_group(
    y: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], fractions: tuple[float, ...], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Give groups, largest first, to the part that is furthest below its share of the group's classes."""
    counts = np.zeros((groups.max() + 1, y.max() + 1))
    np.add.at(counts, (groups, y), 1)
    goal = np.outer(fractions, counts.sum(0))
    filled = np.zeros_like(goal)
    place = np.empty(len(counts), np.int64)
    shuffled = rng.permutation(len(counts))
    for group in shuffled[np.argsort(-counts[shuffled].sum(1), kind="stable")]:
        need = (goal - filled) / goal  # of each part and class
        place[group] = np.argmax(need @ (counts[group] / counts[group].sum()))
        filled[place[group]] += counts[group]
    return place[groups]
