"""What a shift buys of each concept at most, and what it costs at least, share by share: said before anyone steers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from entangle.composition.comparing.comparison import Comparison
from entangle.composition.comparing.intervals import crossed_mean
from entangle.metrics.statistics import Estimate

Array = NDArray[np.float64]
CHOSEN = -1
"""Stands for the layer that other texts chose, in the place of a layer's number."""


def foretold_by_share(comparison: Comparison) -> pd.DataFrame:
    """The limit and the price of every concept at each share, for other seeds and other texts.

    Args:
        comparison: Of models that were measured with `forecast = true`; empty where one was not.

    Returns:
        One row for each share, concept and layer, with layer -1 for that which each model's other texts chose: `limit`,
        the contrast in nats per token that a constant shift of the residual stream buys at most, per square root of
        twice its price (see `entangle.forecast.limit`); `price`, the nats per token of language that the forecast's
        unit of contrast then costs, infinite where the limit may be 0; `against_first`, the change of the limit from
        the smallest share, paired; `seeds`, the limit of each seed's model; and at the chosen layers, with Student's
        interval over seeds: `reached`, what shifts buy that other texts chose, a lower bound of the limit that owes
        nothing to a formula, `reached_against_first`, its change, paired, and where it was foretold `iti`, what the
        heads of ITI buy per square root of twice their price; `layers`, those that were chosen.

    Example:
        >>> from pathlib import Path
        >>> models = {
        ...     (share, 0): en.composition.TrainedModel(Path("."), share, 0, {}, measured={}) for share in (0.0, 0.1)
        ... }
        >>> comparison = en.composition.Comparison(models, {}, "rudeness")
        >>> en.composition.foretold_by_share(comparison).empty  # nothing was foretold of these
        True
    """
    first: dict[tuple[str, int], Array] = {}
    first_reached: dict[str, Array] = {}
    rows: list[dict[str, Any]] = []
    for share in comparison.shares:
        models = [measured.get("forecast") or {} for measured in comparison.at(share)]
        if not all(models):
            return pd.DataFrame()
        for concept in models[0]["concepts"]:
            forecasts = [model["concepts"][concept] for model in models]
            places = {layer: [each["folds"][i] for each in forecasts] for i, layer in enumerate(forecasts[0]["layers"])}
            for layer, folds in {CHOSEN: [each["chosen_folds"] for each in forecasts], **places}.items():
                values = np.array(folds)
                row: dict[str, Any] = {"share": share, "concept": concept, "layer": layer}
                limit = Estimate(*(max(0.0, float(end)) for end in crossed_mean(values)))
                row |= limit.columns("limit") | price_of(limit, models[0]["unit"]).columns("price")
                before = first.get((concept, layer))
                change = Estimate(0.0, 0.0, 0.0) if before is None else crossed_mean(values - before)
                first.setdefault((concept, layer), values)
                row |= change.columns("against_first")
                row |= {"seeds": values.mean(1).round(4).tolist(), "unit": models[0]["unit"]}
                if layer == CHOSEN:
                    row["layers"] = sorted({layer for each in forecasts for layer in each["chosen"]})
                    reached = np.array([each["chosen_reached"] for each in forecasts])
                    row |= _over_seeds(reached).columns("reached")
                    row |= _over_seeds(reached - first_reached.setdefault(concept, reached)).columns(
                        "reached_against_first"
                    )
                    row |= _by_iti([model["rows"] for model in models], concept)
                rows.append(row)
    return pd.DataFrame(rows)


def price_of(limit: Estimate, unit: float) -> Estimate:
    """What a unit of contrast costs at a limit, in nats per token; its interval is the limit's, mapped end by end."""
    low, value, high = (
        0.5 * (unit / gain) ** 2 if gain > 0 else math.inf for gain in (limit.high, limit.value, limit.low)
    )
    return Estimate(value, low, high)


def _by_iti(models: list[list[dict[str, Any]]], concept: str) -> dict[str, float]:
    """Contrast per square root of twice the price that ITI's heads buy, over seeds."""
    gains = [
        row["efficiency"] * row["limit"]
        for rows in models
        for row in rows
        if row["concept"] == concept and row["method"] == "ITI" and row["efficiency"] is not None
    ]
    if len(gains) < len(models):
        return {}
    return _over_seeds(np.array(gains)).columns("iti")


def _over_seeds(values: Float[np.ndarray, " seed"]) -> Estimate:
    """The mean with Student's interval; one seed knows of no other."""
    mean, n = float(values.mean()), len(values)
    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Estimate(mean, mean - half, mean + half)
