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


class Interval(str):
    """The words of a value with its interval, which keep the numbers: a page draws them beside the words.

    Attributes:
        value: The value.
        low: The lower end; minus infinity where there is none.
        high: The upper end; infinity where there is none.
    """

    value: float
    low: float
    high: float


def interval(value: object, low: object, high: object, digits: int = 3) -> str:
    """A value with its interval in brackets: an `Interval`, where there is a value.

    Example:
        >>> from entangle.study import interval
        >>> interval(0.5, 0.25, 0.75, digits=2)
        '0.50 [0.25, 0.75]'
    """
    words = f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"
    if not isinstance(value, int | float) or math.isnan(value):
        return words
    written = Interval(words)
    written.value, written.low, written.high = float(value), _end(low, -math.inf), _end(high, math.inf)
    return written


def _end(value: object, unbounded: float) -> float:
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else unbounded


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


def short(name: str, letters: int = 28) -> str:
    """A name for a drawing, which has no room for a long one."""
    return name if len(name) <= letters else name[: letters - 1] + "…"


def strength(alpha: float) -> str:
    """A strength for a sentence: one that was solved for a price has more digits than anybody reads.

    Example:
        >>> from entangle.study.wording import strength
        >>> strength(1.29437), strength(12.0), strength(2500.0)
        ('1.29', '12', '2500')
    """
    return f"{alpha:.3g}" if abs(alpha) < 1000 else f"{alpha:g}"


def percent(share: float) -> str:
    """A share as a percentage.

    Example:
        >>> from entangle.study import percent
        >>> percent(0.125)
        '12.5 %'
    """
    return f"{100 * share:.3g} %"
