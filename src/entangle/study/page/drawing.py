"""What pages are made of: matplotlib drawings as inline SVG, numbers as rows of text, templates to fill in."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Rows of text under column names.

    Example:
        >>> from entangle.study import Table
        >>> Table(["layer", "accuracy"], [["0", "0.81"]], caption="On held-out texts.").rows
        [['0', '0.81']]
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Drawing:
    """An SVG with a caption and the numbers it shows; `wide` ones scroll sideways on a phone.

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
        wide: Whether it scrolls sideways on a phone.

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

    def drawn(self, name: str) -> Drawing:
        """The panel as an SVG, whose identifiers begin with `name`."""
        svg = draw(self.plot, *self.arguments, size=self.size, name=name, **self.options)
        return Drawing(svg, self.caption, self.numbers, self.wide)

    def on(self, ax: Any = None) -> Any:
        """The panel on matplotlib Axes; new ones by default."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=self.size, layout="constrained")
        return self.plot(*self.arguments, ax=ax, **self.options)


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
    return environment.get_template(name)
