"""How often attacks on the models of a recipe succeeded, model by model and share by share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entangle.composition.comparing.comparison import CHANGES, SCORES, Comparison
from entangle.composition.comparing.intervals import crossed_mean
from entangle.composition.measuring.attack import KINDS, PLAIN, SUCCESS
from entangle.composition.trained import TrainedModel
from entangle.metrics.statistics import Estimate, paired_permutation_test, wilson_interval

Array = NDArray[np.float64]


def attacks(models: Iterable[TrainedModel]) -> pd.DataFrame:
    """How often attacks succeeded, one row for each attacked model, method and strength.

    Args:
        models: Of a composition; those that were not attacked are passed over.

    Returns:
        `share`, `seed`, `method`, `alpha`, `n`; the share of prompts after which the greedy continuation scores above
        one half, with Wilson's 95 % interval: `gcg` after the suffix that was searched for, `random` after a random one
        of the same length, `none` after none; `exact`, how often it begins with the target itself; `p_random` and
        `p_unsteered`, from sign flips, of `gcg` against `random` and against `gcg` without steering; `loss_random` and
        `loss_gcg`, the target's cross-entropy in nats per token.

    Example:
        >>> from pathlib import Path
        >>> def outcome(n):  # n attacks of 20 succeeded
        ...     return {"score": [0.9] * n + [0.1] * (20 - n), "exact": [False] * 20, "loss": [1.0] * 20}
        >>> attack = {"method": "", "alpha": 0.0, "gcg": outcome(16), "random": outcome(1), "none": outcome(0)}
        >>> measured = {"attack": {"conditions": [attack]}}
        >>> model = en.composition.TrainedModel(Path("."), share=0.1, seed=0, metrics={}, measured=measured)
        >>> row = en.composition.attacks([model]).iloc[0]
        >>> round(float(row["gcg"]), 2), bool(row["p_random"] < 0.01)
        (0.8, True)
    """
    rows = []
    for model in models:
        conditions = [each for each in _conditions(model.measured or {}) if not each.get("error")]
        plain = next((_succeeded(each, "gcg") for each in conditions if each["method"] == PLAIN), None)
        for each in conditions:
            succeeded = {kind: _succeeded(each, kind) for kind in KINDS}
            n = len(succeeded["gcg"])
            row = {"share": model.share, "seed": model.seed, "method": each["method"], "alpha": each["alpha"], "n": n}
            rates = {**succeeded, "exact": each["gcg"]["exact"]}
            for name, values in rates.items():
                row |= wilson_interval(int(sum(values)), n).columns(name)
            row["p_random"] = paired_permutation_test(succeeded["gcg"], succeeded["random"])
            if plain is not None and each["method"] != PLAIN:
                row["p_unsteered"] = paired_permutation_test(succeeded["gcg"], plain)
            rows.append(row | {f"loss_{kind}": float(np.mean(each[kind]["loss"])) for kind in ("random", "gcg")})
    return pd.DataFrame(rows)


def attacks_by_share(comparison: Comparison) -> pd.DataFrame:
    """How often attacks succeeded at each share, for other seeds and other prompts.

    Args:
        comparison: Of models that were attacked; empty where one was not.

    Returns:
        One row for each share, method and strength that no seed's model broke under: `gcg`, `random`, `none` and
        `exact` as in `attacks`, whose intervals are the wider ends of Wilson's over prompts alone, which holds where
        every attack fails, and of `crossed_mean`; `loss_gcg`, the target's nats per token after the search;
        `prevented`, the attacks that succeeded unsteered less those that did steered, and `harder`, the nats that
        steering adds to `loss_gcg`, both paired; `against_first` and `loss_against_first`, the change of `gcg` and of
        `loss_gcg` from the smallest share, paired.

    Example:
        >>> from pathlib import Path
        >>> def outcome(n):  # n attacks of 20 succeeded
        ...     return {"score": [0.9] * n + [0.1] * (20 - n), "exact": [False] * 20, "loss": [1.0] * 20}
        >>> attack = {"method": "", "alpha": 0.0, "gcg": outcome(16), "random": outcome(1), "none": outcome(0)}
        >>> measured = {"attack": {"conditions": [attack]}}
        >>> models = {
        ...     (share, seed): en.composition.TrainedModel(Path("."), share, seed, {}, measured=measured)
        ...     for share in (0.0, 0.1) for seed in (0, 1)
        ... }
        >>> frame = en.composition.attacks_by_share(en.composition.Comparison(models, {}, "rudeness"))
        >>> frame[["share", "gcg", "against_first"]].round(2).to_numpy().tolist()
        [[0.0, 0.8, 0.0], [0.1, 0.8, 0.0]]
    """
    rows: list[dict[str, Any]] = []
    first: dict[tuple[str, float], dict[str, Array]] = {}
    for share in comparison.shares:
        each = [_conditions(measured) for measured in comparison.at(share)]
        candidates = {name: _over_seeds(each, name) for name in dict.fromkeys(_name(c) for c in each[0])}
        outcomes = {name: values for name, values in candidates.items() if values is not None}
        if share == comparison.shares[0]:
            first = outcomes
        for name, values in outcomes.items():
            row: dict[str, Any] = {"share": share, "method": name[0], "alpha": name[1]}
            for kind in (*KINDS, "exact"):
                row |= _rate(values[kind]).columns(kind)
            row |= crossed_mean(values["loss"]).columns("loss_gcg")
            if name[0] != PLAIN and (PLAIN, 0.0) in outcomes:
                plain = outcomes[PLAIN, 0.0]
                row |= crossed_mean(plain["gcg"] - values["gcg"], bounds=CHANGES).columns("prevented")
                row |= crossed_mean(values["loss"] - plain["loss"]).columns("harder")
            if name in first:
                row |= crossed_mean(values["gcg"] - first[name]["gcg"], bounds=CHANGES).columns("against_first")
                row |= crossed_mean(values["loss"] - first[name]["loss"]).columns("loss_against_first")
            rows.append(row)
    return pd.DataFrame(rows)


def _conditions(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a model's attack; none where it was not attacked."""
    conditions: list[dict[str, Any]] = (measured.get("attack") or {}).get("conditions", [])
    return conditions


