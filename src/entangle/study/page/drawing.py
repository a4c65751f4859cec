"""What pages are made of: matplotlib drawings as inline SVG, numbers as rows of text, templates to fill in."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from entangle.study.page.bars import Scale, bar
from entangle.study.page.meanings import MEANINGS, meaning_of
from entangle.study.wording import Interval

SIZE = (5.2, 3.4)
"""Width and height of a drawing in inches, of which two stand beside each other."""

INK = "#1b1f24"
"""What is drawn in this colour takes that of the text around it, so that drawings are readable on dark pages."""

LETTER, PADDING, STEP = 8, 24, 80  # pixels: a letter of a table, what stands around a cell, from one width to the next
NARROWEST, WIDEST = 2, 15  # of the widths that tables are sorted into


@dataclass(frozen=True)
class Table:
    """Rows of text under column names.

    Attributes:
        columns: The names.
        rows: A cell for each column; an `Interval` is drawn too.
        caption: What they are.
        name: Unique on the page, where rows are to be linked to: row 3 is `#name-3`.
        folded: What is folded away below it.
        summary: What is written over the fold.
        prose: Whether its cells are sentences.

    Example:
        >>> from entangle.study import Table
        >>> Table(["layer", "accuracy"], [["0", "0.81"]], caption="On held-out texts.").rows
        [['0', '0.81']]
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    name: str = ""
    folded: Table | None = None
    summary: str = ""
    prose: bool = False

    @property
    def width(self) -> int:
        """How many steps of `STEP` pixels it needs; on less its rows become cards."""
        cells = [max(map(_needs, [column, *column_cells])) for column, column_cells in self._by_column()]
        pixels = sum(LETTER * letters + PADDING for letters in cells)
        return min(max(math.ceil(pixels / STEP), NARROWEST), WIDEST)

    def drawn(self) -> list[list[tuple[str, Markup]]]:
        """Each cell with its picture, if it has one."""
        scales = [Scale.of(cells) for _, cells in self._by_column()]
        return [[(cell, bar(cell, scale)) for cell, scale in zip(row, scales, strict=True)] for row in self.rows]

    def _by_column(self) -> list[tuple[str, list[str]]]:
        return [(column, [row[index] for row in self.rows]) for index, column in enumerate(self.columns)]


def _needs(cell: str) -> int:
    """The letters that a cell cannot do without: those of its longest word, or its interval, which stays together."""
    words = str(cell).split(" [") if isinstance(cell, Interval) else str(cell).split()
    return min(max([len(word) for word in words] + [16] * (len(words) > 4), default=0), 18)


@dataclass(frozen=True)
class Spot:
    """A place in a drawing that says its numbers when a pointer is over it.

    Attributes:
        says: Its lines.
        x: The middle, in the drawing's numbers.
        y: Likewise; None for the whole height.
        size: Width and height, in the drawing's numbers; none for a point.
        row: The row of the drawing's numbers that it stands for.

    Example:
        >>> from entangle.study import Spot
        >>> Spot(["layer: 1", "head: 2"], x=2, y=1).says[0]
        'layer: 1'
    """

    says: Sequence[str]
    x: float
    y: float | None = None
    size: tuple[float, float] | None = None
    row: int | None = None


@dataclass(frozen=True)
class Drawing:
    """An SVG with a caption and the numbers it shows; `wide` ones take the whole width of the page.

    Example:
        >>> from entangle.study import Drawing
        >>> from markupsafe import Markup
        >>> Drawing(Markup("<svg></svg>"), "Nothing yet.").wide
        False
    """

    svg: Markup
    caption: str
    numbers: Table | None = None
    wide: bool = False
    title: str = ""


