"""What the page of a composition shows of what steering was foretold to cost."""

from __future__ import annotations

from typing import Any

import pandas as pd

from entangle import plots
from entangle.composition.comparing.comparison import Comparison
from entangle.composition.comparing.foretold import CHOSEN, foretold_by_share
from entangle.report.composition.figures import SIZE, columns_of, drawing_over_shares
from entangle.study.page import Drawing, Table, draw, spots_by_layer
from entangle.study.wording import interval, percent, spread

YLABEL = "most contrast per root nat"


def foretold(comparison: Comparison) -> tuple[list[Drawing], list[Table]]:
    """The limit and the price of every concept over the shares, and the measured concept's over the layers."""
    table = foretold_by_share(comparison)
    if table.empty:
        return [], []
    at_chosen = table[table["layer"] == CHOSEN]
    own = table[(table["concept"] == comparison.concept) & (table["layer"] != CHOSEN)]
    return [_by_concept(comparison, at_chosen), _by_layer(comparison, own)], [
        _numbers(at_chosen, float(table["unit"].iloc[0]))
    ]


def _by_concept(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    frames = dict(list(table.groupby("concept", sort=False)))
    return drawing_over_shares(
        comparison,
        {str(name): columns_of(frame, "limit") for name, frame in frames.items()},
        points={str(name): frame["seeds"].tolist() for name, frame in frames.items()},
        ylabel=YLABEL,
        name="foretold",
        title="The most that any shift can buy",
        caption="The most contrast, in nats per token, that a constant shift of the residual stream buys per square "
        "root of twice its price, at the layer where it buys most: chosen on half of a concept's texts, told by the "
        "other half, and averaged over both ways. Higher is cheaper. Intervals are for other seeds and other texts; a "
        "cross for each seed.",
    )


def _by_layer(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    layers = sorted(set(table["layer"]))
    by_share = {share: table[table["share"] == share].sort_values("layer") for share in comparison.shares}
    lines = {percent(share): columns_of(frame, "limit") for share, frame in by_share.items()}
    intervals = {
        name: [interval(float(value), float(low), float(high)) for value, low, high in zip(*columns, strict=True)]
        for name, columns in lines.items()
    }
    best = ", ".join(f"{name} {words[int(lines[name][0].argmax())]}" for name, words in intervals.items())
    shown = draw(
        plots.by_layer,
        layers,
        lines,
        ylabel=YLABEL,
        size=SIZE,
        name="foretold-by-layer",
        says=f"Lines over {len(layers)} layers, one per share. At the best layer of each: {best}.",
        spots=spots_by_layer(layers, dict.fromkeys(lines, layers), intervals),
    )
    return Drawing(shown, f"The same at every layer, of {comparison.concept}, one line per share.")


def _numbers(table: pd.DataFrame, unit: float) -> Table:
    rows = [_row(row) for row in table.to_dict("records")]
    columns = ["share", "concept", "layers", "limit [95 %]", "change from the first share [95 %]"]
    columns += [f"price of {unit:g} nats [95 %]", "reached [95 %]", "its change [95 %]", "by ITI's heads [95 %]"]
    caption = (
        "Layers: those that were chosen, over seeds. Price: nats per token of language for so many nats per token of "
        "contrast, at the limit. Reached: what a shift buys that other texts chose. By ITI's heads: what ITI buys per "
        "square root of twice its price. The last three have intervals over seeds alone."
    )
    return Table(columns, rows, caption)


def _row(row: dict[Any, Any]) -> list[str]:
    layers = ", ".join(map(str, row["layers"]))
    cells = [spread(row, "limit"), spread(row, "against_first"), spread(row, "price", 4)]
    cells += [spread(row, name) for name in ("reached", "reached_against_first", "iti")]
    return [percent(row["share"]), str(row["concept"]), layers, *cells]
