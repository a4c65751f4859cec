"""What the page of a composition says of attacks on its models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from entangle.composition.comparing.attacks import attacks, attacks_by_share
from entangle.composition.comparing.comparison import Comparison
from entangle.study.page import Drawing, Table
from entangle.study.wording import number, percent, spread

RATES = {
    "gcg": "attacked [95 %]",
    "random": "random suffix [95 %]",
    "none": "no suffix [95 %]",
    "exact": "said the target [95 %]",
}
CHANGES = {
    "prevented": "prevented by steering [95 %]",
    "against_first": "against the first share [95 %]",
    "loss_gcg": "target's nats after the search [95 %]",
    "harder": "nats that steering adds [95 %]",
}
BY_SHARE = (
    "Share of prompts after which the likeliest continuation scores above one half, for other seeds and other prompts; "
    "differences are paired. The suffix is searched for with the intervention at work. The target is something that a "
    "held-out text of the concept says. Where no attack succeeds, what steering does to the target's cross-entropy "
    "still tells."
)
BY_MODEL = "The same of each model; intervals are Wilson's, over its prompts; p by sign flips, two-sided, over prompts."


def red_teaming(comparison: Comparison) -> tuple[list[Drawing], list[Table]]:
    """How often attacks succeed, with and without ITI."""
    together = attacks_by_share(comparison).to_dict("records")
    if not together:
        return [], []
    pooled = [[percent(row["share"]), _method(row), *_spreads(row, RATES), *_spreads(row, CHANGES)] for row in together]
    rows = [
        [
            percent(row["share"]),
            str(row["seed"]),
            _method(row),
            str(row["n"]),
            *_spreads(row, RATES),
            number(row["p_random"], 4),
            number(row.get("p_unsteered"), 4),
            f"{number(row['loss_random'], 2)} to {number(row['loss_gcg'], 2)}",
        ]
        for row in attacks(comparison.models.values()).to_dict("records")
    ]
    each = ["share", "seed", "method", "prompts", *RATES.values(), "p, random", "p, unsteered", "target's nats"]
    return [], [
        Table(["share", "method", *RATES.values(), *CHANGES.values()], pooled, BY_SHARE),
        Table(each, rows, BY_MODEL),
    ]


def _method(row: Mapping[Any, Any]) -> str:
    return f"{row['method']} {row['alpha']:g}" if row["method"] else "none"


def _spreads(row: Mapping[Any, Any], names: Iterable[str]) -> list[str]:
    return [spread(row, name, 2) for name in names]
