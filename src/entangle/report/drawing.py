"""Figures and tables of a page: matplotlib drawings as inline SVG, numbers as rows of text."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Rows of text under column names."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Drawing:
    """An SVG with a caption and the numbers it shows; `wide` ones scroll sideways on a phone."""

    svg: Markup
    caption: str
    numbers: Table | None = None
    wide: bool = False


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
    return interval(value, row[f"{name}_low"], row[f"{name}_high"], digits)


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.3g} %"


def draw(plot: Callable[..., Any], *arguments: Any, size: tuple[float, float], name: str, **options: Any) -> Markup:
    """Call a function of `plots` on new axes and return the SVG.

    Args:
        plot: A function of `entangle.plots`.
        arguments: Its arrays.
        size: Width and height in inches.
        name: Unique on the page: it keeps the identifiers inside one SVG from meeting those of another.
        options: The function's other arguments.

    Returns:
        An `<svg>` element that scales with the page. The same input gives the same bytes.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    with mpl.rc_context({"svg.hashsalt": name, "font.size": 9, "axes.linewidth": 0.7}):
        plot(*arguments, ax=figure.subplots(), **options)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    # Glyphs and clip paths are found by identifiers that must be this drawing's own.
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', svg, count=1)
    return Markup(svg)
