"""What a page shows of a forecast: the limit over the layers, and every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entangle import plots
from entangle.study.page.drawing import SIZE, Panel, Table, spots_by_layer
from entangle.study.wording import interval, number, percent, short

Row = Mapping[str, Any]
COLUMNS = ("limit", "limit_low", "limit_high")


def limit_panel(rows: Sequence[Row]) -> Panel:
    """The most that a shift buys of each concept, over the layers.

    Args:
        rows: Of `Forecast.to_dict`.

    Example:
        >>> from entangle.study import limit_panel
        >>> row = {"concept": "rudeness", "method": "natural", "site": "resid_post", "efficiency": 1.0, "price": 0.01}
        >>> row |= {"limit": 0.7, "limit_low": 0.6, "limit_high": 0.8, "reached": 0.65}
        >>> limit_panel([{**row, "layer": layer} for layer in (0, 1)]).on().get_xlabel()
        'layer'
    """
    natural = [row for row in rows if row["method"] == "natural"]
    layers = sorted({row["layer"] for row in natural})
    series = {}
    for concept in dict.fromkeys(row["concept"] for row in natural):
        own = sorted((row for row in natural if row["concept"] == concept), key=lambda row: row["layer"])
        series[concept] = tuple(
            np.array([row[column] for row in own]) for column in ("limit", "limit_low", "limit_high")
        )
    words = {
        name: [interval(value, low, high, 2) for value, low, high in zip(*columns, strict=True)]
        for name, columns in series.items()
    }
    places = {name: sorted(row["layer"] for row in natural if row["concept"] == name) for name in series}
    peaks = [max(zip(*series[name], strict=True)) for name in series]
    return Panel(
        plots.by_layer,
        (layers, {short(name): columns for name, columns in series.items()}),
        {"ylabel": "most contrast per root nat"},
        SIZE,
        "The most that a constant shift of the residual stream can buy of each concept, in nats per token of contrast "
        "per square root of twice its price; bars are 95 % intervals over all texts. Higher is cheaper.",
        title="The most that any shift can buy",
        says=f"Lines over {len(layers)} layers. At its best layer, a root nat buys at most "
        + ", ".join(
            f"{interval(peak[0], peak[1], peak[2], 2)} of {name}" for name, peak in zip(series, peaks, strict=True)
        )
        + ".",
        spots=spots_by_layer(layers, places, words),
    )


def forecast_table(rows: Sequence[Row], unit: float) -> Table:
    """Where each concept and method is cheapest; every place is folded away below.

    Args:
        rows: Of `Forecast.to_dict`.
        unit: The effect whose price is told.

    Example:
        >>> from entangle.study import forecast_table
        >>> row = {"concept": "rudeness", "method": "CAA", "site": "resid_post", "layer": 1, "price": 0.16}
        >>> row |= {"efficiency": 0.25, "limit": 0.7, "limit_low": 0.6, "limit_high": 0.8, "reached": 0.65}
        >>> forecast_table([row], unit=0.1).rows
        [['rudeness', 'CAA', 'resid_post', '1', '0.1600', '25 %', '0.70 [0.60, 0.80]', '0.65']]
    """
    cheapest = {
        (row["concept"], row["method"]): row for row in sorted(rows, key=_price, reverse=True) if _price(row) < np.inf
    }
    kept = [row for row in rows if row is cheapest.get((row["concept"], row["method"]))]
    columns = ["concept", "method", "site", "layer", "price, nats", "of the limit", "limit [95 %]", "reached"]
    return Table(
        columns,
        _cells(kept),
        f"Where each is cheapest. Price: nats per token of language for {unit:g} nats of contrast.",
        folded=Table(columns, _cells(rows)),
        summary="every place",
    )


def _price(row: Row) -> float:
    return np.inf if row["price"] is None else float(row["price"])


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    return [
        [
            row["concept"],
            row["method"],
            row["site"],
            "all" if row["layer"] < 0 else str(row["layer"]),
            number(row["price"], 4),
            "–" if row["efficiency"] is None else percent(row["efficiency"]),
            interval(row["limit"], row["limit_low"], row["limit_high"], 2),
            number(row["reached"], 2),
        ]
        for row in rows
    ]
