"""What a page shows of entanglement: E over the layers, cosines, and each E beside its percentile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entangle import plots
from entangle.study.page.drawing import SIZE, Panel, Spot, Table, merged, spots_by_layer
from entangle.study.wording import interval, number, short

Numbers = Mapping[str, Any]


def entanglement_panels(study: Numbers) -> dict[str, Panel]:
    """E over the layers for every concept, and the matrix of cosines after the layer where the concept reads best."""
    table = study["entanglement"]
    if not table:
        return {}
    names = table["names"]
    at = table["layers"].index(table["best_layer"])
    cosine, low, high = (np.array(table[key][at], dtype=float) for key in ("cosine", "cosine_low", "cosine_high"))
    pairs = [(i, j) for i, j in np.ndindex(cosine.shape) if i != j]
    matrix = Panel(
        plots.matrix,
        (cosine, [short(name) for name in names]),
        {},
        (max(2.1 + 0.5 * len(names), SIZE[0]), max(1.4 + 0.4 * len(names), SIZE[1])),
        f"Cosines between the concepts' directions after layer {table['best_layer']}, where {study['concept']} reads "
        "best.",
        title="Cosines between the concepts",
        says=f"Matrix of {len(names)} by {len(names)} cosines: "
        + "; ".join(f"{names[i]} and {names[j]} {number(float(cosine[i, j]), 2)}" for i, j in pairs if i < j)
        + ".",
        spots=[
            Spot(
                [
                    f"{names[i]} and {names[j]}",
                    f"cosine: {interval(float(cosine[i, j]), float(low[i, j]), float(high[i, j]))}",
                ],
                j,
                i,
                (1, 1),
            )
            for i, j in pairs
        ],
    )
    return {"entanglement": entanglement_panel([study]), "cosines": matrix}


def entanglement_panel(studies: Sequence[Numbers]) -> Panel:
    """E over the layers: of every concept in one model, or of the studied concept in each of several."""
    tables = {study["label"]: study["entanglement"] for study in studies}
    first, concept, alone = studies[0]["entanglement"], studies[0]["concept"], len(studies) == 1
    lines = (
        {name: [row for row in first["rows"] if row["concept"] == name] for name in first["names"]}
        if alone
        else {label: [row for row in table["rows"] if row["concept"] == concept] for label, table in tables.items()}
    )
    series = {
        short(name): tuple(np.array([row[key] for row in own], dtype=float) for key in ("entanglement", "low", "high"))
        for name, own in lines.items()
    }
    points = {
        name: [f"{_entanglement(row)}, nearest {row['partner']}, percentile {_percentile(row)}" for row in own]
        for name, own in lines.items()
    }
    best = {label: table["best_layer"] for label, table in tables.items()}
    rows = [
        (label, row)
        for label, table in tables.items()
        for row in table["rows"]
        if row["concept"] == concept and row["layer"] == best[label]
    ]
    return Panel(
        plots.by_layer,
        (first["layers"], series),
        {"ylabel": "E = max |cos| with another concept"},
        SIZE,
        f"Entanglement of {'each concept' if alone else concept + ' in each model'} in the residual stream, with 95 % "
        "intervals. Its size says little alone: point at a layer for the percentile among random directions of the "
        "activations' own covariance.",
        entanglement_table(first, every=True)
        if alone
        else merged({label: entanglement_table(table, every=True) for label, table in tables.items()}),
        title=f"How entangled {'the concepts are' if alone else concept + ' is'}",
        says="Lines over the layers. "
        + " ".join(
            f"In {label}, after layer {row['layer']}, E of {concept} is {_entanglement(row)}, "
            f"percentile {_percentile(row)}."
            for label, row in rows
        ),
        spots=spots_by_layer(
            first["layers"], {name: [row["layer"] for row in own] for name, own in lines.items()}, points
        ),
    )


def _entanglement(row: Numbers) -> str:
    return interval(row["entanglement"], row["low"], row["high"])


def _percentile(row: Numbers, key: str = "covariance_percentile") -> str:
    return "–" if row[key] is None else number(100 * row[key], 1)


def _without_massive(row: Numbers) -> str:
    """E with the massive coordinates set aside, and how many those are."""
    if not row.get("massive"):
        return "none"
    return f"{interval(row['set_aside'], row['set_aside_low'], row['set_aside_high'])}, {row['massive']} set aside"


def entanglement_table(table: Numbers, *, every: bool = False) -> Table:
    """A row per concept, at the layer where the reported concept reads best or at every one.

    The percentile leads; that among uniform random directions is folded away.
    """
    best = table["best_layer"]
    rows = [row for row in table["rows"] if every or row["layer"] == best]
    where = ["layer"] if every else []
    massive = any(row.get("massive") for row in rows)
    warning = (
        " Massive coordinates vary 8 times as much as the median one and hold a twentieth of all variance or more, so "
        "that they may carry every cosine."
    )
    return Table(
        [
            *where,
            *("concept", "E [95 %]", "percentile", "nearest"),
            *(["E without massive coordinates"] if massive else []),
            *("split-half", "variance share"),
        ],
        [
            [
                *([str(row["layer"])] if every else []),
                row["concept"],
                _entanglement(row),
                _percentile(row),
                row["partner"],
                *([_without_massive(row)] if massive else []),
                number(row["split_half"], 2),
                number(row["variance_share"], 4),
            ]
            for row in rows
        ],
        ("After every layer. " if every else f"After layer {best}. ")
        + "Percentile: of E among random directions with the covariance of each concept's own texts; 95 and more is "
        "entangled." + (warning if massive else ""),
        folded=Table(
            [*where, "concept", "E [95 %]", "percentile, uniform", "uniform directions, 95 %"],
            [
                [
                    *([str(row["layer"])] if every else []),
                    row["concept"],
                    _entanglement(row),
                    _percentile(row, "percentile"),
                    f"{number(row['null_low'])} – {number(row['null_high'])}",
                ]
                for row in rows
            ],
            "Uniform directions know nothing of where activations crowd, so almost anything is beyond them.",
        ),
        summary="against uniform random directions",
    )
