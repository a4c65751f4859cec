"""One trained model measured: where the concept is read, how entangled it is, what it costs to steer it out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from entangle.activations import Activations, collect
from entangle.composition.measuring.fitted import Fitted
from entangle.composition.recipe.measurement import MeasuredTexts, Measurement
from entangle.concepts import EntanglementReport, entanglement_report
from entangle.data import LabelledTexts
from entangle.directions import Directions
from entangle.evaluation import (
    AtStrengths,
    Prompt,
    Scorer,
    Tradeoff,
    degenerate_share,
    tradeoff,
)
from entangle.evaluation.price.conditions import Condition
from entangle.probes import ProbeGrid, bag_of_words, fit_probes, three_way
from entangle.probes.estimators import PROBES
from entangle.probes.judging.scores import correct
from entangle.storage.files import write_text

MEASURED = "measured.json"
TOLD = "prefix"


def measure(
    fitted: Fitted, scorer: Scorer, *, told: str = "", steered: bool = True, needs_telling: bool = True
) -> dict[str, Any]:
    """Measure a model, or take up what was measured of it before.

    Args:
        fitted: the model; the sweep's conditions and `measured.json` are written into its folder.
        scorer: scores continuations.
        told: a prefix that the model was trained to condition on: the plain model after it is measured.
        steered: measure the recipe's methods too, and not the plain model alone.
        needs_telling: where there is such a prefix, whether that is all that is measured.

    Returns:
        Plain numbers: `heads` (with `hits`, the share of heads that are right about each text) and `stream` (probes),
        `bag_of_words`, `entanglement`, `prompts` (where each set of prompts begins and ends), `tokens` of each
        document, and `conditions` with the scores of every prompt and the nats of every document.
    """
    measurement, texts = fitted.measurement, fitted.texts
    key = measurement_key(measurement, texts, told if needs_telling else f"also {told}", steered)
    path = fitted.folder / MEASURED
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["key"] == key:
            return found
    data, acts = texts.labelled, fitted.acts
    grids = {site: _probe(acts, site, data, measurement, fitted.progress) for site in ("z", "resid_post")}
    words = bag_of_words(data.texts, data.labels, grids["z"].split, seed=measurement.seed)
    methods: dict[str, Any] = {TOLD: Prompt(told)} if told else {}
    if steered and not (told and needs_telling):
        methods |= {name: fitted.methods[name] for name in measurement.methods}
    sweep = tradeoff(
        fitted.model,
        fitted.tokenizer,
        methods or {"nothing": AtStrengths([], alphas=())},
        alphas=list(measurement.alphas),
        prompts=[prompt for prompts in texts.prompts.values() for prompt in prompts],
        scorer=scorer,
        texts=texts.clean,
        samples=measurement.samples,
        max_new_tokens=measurement.max_new_tokens,
        seed=measurement.seed,
        save_to=fitted.folder / f"sweep-{key[:12]}",
        **fitted.options,
    )
    found = {
        "key": key,
        "heads": _grid_numbers(grids["z"], acts.layers("z")) | {"hits": _hits(grids["z"])},
        "stream": _grid_numbers(grids["resid_post"], acts.layers("resid_post")),
        "bag_of_words": words.accuracy.value,
        "entanglement": _entanglement(fitted, grids["resid_post"]),
        **_sweep_numbers(sweep, texts.prompts),
    }
    write_text(path, json.dumps(found))
    return found


def measurement_key(measurement: Measurement, texts: MeasuredTexts, told: str, steered: bool = True) -> str:
    """A hash of what is measured and on which texts."""
    digest = hashlib.sha256(repr((measurement, told) if steered else (measurement, told, "unsteered")).encode())
    data = {measurement.concept: texts.labelled, **texts.others}
    digest.update(json.dumps([*(d.sha256 for d in data.values()), dict(texts.prompts), texts.clean]).encode())
    return digest.hexdigest()


def _probe(acts: Activations, site: str, data: LabelledTexts, measurement: Measurement, progress: bool) -> ProbeGrid:
    return fit_probes(
        acts[site],
        data.labels,
        seed=measurement.seed,
        layers=acts.layers(site),
        n_permutations=measurement.permutations,
        n_resamples=measurement.resamples,
        progress=progress,
    )


def _grid_numbers(grid: ProbeGrid, layers: list[int]) -> dict[str, Any]:
    best = grid.top(1)[0]
    ends = {"low": grid.interval.low, "high": grid.interval.high}
    return {
        "layers": layers,
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


def _entanglement(fitted: Fitted, stream: ProbeGrid) -> dict[str, Any] | None:
    """E of every concept in the residual stream after the layer where the measured one is read best."""
    measurement, texts, acts = fitted.measurement, fitted.texts, fitted.acts
    if not texts.others:
        return None
    index = int(stream.top(1)[0][0])
    layer = acts.layers("resid_post")[index]
    options: dict[str, Any] = {"sites": ["resid_post"], "layers": [layer], "tokens": "last", **fitted.options}
    samples = {measurement.concept: _fitting_rows(acts["resid_post"][:, index], texts.labelled, measurement.seed)}
    for name, data in texts.others.items():
        other = collect(fitted.model, fitted.tokenizer, data.texts, **options)
        samples[name] = _fitting_rows(other["resid_post"][:, 0], data, measurement.seed)
    normals = [PROBES[measurement.direction]().fit(x, y).coef_[0] for x, y in samples.values()]
    directions = Directions(
        torch.as_tensor(np.stack(normals)), tuple(samples), "resid_post", layer, estimator=measurement.direction
    )
    report: EntanglementReport = entanglement_report(
        directions,
        samples,
        n_resamples=measurement.resamples,
        n_permutations=measurement.permutations,
        seed=measurement.seed,
    )
    rows = json.loads(report.to_frame().to_json(orient="records"))
    return {"layer": layer, "names": list(samples), "rows": rows}


def _fitting_rows(x: torch.Tensor, data: LabelledTexts, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    fit = three_way(data.labels, seed=seed).fit
    return x[fit].float(), torch.from_numpy(data.labels)[fit]


def _sweep_numbers(sweep: Tradeoff, prompts: Mapping[str, list[str]]) -> dict[str, Any]:
    ends = np.cumsum([0, *map(len, prompts.values())]).tolist()
    shift = sweep.plain.shift
    return {
        "scorer": sweep.scorers[0],
        "prompts": {name: [ends[i], ends[i + 1]] for i, name in enumerate(prompts)},
        "tokens": [] if shift is None else shift.tokens.tolist(),
        "conditions": [_condition(condition, sweep.scorers[0]) for condition in (sweep.plain, *sweep.changed)],
    }


def _condition(condition: Condition, scorer: str) -> dict[str, Any]:
    """Scores a prompt and nats a document; none of either where the changed model broke."""
    scores: NDArray[np.float64] = condition.scored(scorer).mean(1) if not condition.error else np.array([])
    return {
        "method": condition.method,
        "alpha": condition.alpha,
        "scores": scores.round(6).tolist(),
        "nats": [] if condition.shift is None else condition.shift.nats.round(4).tolist(),
        "degenerate": degenerate_share([text for row in condition.continuations for text in row]),
        "error": condition.error,
    }