@dataclass(frozen=True)
class Panel:
    """A plot that is not drawn yet: on a page it becomes an SVG, in a notebook it goes on axes.

    Attributes:
        plot: A function of `entangle.plots`.
        arguments: Its arrays.
        options: Its other arguments.
        size: Width and height in inches.
        caption: What it shows.
        numbers: The numbers it shows.
        wide: Whether it takes the whole width of the page.
        title: What it is called.
        says: What someone is told who cannot see it.
        spots: The places that say their numbers.

    Example:
        >>> from entangle import plots
        >>> from entangle.study import Panel
        >>> panel = Panel(plots.heatmap, (np.eye(2),), {}, size=(3, 2), caption="Two heads of two layers.")
        >>> panel.drawn("heads").svg[:4]
        Markup('<svg')
        >>> panel.on().get_ylabel()
        'layer'
    """

    plot: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    size: tuple[float, float]
    caption: str
    numbers: Table | None = None
    wide: bool = False
    title: str = ""
    says: str = ""
    spots: Sequence[Spot] = ()

    def drawn(self, name: str) -> Drawing:
        """The panel as an SVG, whose identifiers begin with `name`."""
        svg = draw(
            self.plot,
            *self.arguments,
            size=self.size,
            name=name,
            says=self.says or self.caption,
            spots=self.spots,
            **self.options,
        )
        numbers = self.numbers and replace(self.numbers, name=name)
        return Drawing(svg, self.caption, numbers, self.wide, self.title)

    def on(self, ax: Any = None) -> Any:
        """The panel on matplotlib Axes; new ones by default."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=self.size, layout="constrained")
        return self.plot(*self.arguments, ax=ax, **self.options)


def spots_by_layer(
    layers: Sequence[int], own: Mapping[str, Sequence[int]], words: Mapping[str, Sequence[str]]
) -> list[Spot]:
    """A spot per layer, as high as the drawing: what every line says there.

    Example:
        >>> from entangle.study import spots_by_layer
        >>> words = {"rudeness": ["0.70 [0.60, 0.80]", "0.75 [0.65, 0.85]"]}
        >>> spots = spots_by_layer([0, 1], {"rudeness": [0, 1]}, words)
        >>> len(spots), spots[1].x
        (2, 1)
    """
    width = float(np.min(np.diff(layers), initial=1)) if len(layers) > 1 else 1.0
    return [
        Spot(
            [
                f"layer {layer}",
                *(f"{name}: {words[name][list(at).index(layer)]}" for name, at in own.items() if layer in at),
            ],
            layer,
            size=(width, 0),
        )
        for layer in layers
    ]


def merged(tables: Mapping[str, Table]) -> Table:
    """Tables of several models as one, the model in the first column."""
    first = next(iter(tables.values()))
    rows = [[label, *row] for label, table in tables.items() for row in table.rows]
    folds = {label: table.folded for label, table in tables.items() if table.folded}
    return replace(first, columns=["model", *first.columns], rows=rows, folded=merged(folds) if folds else None)


def draw(
    plot: Callable[..., Any],
    *arguments: Any,
    size: tuple[float, float],
    name: str,
    says: str,
    spots: Sequence[Spot] = (),
    **options: Any,
) -> Markup:
    """Call a function of `plots` on new axes and return the SVG.

    Args:
        plot: A function of `entangle.plots`.
        arguments: Its arrays.
        size: Width and height in inches.
        name: Unique on the page: it keeps the identifiers inside one SVG from meeting those of another.
        says: What someone is told who cannot see it.
        spots: The places that say their numbers: a second SVG that lies over the first.
        options: The function's other arguments.

    Returns:
        An `<svg>` element that scales with the page. The same input gives the same bytes.

    Example:
        >>> from entangle import plots
        >>> from entangle.study import draw
        >>> one, two = (draw(plots.heatmap, np.eye(2), size=(3, 2), name="heads") for _ in range(2))
        >>> one == two  # the same bytes for the same numbers
        True
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=72)
    FigureCanvasSVG(figure)
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    # Text stays text, to be read aloud and searched; what labels say is never taken for mathematics.
    style = {"svg.hashsalt": name, "svg.fonttype": "none", "text.parse_math": False, "font.size": 10}
    with mpl.rc_context({**style, "axes.linewidth": 0.7, **dict.fromkeys(inked, INK)}):
        ax = figure.subplots()
        plot(*arguments, ax=ax, **options)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    # Glyphs and clip paths are found by identifiers that must be this drawing's own.
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"(fill|stroke): " + INK, r"\1: currentColor", svg)
    shown = Markup('role="img" aria-label="{}"').format(says)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: shown, svg, count=1)
    return Markup(svg) + _overlay(ax, spots, name, size)


def _overlay(ax: Any, spots: Sequence[Spot], name: str, size: tuple[float, float]) -> Markup:
    """A transparent SVG with the spots; the numbers below the drawing tell a reader without a pointer the same."""
    if not spots:
        return Markup("")
    width, height = 72 * size[0], 72 * size[1]
    (_, floor), (_, ceiling) = ax.transAxes.transform([(0, 0), (1, 1)])
    shapes = []
    for spot in spots:
        says = Markup("<title>{}</title>").format("\n".join(spot.says))
        if spot.size is None:
            x, y = ax.transData.transform((spot.x, spot.y))
            shape = Markup(f'<circle cx="{x:.1f}" cy="{height - y:.1f}" r="8">') + says + Markup("</circle>")
        else:
            half = spot.size[0] / 2, spot.size[1] / 2
            y = 0 if spot.y is None else spot.y
            corners = [(spot.x - half[0], y - half[1]), (spot.x + half[0], y + half[1])]
            (left, bottom), (right, top) = ax.transData.transform(corners)
            bottom, top = (floor, ceiling) if spot.y is None else (min(bottom, top), max(bottom, top))
            place = f'x="{left:.1f}" y="{height - top:.1f}" width="{right - left:.1f}" height="{top - bottom:.1f}"'
            shape = Markup(f"<rect {place}>") + says + Markup("</rect>")
        linked = spot.row is not None
        shapes.append(
            Markup(f'<a href="#{name}-{spot.row}" tabindex="-1">') + shape + Markup("</a>") if linked else shape
        )
    opening = Markup(f'<svg class="spots" fill="transparent" viewBox="0 0 {width:g} {height:g}" aria-hidden="true">')
    return opening + Markup("").join(shapes) + Markup("</svg>")


@cache
def script() -> Markup:
    """What pages run, which is the same for all of them: see `page.js`. A page says all it has to say without."""
    return Markup("\n" + files("entangle.study.page").joinpath("page.js").read_text(encoding="utf-8"))


@cache
def policy() -> str:
    """What a browser is told to refuse: to fetch anything, and to run any script but `script()`."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    allowed = {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def template(name: str, room: str = "study/page") -> Template:
    """A page to be filled in; a value that is missing is an error.

    Args:
        name: Of the file.
        room: The folder below `entangle` that holds it; the parts that pages share are found too.

    Example:
        >>> from entangle.study import template
        >>> template("light.html.j2").name
        'light.html.j2'
    """
    folders = [PackageLoader("entangle", folder) for folder in dict.fromkeys((room, "study/page"))]
    environment = Environment(
        loader=ChoiceLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "meaning_of": meaning_of,
        "meanings": MEANINGS,
        "policy": policy(),
        "script": script(),
        "widths": range(NARROWEST, WIDEST + 1),
        "step": STEP,
    }
    return environment.get_template(name)
