"""From what a judge or a margin says to a probability, fitted on labelled texts that are not reported on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from entangle.errors import EntangleError

Kind: TypeAlias = Literal["platt", "isotonic"]
KINDS = ("platt", "isotonic")
CLOSEST = 1e-6  # to 0 and 1, where log-odds end


@dataclass(frozen=True)
class Calibration:
    """A map from what a scorer says to the share of texts of class 1 among those of which it says so.

    Args:
        kind: "platt": sigma(a logit(p) + b), `numbers` being (a, b); "isotonic": steps that never fall, between the
            scores `places` with the shares `numbers`.
        numbers: Of the map.
        places: Of the steps.
    """

    kind: Kind
    numbers: tuple[float, ...]
    places: tuple[float, ...] = ()

    @classmethod
    def fit(cls, kind: Kind, scores: Float[np.ndarray, " text"], labels: Int[np.ndarray, " text"]) -> Calibration:
        """Fit it on labelled texts.

        Raises:
            EntangleError: Another word for the kind.
        """
        if kind == "platt":
            return cls(kind, platt(_log_odds(scores), labels))
        if kind != "isotonic":
            raise EntangleError(f"calibration must be one of {', '.join(map(repr, KINDS))}; got {kind!r}")
        from sklearn.isotonic import IsotonicRegression

        steps = IsotonicRegression(y_min=0, y_max=1).fit(scores, labels)
        return cls(kind, tuple(map(float, steps.y_thresholds_)), tuple(map(float, steps.X_thresholds_)))

    def __call__(self, scores: Float[np.ndarray, " text"]) -> Float[np.ndarray, " text"]:
        """Scores as probabilities."""
        if self.kind == "isotonic":
            return np.asarray(np.interp(scores, self.places, self.numbers))
        slope, offset = self.numbers
        return np.asarray(special.expit(slope * _log_odds(scores) + offset))


def apart(
    texts: Sequence[Hashable], labels: Int[np.ndarray, " text"], held_out: float, *, seed: int, least: int
) -> tuple[Int[np.ndarray, " fitted"], Int[np.ndarray, " held"]]:
    """Rows to fit on and rows to report on, stratified, no text on both sides: copies of one stay together.

    Args:
        texts: What each row is known by.
        labels: 0 or 1 for each.
        held_out: Share of the texts that only report.
        seed: Of the split.
        least: Texts of the rarer class that either side must have.

    Raises:
        EntangleError: Fewer, or no share.
    """
    from sklearn.model_selection import train_test_split

    copies: dict[Hashable, list[int]] = {}
    for row, text in enumerate(texts):
        copies.setdefault(text, []).append(row)
    rows = list(copies.values())
    strata = labels[[own[0] for own in rows]]
    rarer = int(np.bincount(strata, minlength=2).min())
    if not 0 < held_out < 1 or rarer * min(held_out, 1 - held_out) < least:
        raise EntangleError(
            f"held_out={held_out} of {rarer} texts of the rarer class leaves too few to fit or to report on; give more "
            "texts or another share"
        )
    sides = train_test_split(np.arange(len(rows)), test_size=held_out, stratify=strata, random_state=seed)
    fit, rest = (np.array([row for text in side for row in rows[text]], dtype=np.int64) for side in sides)
    return fit, rest


def platt(margin: Float[np.ndarray, " text"], y: np.ndarray) -> tuple[float, float]:
    """Slope and offset of Platt's sigmoid, with his smoothed targets (Platt 1999, section 2.2)."""
    from scipy.optimize import minimize

    n1, n0 = y.sum(), (1 - y).sum()
    target = np.where(y == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))

    def loss(ab: np.ndarray) -> float:
        z = ab[0] * margin + ab[1]
        return float(np.sum(np.logaddexp(0, z) - target * z))

    slope, offset = minimize(loss, x0=np.array([1.0, 0.0]), method="BFGS").x
    return float(slope), float(offset)


def _log_odds(p: Float[np.ndarray, " text"]) -> Float[np.ndarray, " text"]:
    return np.asarray(special.logit(np.clip(p, CLOSEST, 1 - CLOSEST)))
