"""Numbers as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from entangle.metrics import Estimate


def number(value: object, digits: int = 3) -> str:
    """A number as a reader wants it: `.638` as 0.638, a missing one as a dash, a word as it is.

    Example:
        >>> from entangle.study import number
        >>> number(0.63849), number(12345), number(None)
        ('0.638', '12,345', '–')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def interval(value: object, low: object, high: object, digits: int = 3) -> str:
    """A value with its interval in brackets.

    Example:
        >>> from entangle.study import interval
        >>> interval(0.5, 0.25, 0.75, digits=2)
        '0.50 [0.25, 0.75]'
    """
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def spread(row: Mapping[Any, Any], name: str, digits: int = 3) -> str:
    """What the columns `name`, `name_low` and `name_high` of a row say; nothing where there is no such number.

    Example:
        >>> from entangle.study import spread
        >>> spread({"ce": 2.5, "ce_low": 2.25, "ce_high": 2.75}, "ce", digits=2)
        '2.50 [2.25, 2.75]'
    """
    value = row.get(name)
    if value is None or math.isnan(value):
        return ""
    return interval(*Estimate.of(row, name), digits)


def percent(share: float) -> str:
    """A share as a percentage.

    Example:
        >>> from entangle.study import percent
        >>> percent(0.125)
        '12.5 %'
    """
    return f"{100 * share:.3g} %"
