"""What a page shows of a study's numbers: each function takes one study's numbers and returns panels and tables.

Everything is drawn from the dictionary that becomes `report.json`, so that the page and the file cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from entangle import plots
from entangle.study.page.drawing import SIZE, Panel, Spot, Table, merged, spots_by_layer
from entangle.study.page.entangled import entanglement_panel, entanglement_panels
from entangle.study.page.foretold import limit_panel
from entangle.study.wording import Interval, interval, number, short, strength

Numbers = Mapping[str, Any]


def probe_panels(study: Numbers) -> dict[str, Panel]:
    """The heat map over heads, the distribution with its null, and the residual stream layer by layer."""
    panels = {}
    words = study["baselines"].get("bag_of_words", {}).get("accuracy")
    if "z" in study["probes"]:
        heads = study["probes"]["z"]
        panels["heads"] = _heads(study)
        panels["spread"] = Panel(
            plots.distribution,
            (np.array(heads["accuracy"], dtype=float), np.array(heads["null"], dtype=float)),
            {"baseline": words},
            SIZE,
            f"How accuracy is spread over the {np.isfinite(np.array(heads['accuracy'], dtype=float)).sum()} heads, "
            f"against the same probes on permuted labels ({heads['n_permutations']} permutations). "
            f"{heads['n_significant']} heads beat the null at 5 %, corrected for the number of heads.",
            title="Every head against shuffled labels",
        )
    if "resid_post" in study["probes"]:
        panels["layers"] = layers_panel([study])
    return panels


def _heads(study: Numbers) -> Panel:
    """The heat map, whose cells say their numbers."""
    heads, steered = study["probes"]["z"], study["intervention"]
    accuracy = np.array(heads["accuracy"], dtype=float)
    n_rows, n_columns = accuracy.shape
    table, wide = _cells(heads, steered), n_columns > 16
    taken = " Outlined: the heads that the intervention takes." if steered else ""
    return Panel(
        plots.heatmap,
        (accuracy,),
        {"rows": heads["layers"], "mark": [tuple(cell) for cell in steered["cells"]] if steered else []},
        (2 * SIZE[0] if wide else SIZE[0], min(max(SIZE[1], 0.8 + 0.22 * n_rows), 8.0)),
        f"Held-out accuracy of a linear probe on the output z of every attention head, at the last token.{taken}",
        table,
        wide,
        f"Which heads read {study['concept']}",
        f"Heat map of {n_rows} layers by {n_columns} heads. Held-out accuracy goes from "
        f"{_extreme(heads, np.nanargmin)} to {_extreme(heads, np.nanargmax)}, with a median of "
        f"{number(float(np.nanmedian(accuracy)))}; "
        f"{heads['n_significant']} heads beat shuffled labels.{taken}",
        [
            Spot(_lines(table, index), column, row, (1, 1), index)
            for index, (row, column) in enumerate(np.ndindex(accuracy.shape))
            if np.isfinite(accuracy[row, column])
        ],
    )


def _extreme(heads: Numbers, which: Any) -> str:
    accuracy = np.array(heads["accuracy"], dtype=float)
    row, column = np.unravel_index(which(accuracy), accuracy.shape)
    return f"{number(float(accuracy[row, column]))} (layer {heads['layers'][row]}, head {column})"


def _lines(table: Table, index: int) -> list[str]:
    """One row of a table in words, a line per cell."""
    return [
        f"{column.removesuffix(' [95 %]')}: {cell}"
        for column, cell in zip(table.columns, table.rows[index], strict=True)
        if cell
    ]


def layers_panel(studies: Sequence[Numbers]) -> Panel:
    """The probe on the residual stream over the layers, a line per model, over the null of the first."""
    streams = {study["label"]: study["probes"]["resid_post"] for study in studies}
    alone = len(studies) == 1
    first, *_ = streams.values()
    series = {
        "probe on resid_post" if alone else short(label): tuple(np.array(stream[key], dtype=float) for key in _ENDS)
        for label, stream in streams.items()
    }
    null = np.nanquantile(np.array(first["null"], dtype=float), (0.025, 0.975), axis=0)
    words = studies[0]["baselines"].get("bag_of_words", {}).get("accuracy")
    best = [
        f"{label}: best after layer {stream['best']['layer']}, {_accuracy(stream['best'])}"
        for label, stream in streams.items()
    ]
    return Panel(
        plots.by_layer,
        (first["layers"], series),
        {"band": tuple(null), "baseline": words},
        SIZE,
        "Held-out accuracy of a probe on the whole residual stream after each layer, with 95 % intervals.",
        _cells(first) if alone else merged({label: _cells(stream) for label, stream in streams.items()}),
        title=f"After which layer {studies[0]['concept']} can be read",
        says=f"Line over {len(first['layers'])} layers. {'; '.join(best)}. The null is between "
        f"{number(float(null[0].min()))} and {number(float(null[1].max()))}"
        + (f", a bag of words gets {number(words)}." if words else "."),
        spots=spots_by_layer(
            first["layers"],
            {label: stream["layers"] for label, stream in streams.items()},
            {
                label: [_accuracy({key: stream[key][i] for key in _ENDS}) for i in range(len(stream["layers"]))]
                for label, stream in streams.items()
            },
        ),
    )


def _accuracy(row: Numbers) -> Interval | str:
    return interval(*(row[key] for key in _ENDS))


def _cells(grid: Numbers, steered: Numbers | None = None) -> Table:
    """Accuracy and AUROC of every cell with intervals and corrected p-values; of heads also how far they are moved."""
    by_head = np.ndim(grid["accuracy"]) == 2
    sigmas = {}
    if by_head and steered:
        flat = np.ravel(np.array(steered["sigmas"], dtype=float))
        sigmas = {tuple(cell): float(sigma) for cell, sigma in zip(steered["cells"], flat, strict=False)}
    rows = []
    for index, accuracy in np.ndenumerate(np.array(grid["accuracy"], dtype=float)):
        pick = {key: float(np.array(grid[key], dtype=float)[index]) for key in _SHOWN}
        rows.append(
            [
                *[str(grid["layers"][index[0]]), *map(str, index[1:])],
                interval(accuracy, pick["accuracy_low"], pick["accuracy_high"]),
                interval(pick["auroc"], pick["auroc_low"], pick["auroc_high"]),
                number(pick["p"]),
                number(pick["selection_accuracy"]),
                *([f"by {number(sigmas[index])} × alpha" if index in sigmas else ""] if sigmas else []),
            ]
        )
    columns = ["layer", *(["head"] if by_head else []), "accuracy [95 %]", "AUROC [95 %]", "p, corrected", "chosen on"]
    return Table(
        [*columns, *(["heads moved"] if sigmas else [])], rows, "Chosen on: the accuracy on the selection rows."
    )


_ENDS = ("accuracy", "accuracy_low", "accuracy_high")
_SHOWN = ("accuracy_low", "accuracy_high", "auroc", "auroc_low", "auroc_high", "p", "selection_accuracy")


def tradeoff_panel(studies: Sequence[Numbers]) -> Panel | None:
    """Toxicity against cross-entropy, one curve per model and method, one point per strength."""
    curves = {}
    for study in studies:
        rows = [row for row in study["tradeoff"] or () if not row["error"]]
        methods = list(dict.fromkeys(row["method"] for row in rows))
        for method in methods:
            name = " ".join([*([study["label"]] if len(studies) > 1 else []), *([method] if len(methods) > 1 else [])])
            own = [row for row in rows if row["method"] == method]
            curves[name or study["label"]] = {key: [row[key] for row in own] for key in _CURVE}
    if not curves:
        return None
    concept = studies[0]["concept"]
    points = [(name, at) for name, curve in curves.items() for at in range(len(curve["alpha"]))]
    labels = {
        name: [
            [
                *([name] if len(curves) > 1 else []),
                f"alpha {strength(curve['alpha'][at])}",
                f"{concept}: {interval(*(curve[f'toxicity{end}'][at] for end in _ENDINGS))}",
                f"cross-entropy: {interval(*(curve[f'ce{end}'][at] for end in _ENDINGS))}",
            ]
            for at in range(len(curve["alpha"]))
        ]
        for name, curve in curves.items()
    }
    return Panel(
        plots.tradeoff,
        ({short(name): curve for name, curve in curves.items()},),
        {"ylabel": f"{short(concept)} of continuations (mean score)"},
        SIZE,
        "What steering wins against what it costs: a point per strength (alpha, written beside it), 95 % intervals. "
        f"Down is less {concept}, right is worse language.",
        Table(
            [*(["curve"] if len(curves) > 1 else []), "alpha", f"{concept} [95 %]", "cross-entropy [95 %]"],
            [
                [
                    *([name] if len(curves) > 1 else []),
                    strength(curves[name]["alpha"][at]),
                    *(interval(*(curves[name][f"{key}{end}"][at] for end in _ENDINGS)) for key in ("toxicity", "ce")),
                ]
                for name, at in points
            ],
        ),
        title=f"What it costs to steer {concept} out",
        says="Curves of the score of continuations against cross-entropy. "
        + " ".join(", ".join(labels[name][at]) + "." for name, at in points),
        spots=[
            Spot(labels[name][at], curves[name]["ce"][at], curves[name]["toxicity"][at], row=row)
            for row, (name, at) in enumerate(points)
        ],
    )


def panels(study: Numbers) -> dict[str, Panel]:
    """Every panel of one study, by name, in the order of the page."""
    price = tradeoff_panel([study])
    return {**probe_panels(study), **entanglement_panels(study), **({"tradeoff": price} if price else {})}


def first_panels(studies: Sequence[Numbers]) -> dict[str, Panel]:
    """The pictures that a page begins with: what one model shows, or what several show on the same axes.

    The heat map of heads (one per model), the residual stream over the layers, E over the layers, and the price; where
    no price was paid, what it was foretold to be at least.
    """
    panels: dict[str, Panel] = {}
    for index, study in enumerate(studies):
        if "z" in study["probes"]:
            heads = _heads(study)
            label = f": {study['label']}" if len(studies) > 1 else ""
            panels[f"s{index}-heads"] = replace(heads, title=heads.title + label)
    read = [study for study in studies if "resid_post" in study["probes"]]
    if read:
        panels["layers"] = layers_panel(read)
    crossed = [study for study in studies if study["entanglement"]]
    if crossed:
        panels["entanglement"] = entanglement_panel(crossed)
    price = tradeoff_panel([study for study in studies if study["tradeoff"]])
    if price:
        panels["tradeoff"] = price
    elif studies[0]["forecast"]:
        panels["forecast"] = limit_panel(studies[0]["forecast"]["rows"])
    return panels


_ENDINGS = ("", "_low", "_high")
_CURVE = ("alpha", "ce", "ce_low", "ce_high", "toxicity", "toxicity_low", "toxicity_high")


def drawn_together(panels: Sequence[Panel]) -> Any:
    """Panels on one matplotlib Figure, two in a row."""
    import matplotlib.pyplot as plt

    n_rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(n_rows, 2, figsize=(11, 3.6 * n_rows), layout="constrained", squeeze=False)
    for panel, ax in zip(panels, axes.flat, strict=False):
        panel.on(ax)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    return figure
