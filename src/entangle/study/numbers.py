"""Results of the library as plain numbers: what a page is drawn from, and what `report.json` holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entangle.concepts import EntanglementReport
from entangle.data import LabelledTexts
from entangle.evaluation import CONTROLS, Tradeoff, best_method
from entangle.interventions import ITI
from entangle.metrics import Estimate, paired_rate_interval, random_entanglement_quantile
from entangle.probes import BaselineResult, ProbeGrid

PROMPT_SAMPLES = 6
ALPHA_SAMPLES = 4


def plain(value: Any) -> Any:
    """The same with tensors and arrays as lists, numbers of six digits after the point, and NaN as None.

    Example:
        >>> from entangle.study import plain
        >>> plain({"x": torch.tensor([0.5, float("nan")]), "n": np.int64(3)})
        {'x': [0.5, None], 'n': 3}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Tensor | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return None if str(value) == "<NA>" else value


def data_numbers(name: str, source: str, data: LabelledTexts) -> dict[str, Any]:
    """What was read."""
    return {
        "name": name,
        "source": source,
        "n": len(data),
        "n_positive": int(data.labels.sum()),
        "label_names": data.label_names,
        "positive": data.positive,
        "rule": data.rule,
        "sha256": data.sha256,
    }


def grid_numbers(grid: ProbeGrid, layers: Sequence[int]) -> dict[str, Any]:
    """Scores of every cell on the reporting rows, their null, and the cell that the selection rows choose.

    Cells that could not be fitted have no numbers.
    """
    best = grid.top(1)[0]
    cells: dict[str, Any] = {
        **grid.interval.columns("accuracy"),
        **grid.auroc_interval.columns("auroc"),
        "p": grid.p_values,
        "null": grid.null,
        "selection_accuracy": grid.selection_accuracy,
        "C": grid.C,
    }
    cells = {name: values.masked_fill(~grid.converged, torch.nan) for name, values in cells.items()}
    chosen = {name: cells[name][best] for name in cells if name.startswith(("accuracy", "auroc", "p"))}
    where = {"layer": layers[best[0]], "head": best[1] if len(best) > 1 else None}
    return {
        **cells,
        "layers": list(layers),
        "null_ceiling": grid.null_ceiling(),
        "n_permutations": len(grid.null),
        "n_significant": int((cells["p"] <= 0.05).sum()),
        "best": {**where, **chosen},
    }


def baseline_numbers(words: BaselineResult | None, grid: ProbeGrid) -> dict[str, Any]:
    """What a probe must beat: the words alone, and always naming the class that is commoner in the fitting rows.

    Args:
        words: The bag of words; None where there is none.
        grid: The probes that are set against it, on the same rows.
    """
    labels, split = grid.labels, grid.split
    common = labels[split.fit].float().mean() > 0.5
    share = float((labels[split.report] == common).float().mean())
    constant: dict[str, Any] = {}
    for name, value in {"accuracy": share, "auroc": 0.5}.items():
        constant |= Estimate(value, math.nan, math.nan).columns(name)
    numbers: dict[str, Any] = {}
    if words is not None:
        hits, theirs = (
            ((scores > 0).long() == grid.report_labels).double()
            for scores in (grid.report_scores.flatten(1)[:, _flat(grid)], words.scores)
        )
        difference = paired_rate_interval(hits - theirs)
        numbers["bag_of_words"] = {
            **words.accuracy.columns("accuracy"),
            **words.auroc.columns("auroc"),
            **difference.columns("difference"),
        }
    return {**numbers, "commoner_class": constant}


def nearest_layer(reports: Mapping[int, EntanglementReport], layer: int) -> int:
    """The layer, or the nearest one to it that was measured."""
    return min(reports, key=lambda other: abs(other - layer))


def entanglement_numbers(reports: Mapping[int, EntanglementReport], best_layer: int) -> dict[str, Any] | None:
    """E of every concept and layer beside its nulls, and the cosines; None without any."""
    if not reports:
        return None
    first = next(iter(reports.values()))
    n, d = len(first.names), first.settings["n_dims"]
    null = {"null_low": 0.025, "null_high": 0.975}
    ends = {key: float(random_entanglement_quantile(level, n, d)) for key, level in null.items()}
    rows = [{**row, **ends} for report in reports.values() for row in report.to_frame().to_dict("records")]
    parts = zip(*(report.cosine for report in reports.values()), strict=True)  # values, low ends, high ends by layer
    cosines = Estimate(*(torch.stack([torch.as_tensor(matrix) for matrix in part]) for part in parts))
    return {
        "names": first.names,
        "layers": list(reports),
        "best_layer": nearest_layer(reports, best_layer),
        "settings": first.settings,
        "rows": rows,
        **cosines.columns("cosine"),
    }


def intervention_numbers(iti: ITI, layers: Sequence[int]) -> dict[str, Any]:
    """Which heads are moved, and how long a standard deviation is in each."""
    return {
        "method": "ITI",
        "direction": iti.direction,
        "toward": iti.toward,
        "heads": iti.heads,
        "sigmas": iti.sigmas,
        "cells": [[list(layers).index(layer), head] for layer, head in iti.heads],
    }


def tradeoff_numbers(sweep: Tradeoff, n_resamples: int, seed: int) -> list[dict[Any, Any]]:
    """One row per method and strength; what was removed is minus the change."""
    frame = sweep.to_frame(n_resamples=n_resamples, seed=seed)
    change = frame[["toxicity_change", "toxicity_change_low", "toxicity_change_high"]]
    removed = (-change).set_axis(["removed", "removed_high", "removed_low"], axis=1)
    return [dict(row) for row in frame.join(removed).to_dict("records")]


def best_numbers(sweep: Tradeoff, n_resamples: int, seed: int) -> dict[str, Any] | None:
    """The method that removed most at the highest price, on prompts that did not choose it; None without a choice."""
    best = best_method(sweep, leave_out=CONTROLS, n_resamples=n_resamples, seed=seed)
    if best is None:
        return None
    plain, steered = tradeoff_numbers(best.report, n_resamples, seed)
    beyond = {} if best.beyond_control is None else best.beyond_control.columns("beyond_control")
    return {
        "method": best.method,
        "among": best.among,
        "chosen_on": best.chosen_on,
        "n_prompts": len(best.report.prompts),
        "plain": plain,
        "steered": steered,
        "control": best.control,
        **beyond,
    }


def sample_numbers(sweep: Tradeoff, method: str | None, seed: int) -> list[dict[str, Any]]:
    """A few prompts drawn with the seed, not picked, with a continuation at up to four strengths of a method, by
    default the first."""
    scorer, shown = sweep.scorers[0], sweep.methods[:1] if method is None else [method]
    steered = [done for done in sweep.changed if done.method in shown and not done.error]
    conditions = [sweep.plain, *steered]
    spread = np.unique(np.linspace(0, len(conditions) - 1, ALPHA_SAMPLES).round().astype(int))
    drawn = np.random.default_rng(seed).permutation(len(sweep.prompts))[:PROMPT_SAMPLES]
    return [
        {
            "prompt": sweep.prompts[i],
            "sides": [
                {
                    "alpha": conditions[k].alpha,
                    "text": conditions[k].continuations[i][0],
                    "score": conditions[k].scores[scorer][i][0],
                }
                for k in spread
            ],
        }
        for i in drawn
    ]


def _flat(grid: ProbeGrid) -> int:
    """The cell that the selection rows choose, as a number along the flat grid."""
    return int(np.ravel_multi_index(grid.top(1)[0], grid.shape))
