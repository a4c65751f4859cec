"""How often something occurs, counted by a scorer that errs: Rogan and Gladen's correction, with an interval.

A scorer flags a share t = p Se + (1 - p)(1 - Sp) of texts of which a share p has the concept, Se being its sensitivity
and Sp its specificity; so p = (t + Sp - 1) / (Se + Sp - 1) (Rogan & Gladen 1978). Se and Sp are themselves counted on
labelled texts, and their doubt belongs in the interval (Lang & Reiczigel 2014, who have a closed form for one
prevalence). Here every rate has the Beta distribution that its count leaves it (Jeffreys), several samples of a prompt
count for as many as they are worth, and all that is computed from the rates is computed from joint draws of them, so
that two prevalences by one scorer share its errors.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from scipy.stats import qmc

from entangle.errors import EntangleError
from entangle.metrics.intervals.estimate import Estimate, by_group, check_level, finite, is_one_of
from entangle.metrics.intervals.rates import effective_number, wilson_interval

Array = NDArray[np.float64]
POWER = 12  # 2^12 draws, quasi-random


class ErrorRates(NamedTuple):
    """How a scorer did on labelled texts that it was not fitted on.

    Args:
        hits: Texts with the concept that it flags.
        positives: Texts with the concept.
        rejections: Texts without it that it does not flag.
        negatives: Texts without it.

    Example:
        >>> errors = en.metrics.ErrorRates(hits=45, positives=50, rejections=80, negatives=100)
        >>> errors.sensitivity, errors.specificity
        (0.9, 0.8)
    """

    hits: int
    positives: int
    rejections: int
    negatives: int

    @classmethod
    def counted(cls, flags: ArrayLike, labels: ArrayLike) -> ErrorRates:
        """From flags and labels, 0 or 1 for each text."""
        x, y = finite(flags, "flags"), finite(labels, "labels")
        if x.shape != y.shape or not (is_one_of(x, 0, 1) and is_one_of(y, 0, 1)):
            raise EntangleError("error rates are counted on a flag and a label for each text, all of them 0 or 1")
        return cls(int((x * y).sum()), int(y.sum()), int(((1 - x) * (1 - y)).sum()), int((1 - y).sum()))

    @property
    def sensitivity(self) -> float:
        """Share of the texts with the concept that are flagged."""
        return self.hits / self.positives

    @property
    def specificity(self) -> float:
        """Share of the texts without it that are not."""
        return self.rejections / self.negatives

    def intervals(self, level: float = 0.95) -> tuple[Estimate, Estimate]:
        """Sensitivity and specificity with Wilson's intervals."""
        return (
            wilson_interval(self.hits, self.positives, level=level),
            wilson_interval(self.rejections, self.negatives, level=level),
        )


class Difference(NamedTuple):
    """One prevalence less another.

    Args:
        estimate: The difference with its interval.
        p_value: Two-sided, of no difference; from 4,096 draws, so at least .0005.

    Example:
        >>> errors = en.metrics.ErrorRates(hits=45, positives=50, rejections=95, negatives=100)
        >>> often, seldom = [1.0] * 60 + [0.0] * 40, [1.0] * 20 + [0.0] * 80
        >>> en.metrics.prevalence_difference(often, seldom, errors).p_value < 0.001
        True
    """

    estimate: Estimate
    p_value: float


