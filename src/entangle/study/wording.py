"""Numbers as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from entangle.metrics import Estimate


def number(value: object, digits: int = 3) -> str:
    """A number as a reader wants it: `.638` as 0.638, a missing one as a dash, a word as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def interval(value: object, low: object, high: object, digits: int = 3) -> str:
    """A value with its interval in brackets."""
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def spread(row: Mapping[Any, Any], name: str, digits: int = 3) -> str:
    """What the columns `name`, `name_low` and `name_high` of a row say; nothing where there is no such number."""
    value = row.get(name)
    if value is None or math.isnan(value):
        return ""
    return interval(*Estimate.of(row, name), digits)


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.3g} %"
