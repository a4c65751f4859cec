"""What the page of a composition says of attacks on its models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entangle.composition.attack import attacks
from entangle.composition.comparison import Comparison
from entangle.report.drawing import Drawing, Table, interval, number

COLUMNS = {
    "gcg": "attacked [95 %]",
    "random": "random suffix [95 %]",
    "none": "no suffix [95 %]",
    "exact": "said the target [95 %]",
}
CAPTION = (
    "Share of prompts after which the likeliest continuation scores above one half; intervals are Wilson's, over the "
    "prompts of one model. The suffix is searched for with the intervention at work. The target is something that a "
    "held-out text of the concept says; p by sign flips, two-sided, over prompts."
)


def red_teaming(found: Comparison) -> tuple[list[Drawing], list[Table]]:
    """How often attacks succeed, with and without ITI."""
    rows = [
        [
            f"{100 * row['share']:.3g} %",
            str(row["seed"]),
            f"{row['method']} {row['alpha']:g}" if row["method"] else "none",
            str(row["n"]),
            *(_spread(row, name) for name in COLUMNS),
            number(row["p_random"], 4),
            number(row.get("p_unsteered"), 4),
            f"{number(row['loss_random'], 2)} to {number(row['loss_gcg'], 2)}",
        ]
        for row in attacks(found.models.values()).to_dict("records")
    ]
    columns = ["share", "seed", "method", "prompts", *COLUMNS.values(), "p, random", "p, unsteered", "target's nats"]
    return [], [Table(columns, rows, CAPTION)] if rows else []


def _spread(row: Mapping[Any, Any], name: str) -> str:
    return interval(row[name], row[f"{name}_low"], row[f"{name}_high"], 2)
