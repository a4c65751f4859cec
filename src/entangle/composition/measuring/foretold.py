"""What a model's forecast leaves for a comparison: limits, each at a layer that other texts chose."""

from __future__ import annotations

from typing import Any

import numpy as np

from entangle.errors import EntangleError
from entangle.forecast import Contrast, Limit, ShiftMetric, limit_of
from entangle.study import Study

SITE = "resid_post"


def foretold_numbers(study: Study) -> dict[str, Any] | None:
    """The limits of a study's forecast, so that models of the same texts can be compared.

    A concept's texts are halved. Each half chooses the layer at which a shift buys most, and the other half tells how
    much that is; the two are averaged. So no limit is flattered by having been chosen for its size.

    Args:
        study: A study that was just measured: what its forecast rests on is not saved.

    Returns:
        `unit` and `rows` of the forecast, and under `concepts`, for each concept: `layers`; `limit`, the mean of the
        two halves at each layer; `reached`, what a shift that other texts chose buys there; `folds`, the limit's
        jackknife pseudo-values [layer][fold], whose mean it is but for the jackknife's correction; `chosen`, the two
        layers; `chosen_folds` and `chosen_reached`, the same there. None where nothing was foretold.

    Raises:
        EntangleError: The study was read from disk.
    """
    forecast = study.forecast
    if forecast is None:
        return None
    if forecast.metric is None:
        raise EntangleError(f"the forecast of {study.label} was read from disk, without its metric: measure it anew")
    saved = forecast.to_dict()
    metric, seed = forecast.metric.at(SITE), study.question.seed
    concepts = {name: limits_by_halves(metric, contrast, seed=seed) for name, contrast in forecast.contrasts.items()}
    return {"unit": saved["settings"]["unit"], "rows": saved["rows"], "concepts": concepts}


def limits_by_halves(metric: ShiftMetric, contrast: Contrast, *, seed: int = 0) -> dict[str, Any]:
    """The limits of one concept, as `foretold_numbers` gives them.

    Args:
        metric: The metric.
        contrast: The contrast, whose texts are halved.
        seed: Of the halves and of the jackknife's folds.
    """
    halves = contrast.at(metric.keys).halves(seed)
    limits_of_halves = [[limit_of(metric.only([key]), half, seed=seed) for key in metric.keys] for half in halves]
    chosen = [int(np.argmax([limit.value for limit in limits])) for limits in limits_of_halves]
    folds = np.array([[pseudo_values(limit) for limit in limits] for limits in limits_of_halves])  # [half, layer, fold]
    reached = np.array([[limit.reached for limit in limits] for limits in limits_of_halves])
    others = (1, chosen[0]), (0, chosen[1])
    layers = [layer for _, layer in metric.keys]
    return {
        "layers": layers,
        "limit": np.mean([[limit.value for limit in limits] for limits in limits_of_halves], axis=0).round(6).tolist(),
        "reached": reached.mean(0).round(6).tolist(),
        "folds": folds.mean(0).round(6).tolist(),
        "chosen": [layers[place] for place in chosen],
        "chosen_folds": np.mean([folds[at] for at in others], axis=0).round(6).tolist(),
        "chosen_reached": round(float(np.mean([reached[at] for at in others])), 6),
    }


def pseudo_values(limit: Limit) -> list[float]:
    """Tukey's: n times the value, less n - 1 times the value without one fold."""
    n = len(limit.left_out)
    return [n * limit.value - (n - 1) * without for without in limit.left_out]
