"""Numbers with an interval as a picture: a line from end to end and a dot at the value, as wide as a word."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from entangle.study.wording import Interval

WIDTH, HEIGHT, EDGE = 96, 12, 4


@dataclass(frozen=True)
class Scale:
    """What the bars of one column have in common, so that they compare by eye.

    Attributes:
        low: The number at the left edge.
        high: The number at the right edge.
        mark: A number to be read against, drawn as an upright line.
    """

    low: float
    high: float
    mark: float | None = None

    @classmethod
    def of(cls, cells: Iterable[object], mark: float | None = None) -> Scale | None:
        """The scale that holds every finite end; None where no cell has an interval.

        Args:
            cells: Those of a column.
            mark: A number to be read against; by default 0, where the scale holds it.
        """
        intervals = [cell for cell in cells if isinstance(cell, Interval)]
        ends = [end for cell in intervals for end in (cell.low, cell.value, cell.high) if math.isfinite(end)]
        if not ends:
            return None
        ends += [] if mark is None else [mark]
        low, high = min(ends), max(ends)
        if mark is None and low <= 0 <= high:
            mark = 0.0
        return cls(low, high, mark)

    def at(self, number: float) -> float:
        """Where a number lies across the bar; beyond the scale, at its edge."""
        share = 0.5 if self.high == self.low else (number - self.low) / (self.high - self.low)
        return round(EDGE + min(max(share, 0.0), 1.0) * (WIDTH - 2 * EDGE), 1)


def bar(cell: object, scale: Scale | None) -> Markup:
    """The picture of one cell: nothing where it has no interval. The words beside it say the same."""
    if scale is None or not isinstance(cell, Interval) or not math.isfinite(cell.value):
        return Markup("")
    low, value, high = (scale.at(number) for number in (cell.low, cell.value, cell.high))
    # An end that is not known runs out of the picture.
    low, high = low if math.isfinite(cell.low) else 0, high if math.isfinite(cell.high) else WIDTH
    middle = HEIGHT / 2
    mark = "" if scale.mark is None else _MARK.format(x=scale.at(scale.mark), height=HEIGHT)
    return Markup(
        f'<svg class="bar" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{mark}'
        f'<path d="M{low:g} {middle:g}H{high:g}" stroke="currentColor" stroke-width="2.5" opacity=".45"/>'
        f'<circle cx="{value:g}" cy="{middle:g}" r="3" fill="currentColor"/></svg>'
    )


_MARK = '<path d="M{x:g} 0V{height}" stroke="currentColor" stroke-dasharray="2 2" opacity=".6"/>'
