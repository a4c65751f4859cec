"""Three-way splits: one part to fit on, one to select with, one to report on; no group has examples in two of them."""

from __future__ import annotations

import re
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
FRACTIONS = (0.6, 0.2, 0.2)
NAMES = {
    "fit": ("train", "training", "trn", "fit"),
    "select": ("valid", "validation", "val", "dev", "development", "eval", "evaluation", "select"),
    "report": ("test", "testing", "tst", "heldout", "holdout", "report"),
}
_FOLD = re.compile(r"(?:fold|split|part)?(\d+)")


@dataclass(frozen=True)
class Split:
    """Which examples do what, as indices in increasing order.

    Attributes:
        fit: Train the probes.
        select: Choose among them: heads, layers, the strength of the penalty.
        report: Give the numbers that are shown. Nothing is ever chosen with these.

    Example:
        >>> split = en.probes.Split(fit=torch.arange(4), select=torch.arange(4, 6), report=torch.arange(6, 8))
        >>> split.check(torch.arange(8) % 2)
        >>> split.check(torch.arange(8) // 6)
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: the fit part of the split (4 examples) has none of class number ...
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
    fractions: tuple[float, float, float] = FRACTIONS,
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

    Example:
        >>> split = en.probes.three_way(labels)
        >>> len(split.fit), len(split.select), len(split.report)
        (58, 18, 20)
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
                    f"class {str(value)!r} ({int((y == code).sum())} examples) has too few {what} for the {name} part; "
                    "give more, or larger fractions"
                )
    return Split(*(torch.from_numpy(np.flatnonzero(owner == number)) for number in range(3)))


def named_split(
    labels: npt.ArrayLike | Tensor | Sequence[Any], splits: Sequence[str] | None, *, seed: int = 0
) -> tuple[Split, str]:
    """The data's own splits as fit, select and report, and in words what was made of them.

    Names are read whatever their case: train and training are to fit on; valid, validation, val, dev and eval to select
    with; test and held-out to report on. What is missing is drawn from what is there: with training and one other
    split, that one is reported on and a quarter of the training examples select. Of numbered folds the last is reported
    on and the last but one selects. Other names are not used, and the words say so.

    Args:
        labels: One label per example, of any kind.
        splits: What the data call the split of each example; None where they have none.
        seed: Seed of what is drawn.

    Returns:
        The split, and a sentence; "" where the data have their own three parts, or none at all.

    Raises:
        EntangleError: A part without every class.

    Example:
        >>> split, note = en.probes.named_split([0, 1] * 4, ["train"] * 4 + ["valid"] * 2 + ["test"] * 2)
        >>> split.report, note
        (tensor([6, 7]), '')
    """
    codes, _ = encode_labels(labels)
    if splits is None or not any(splits):
        return three_way(codes, seed=seed), ""
    if len(splits) != len(codes):
        raise EntangleError(f"splits must name one for each of {len(codes)} examples; got {len(splits)}")
    parts = _parts_of(splits)
    names = {part: sorted({splits[i] for i in rows}) for part, rows in parts.items()}
    shown = {part: " and ".join(map(repr, each)) for part, each in names.items()}
    unknown = shown.get("", "")
    if unknown or set(parts) <= {"fit"} or "fit" not in parts:
        drawn = "examples were drawn at random to fit, select and report instead"
        every = ", ".join(repr(name or "no name") for name in sorted(set(splits)))
        one = "only one part" if len(parts) == 1 and not unknown else "not the names of training, validation and test"
        return three_way(codes, seed=seed), f"The data's own splits were not used ({every}: {one}); {drawn}."
    rows = {part: torch.tensor(sorted(each)) for part, each in parts.items()}
    note = ""
    if len(rows) == 2:
        (other,) = set(rows) - {"fit"}
        fit, select = _cut(codes, rows["fit"], seed)
        rows = {"fit": fit, "select": select, "report": rows[other]}
        note = f"The data name no third split: {shown[other]} is reported on, and a quarter of {shown['fit']} selects."
    elif any(_FOLD.fullmatch(_bare(name)) for name in splits):
        note = f"Of the data's folds, {shown['report']} is reported on and {shown['select']} selects."
    split = Split(**rows)
    split.check(codes)
    return split, note


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _parts_of(splits: Sequence[str]) -> dict[str, list[int]]:
    """The examples of each part, "" for those whose part is not known."""
    owner = {name: part for part, names in NAMES.items() for name in names}
    bare = {name: _bare(name) for name in set(splits)}
    folds = {name: int(match[1]) for name, key in bare.items() if (match := _FOLD.fullmatch(key))}
    if len(folds) == len(bare) > 1:
        order = sorted(folds, key=lambda name: folds[name])
        owner = {bare[name]: "fit" for name in order}
        owner[bare[order[-1]]] = "report"
        if len(order) > 2:
            owner[bare[order[-2]]] = "select"
    parts: dict[str, list[int]] = {}
    for i, name in enumerate(splits):
        parts.setdefault(owner.get(bare[name], ""), []).append(i)
    return parts


def _cut(codes: Tensor, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A quarter of some examples, drawn by class, apart from the rest."""
    owner = _by_class(codes[rows].numpy(), (0.75, 0.25), np.random.default_rng(seed))
    return rows[owner == 0], rows[owner == 1]


def _by_class(
    y: npt.NDArray[np.int64], fractions: tuple[float, ...], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Cut each class, shuffled, at the fractions; at least one example a part where there are three."""
    owner = np.empty(len(y), np.int64)
    for code in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == code))
        cuts = np.round(np.cumsum(fractions)[:-1] * len(members)).astype(int)
        if len(fractions) == len(members) == 2:
            cuts[0] = 1
        if len(members) >= 3 == len(fractions):
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