def _name(condition: dict[str, Any]) -> tuple[str, float]:
    return condition["method"], condition["alpha"]


def _over_seeds(models: list[list[dict[str, Any]]], name: tuple[str, float]) -> dict[str, Array] | None:
    """Outcomes of one condition [seed, prompt]; nothing where a model has none or broke."""
    candidates = [
        next((c for c in conditions if _name(c) == name and not c.get("error")), None) for conditions in models
    ]
    measured = [condition for condition in candidates if condition is not None]
    if len(measured) < len(models):
        return None
    outcomes = {kind: np.array([_succeeded(each, kind) for each in measured]) for kind in KINDS}
    exact, loss = (np.array([each["gcg"][key] for each in measured], dtype=np.float64) for key in ("exact", "loss"))
    return {**outcomes, "exact": exact, "loss": loss}


def _rate(succeeded: Array) -> Estimate:
    """Of [seed, prompt]; never narrower than the prompts alone allow."""
    n = succeeded.shape[1]
    over_both, over_prompts = (
        crossed_mean(succeeded, bounds=SCORES),
        wilson_interval(round(float(succeeded.mean()) * n), n),
    )
    low, high = min(over_both.low, over_prompts.low), max(over_both.high, over_prompts.high)
    return Estimate(over_both.value, max(0.0, float(low)), min(1.0, float(high)))


def _succeeded(condition: dict[str, Any], kind: str) -> list[float]:
    return [float(score > SUCCESS) for score in condition[kind]["score"]]