def prevalence(
    flags: Float[torch.Tensor, " text"] | ArrayLike,
    errors: ErrorRates,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Estimate:
    """The share of texts that have a concept, from the texts that a scorer flags and the scorer's error rates.

    Args:
        flags: 0 or 1 for each text.
        errors: How often the scorer is wrong, counted on labelled texts.
        groups: A group for each text, such as the prompt that it continues.
        level: Coverage of the interval, in (0, 1).

    Returns:
        The share with its interval, both clipped to [0, 1]; see `unclipped_prevalence` for the formula's own value.
        Where all of the interval lies outside, fewer texts are flagged than there would be false alarms (or more than
        hits): the error rates are not those of these texts, nothing is known, and the interval is all of [0, 1].

    Raises:
        EntangleError: Flags other than 0 and 1, or a scorer no better than a coin (sensitivity + specificity <= 1).

    Example:
        >>> errors = en.metrics.ErrorRates(hits=45, positives=50, rejections=80, negatives=100)
        >>> en.metrics.prevalence([1.0] * 34 + [0.0] * 66, errors)  # .34 are flagged, and .2 of the others always are
        Estimate(value=0.200, low=0.029, high=0.364)
    """
    check_level(level)
    value = unclipped_prevalence(flags, errors)
    draws = _prevalences([_flagged(flags, groups, level)], [errors])[0]
    low, high = _ends(draws, level)
    x = finite(flags, "flags")
    low = 0.0 if not bool(x.any()) else low
    high = 1.0 if bool(x.all()) else high
    value = float(np.clip(value, 0, 1))
    if high < 0 or low > 1:
        return Estimate(value, 0.0, 1.0)
    low, high = np.clip([low, high], 0, 1)
    return Estimate(value, min(float(low), value), max(float(high), value))


def unclipped_prevalence(flags: Float[torch.Tensor, " text"] | ArrayLike, errors: ErrorRates) -> float:
    """Rogan and Gladen's formula as it stands, which may lie outside [0, 1] by chance.

    Raises:
        EntangleError: As `prevalence`.

    Example:
        >>> errors = en.metrics.ErrorRates(hits=45, positives=50, rejections=80, negatives=100)
        >>> round(en.metrics.unclipped_prevalence([1.0] * 13 + [0.0] * 87, errors), 3)  # fewer flags than false alarms
        -0.1
    """
    x = finite(flags, "flags")
    if not is_one_of(x, 0, 1):
        raise EntangleError("a prevalence is of flags that are 0 or 1; compare scores with a threshold first")
    check_useful(errors)
    return (float(x.mean()) + errors.specificity - 1) / (errors.sensitivity + errors.specificity - 1)


def prevalence_difference(
    first: Float[torch.Tensor, " text"] | ArrayLike,
    second: Float[torch.Tensor, " text"] | ArrayLike,
    errors: ErrorRates | tuple[ErrorRates, ErrorRates],
    *,
    groups: tuple[ArrayLike | None, ArrayLike | None] = (None, None),
    paired: bool = False,
    level: float = 0.95,
) -> Difference:
    """How much more often a concept occurs in one set of texts than in another, and whether that may be chance.

    With the same error rates on both sides, whether there is a difference does not depend on them, only how large it
    is; with error rates of their own, as where the scorer errs otherwise on generated text, it does.

    Args:
        first: Flags of one set.
        second: Flags of the other.
        errors: The scorer's error rates, the same for both sets or one for each.
        groups: The groups of each set's texts.
        paired: Whether a group of both sets is the same prompt, in two conditions: the group of one name, or without
            groups the k-th text.
        level: Coverage of the interval, in (0, 1).

    Returns:
        First minus second, unclipped so that estimate, interval and p-value agree, and the p-value.

    Raises:
        EntangleError: As `prevalence`, or paired sets of different groups.

    Example:
        >>> errors = en.metrics.ErrorRates(hits=45, positives=50, rejections=95, negatives=100)
        >>> often, seldom = [1.0] * 30 + [0.0] * 70, [1.0] * 20 + [0.0] * 80
        >>> en.metrics.prevalence_difference(often, seldom, errors).estimate
        Estimate(value=0.118, low=-0.023, high=0.262)
    """
    check_level(level)
    own = isinstance(errors[0], ErrorRates)
    both: list[ErrorRates] = list(errors) if own else [errors]  # type: ignore[arg-type, list-item]
    sides = [_flagged(flags, of, level) for flags, of in zip((first, second), groups, strict=True)]
    value = unclipped_prevalence(first, both[0]) - unclipped_prevalence(second, both[-1])
    if paired and groups[0] is not None and groups[1] is not None:
        _check_same(groups[0], groups[1])
    one, other = _prevalences(sides, both, correlation=_correlation(sides) if paired else 0.0)
    with np.errstate(invalid="ignore"):
        draws = one - other
    low, high = _ends(draws, level)
    below, above = float(np.mean(~(draws > 0))), float(np.mean(~(draws < 0)))
    return Difference(
        Estimate(value, max(-1.0, min(low, value)), min(1.0, max(high, value))),
        min(1.0, max(2 * min(below, above), 2 / len(draws))),
    )


def check_useful(errors: ErrorRates) -> None:
    """Refuse a scorer whose flags say nothing of the concept, and counts that are none."""
    if not (0 <= errors.hits <= errors.positives and 0 <= errors.rejections <= errors.negatives):
        raise EntangleError(
            f"error rates are counts, hits of all positives and rejections of all negatives; got {errors.hits} of "
            f"{errors.positives} and {errors.rejections} of {errors.negatives}"
        )
    if errors.positives < 1 or errors.negatives < 1:
        raise EntangleError(
            f"error rates need labelled texts with the concept and without it; got {errors.positives} and "
            f"{errors.negatives}: label some of both"
        )
    if errors.sensitivity + errors.specificity <= 1:
        raise EntangleError(
            f"a prevalence needs a scorer better than a coin, sensitivity + specificity above 1; got "
            f"{errors.sensitivity:.3g} + {errors.specificity:.3g}: use another scorer or threshold"
        )


def _check_same(one: ArrayLike, other: ArrayLike) -> None:
    """Refuse to pair groups of different names, which would be paired by their order."""
    names = [{str(name) for name in np.asarray(each).tolist()} for each in (one, other)]
    if names[0] != names[1]:
        raise EntangleError(
            f"paired sets need the same groups; got {len(names[0])} and {len(names[1])}, {len(names[0] ^ names[1])} of "
            f"them in one set alone, such as {min(names[0] ^ names[1])!r}: name each group after its prompt in both"
        )


class _Flagged(NamedTuple):
    """Flags by group: how many, of how many, and how many independent texts they are worth."""

    sums: Array
    sizes: Array
    worth: float


def _flagged(flags: ArrayLike, groups: ArrayLike | None, level: float) -> _Flagged:
    x = finite(flags, "flags")
    if groups is None:
        return _Flagged(x.numpy(), np.ones(len(x)), float(len(x)))
    sums, sizes = by_group(x, groups)
    worth = float(effective_number(sums[:, 0], sizes, level=level))
    return _Flagged(sums[:, 0].numpy(), sizes.numpy(), worth)


def _correlation(sides: list[_Flagged]) -> float:
    """Of the two sets' rates, from the groups that they share."""
    one, other = sides
    if one.sums.shape != other.sums.shape:
        raise EntangleError(
            f"paired sets need the same groups; got {len(one.sums)} and {len(other.sums)}: give both of them for the "
            "same prompts"
        )
    off = [side.sums - side.sizes * side.sums.sum() / side.sizes.sum() for side in sides]
    scale = float(np.sqrt((off[0] ** 2).sum() * (off[1] ** 2).sum()))
    return float(np.clip((off[0] * off[1]).sum() / scale, -0.99, 0.99)) if scale else 0.0


def _prevalences(sides: list[_Flagged], errors: list[ErrorRates], correlation: float = 0.0) -> list[Array]:
    """Joint draws of the prevalence of each side; NaN where the drawn scorer would be no better than a coin."""
    points = _points(6)
    normal = stats.norm.ppf(points[:, :2])
    normal[:, 1] = correlation * normal[:, 0] + np.sqrt(1 - correlation**2) * normal[:, 1]
    places = stats.norm.cdf(normal)
    rates = [
        _beta(float(side.sums.sum() / side.sizes.sum()) * side.worth, side.worth, places[:, k])
        for k, side in enumerate(sides)
    ]
    estimates = []
    for k, rate in enumerate(rates):
        own = errors[min(k, len(errors) - 1)]
        columns = points[:, 2:4] if len(errors) == 1 or k == 0 else points[:, 4:6]
        sensitivity = _beta(own.hits, own.positives, columns[:, 0])
        specificity = _beta(own.rejections, own.negatives, columns[:, 1])
        better = sensitivity + specificity - 1
        estimates.append(np.where(better > 0, (rate + specificity - 1) / np.where(better > 0, better, 1), np.nan))
    return estimates


def _beta(successes: float, n: float, places: Array) -> Array:
    """Quantiles of what a count leaves its rate (Jeffreys): Beta(k + 1/2, n - k + 1/2)."""
    return np.asarray(special.betaincinv(successes + 0.5, n - successes + 0.5, places))


@lru_cache
def _points(dimensions: int) -> Array:
    return np.asarray(qmc.Sobol(dimensions, seed=0).random_base2(POWER))


def _ends(draws: Array, level: float) -> tuple[float, float]:
    """Quantiles, draws that say nothing lying beyond both ends."""
    known, lost = np.sort(draws[~np.isnan(draws)]), int(np.isnan(draws).sum())
    padded = np.concatenate([np.full(lost, -np.inf), known, np.full(lost, np.inf)])
    tail = (1 - level) / 2 * len(draws)
    low, high = padded[int(np.floor(tail))], padded[len(padded) - 1 - int(np.floor(tail))]
    return float(low), float(high)
