"""One trained model measured: its study, and the numbers of it that models are compared by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from entangle.composition.measuring.fitted import STUDY, Fitted
from entangle.composition.measuring.foretold import foretold_numbers
from entangle.composition.recipe.measurement import Measurement
from entangle.errors import EntangleError
from entangle.evaluation import Prompt, Scorer, Tradeoff, degenerate_share
from entangle.evaluation.price.conditions import Condition
from entangle.evaluation.scoring.scorers import scorer_key
from entangle.probes import ProbeGrid
from entangle.probes.judging.scores import correct
from entangle.storage.digest import digest, folder_digest
from entangle.storage.sealed import read_sealed, write_sealed
from entangle.study import Study, StudyTexts
from entangle.study.measure import run

MEASURED = "measured.json"
TOLD = "prefix"


def measure(
    fitted: Fitted, scorer: Scorer, *, told: str = "", steered: bool = True, needs_telling: bool = True
) -> dict[str, Any]:
    """Measure a model, or take up what was measured of it before.

    Args:
        fitted: The model; its study, the sweep's conditions and `measured.json` are written into its folder.
        scorer: Scores continuations.
        told: A prefix that the model was trained to condition on: the plain model after it is measured.
        steered: Measure the recipe's methods too, and not the plain model alone.
        needs_telling: Where there is such a prefix, whether that is all that is measured.

    Returns:
        What `measured_numbers` makes of the study.

    Raises:
        EntangleError: Something that models are compared by could not be measured.
    """
    own = steered and not (told and needs_telling)
    key = digest(
        [measurement_key(fitted.measurement, fitted.texts, told, own), folder_digest(fitted.folder), scorer_key(scorer)]
    )
    path = fitted.folder / MEASURED
    if path.exists():
        numbers: dict[str, Any] = read_sealed(path, "what was measured", remedy="delete it, and it is measured again")
        if numbers["key"] == key:
            return numbers
    more = {TOLD: Prompt(told)} if told else {}
    study = run(fitted.studied, fitted.texts, scorer=scorer, more=more, own=own)
    if study.missing:
        what, why = next(iter(study.missing.items()))
        raise EntangleError(f"{fitted.folder.name} cannot be compared: {what} was not measured: {why}")
    study.save(fitted.folder / STUDY)
    numbers = {"key": key, **measured_numbers(study, fitted.texts.prompts)}
    write_sealed(path, numbers, indent=None)
    return numbers


def measurement_key(measurement: Measurement, texts: StudyTexts, told: str, own: bool) -> str:
    """A hash of what is measured and on which texts."""
    data = {measurement.concept: texts.labelled, **texts.concepts}
    read = [*(rows.sha256 for rows in data.values()), list(data), dict(texts.prompts), texts.clean]
    return digest([measurement.question(), read, told, own])


def measured_numbers(study: Study, prompts: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The numbers of a study that models are compared by.

    Args:
        study: The study, in which steering was measured.
        prompts: The sets of prompts by name, in the study's order.

    Returns:
        Plain numbers: `heads` (with `hits`, the share of heads that are right about each text) and `stream` (probes),
        `bag_of_words`, `entanglement`, `prompts` (where each set of prompts begins and ends), `tokens` of each
        document, and `conditions` with the scores of every prompt and the nats of every document; `forecast` (see
        `foretold_numbers`), where there is one.
    """
    if study.tradeoff is None or study.words is None:
        raise EntangleError(f"{study.label} was studied without steering or without words: give prompts and clean text")
    return {
        "heads": _grid_numbers(study.probes["z"]) | {"hits": _hits(study.probes["z"])},
        "stream": _grid_numbers(study.probes["resid_post"]),
        "bag_of_words": study.words.accuracy.value,
        "entanglement": _entanglement(study),
        "forecast": foretold_numbers(study),
        **_sweep_numbers(study.tradeoff, prompts),
    }


def _grid_numbers(grid: ProbeGrid) -> dict[str, Any]:
    best = grid.top(1)[0]
    ends = {"low": grid.interval.low, "high": grid.interval.high}
    return {
        "layers": [int(layer) for layer in grid.layers or ()],
        "accuracy": grid.accuracy.tolist(),
        "auroc": grid.auroc.tolist(),
        "null_ceiling": grid.null_ceiling() if len(grid.null) else None,
        "best": list(best),
        "best_accuracy": float(grid.accuracy[best]),
        **{f"best_accuracy_{end}": float(torch.as_tensor(values)[best]) for end, values in ends.items()},
    }


def _hits(grid: ProbeGrid) -> list[float]:
    """The share of the cells that are right about each text of the report part."""
    right = correct(grid.report_scores, grid.report_labels, grid.n_classes).double()
    hits: list[float] = right.flatten(1).mean(1).tolist()
    return hits


def _entanglement(study: Study) -> dict[str, Any] | None:
    """E of every concept in the residual stream after the layer where the measured one is read best."""
    report = study.entanglement.get(study.best_layer)
    if report is None:
        return None
    rows = json.loads(report.to_frame().to_json(orient="records"))
    return {"layer": study.best_layer, "names": list(report.names), "rows": rows}


def _sweep_numbers(sweep: Tradeoff, prompts: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    ends = np.cumsum([0, *map(len, prompts.values())]).tolist()
    shift = sweep.plain.shift
    return {
        "scorer": sweep.scorers[0],
        "prompts": {name: [ends[i], ends[i + 1]] for i, name in enumerate(prompts)},
        "tokens": [] if shift is None else shift.tokens.tolist(),
        "conditions": [_condition(condition, sweep.scorers[0]) for condition in (sweep.plain, *sweep.changed)],
    }


def _condition(condition: Condition, scorer: str) -> dict[str, Any]:
    """Scores per prompt and nats per document; none of either where the changed model broke."""
    scores: NDArray[np.float64] = condition.scored(scorer).mean(1) if not condition.error else np.array([])
    return {
        "method": condition.method,
        "alpha": condition.alpha,
        "scores": scores.round(6).tolist(),
        "nats": [] if condition.shift is None else condition.shift.nats.round(4).tolist(),
        "degenerate": degenerate_share([text for row in condition.continuations for text in row]),
        "error": condition.error,
    }
