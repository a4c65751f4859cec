"""Drawing arrays: every function takes arrays, draws on one matplotlib Axes and returns it.

matplotlib is imported when something is drawn, never with `entangle`. Pass `ax=` to draw into a figure of your own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from entangle.errors import EntangleError

Axes = Any  # matplotlib.axes.Axes, which stays unimported until something is drawn
Array = npt.ArrayLike

# Okabe and Ito (2008): eight colours that remain apart for every common kind of colour vision.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"]
MARKERS = "os^DvPX*"  # so that no line is told by its colour alone
GREY = "#8A8F98"


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _numpy(values: Array) -> npt.NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def _quiet(ax: Axes, title: str, x: str = "", y: str = "") -> None:
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _write_cells(ax: Axes, mesh: Any, grid: npt.NDArray[np.float64]) -> None:
    """Write each cell's value in it, in whichever of black and white stands out."""
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            red, green, blue, _ = mesh.cmap(mesh.norm(value))
            colour = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
            ax.text(column, row, f"{value:.2f}".replace("0.", "."), ha="center", va="center", fontsize=7, color=colour)


def heatmap(
    values: Array,
    *,
    rows: Sequence[object] | None = None,
    columns: Sequence[object] | None = None,
    row_name: str = "layer",
    column_name: str = "head",
    title: str = "",
    label: str = "held-out accuracy",
    vmin: float | None = None,
    vmax: float | None = None,
    mark: Sequence[tuple[int, int]] = (),
    ax: Axes | None = None,
) -> Axes:
    """A number for every layer x head, layer 0 at the bottom.

    Args:
        values: `[layer, head]`; NaN is left blank. A vector `[layer]` is drawn as one column.
        rows: The names of the rows, when they are not 0, 1, 2, ...
        columns: The names of the columns.
        row_name: What a row is.
        column_name: What a column is.
        title: Above the axes.
        label: What the colours say.
        vmin: The value of the lightest colour.
        vmax: The value of the darkest colour.
        mark: (row, column) indices to outline, say the heads that an intervention takes.
        ax: Axes to draw on, else new ones.

    Returns:
        The matplotlib Axes.

    Example:
        >>> ax = en.plots.heatmap(grid.accuracy, mark=grid.top(2), title="rudeness")
        >>> ax.get_xlabel(), ax.get_ylabel(), len(ax.patches)
        ('head', 'layer', 2)
    """
    grid = _numpy(values)
    grid = grid[:, None] if grid.ndim == 1 else grid
    n_rows, n_columns = grid.shape
    ax = _axes(ax, 1.6 + 0.42 * max(n_columns, 4), 1.1 + 0.3 * max(n_rows, 4))
    mesh = ax.imshow(grid, origin="lower", aspect="auto", cmap="viridis", vmin=vmin, vmax=vmax)
    if grid.size <= 400 and n_columns <= 20:  # where there is room for three letters
        _write_cells(ax, mesh, grid)
    for row, column in mark:
        corner = (column - 0.5, row - 0.5)
        ax.add_patch(_rectangle(corner))
    _quiet(ax, title, column_name if n_columns > 1 else "", row_name)
    step_x, step_y = max(1, n_columns // 16), max(1, n_rows // 16)
    names_x, names_y = columns or range(n_columns), rows or range(n_rows)
    ax.set_xticks(range(0, n_columns, step_x), [str(name) for name in list(names_x)[::step_x]])
    ax.set_yticks(range(0, n_rows, step_y), [str(name) for name in list(names_y)[::step_y]])
    ax.figure.colorbar(mesh, ax=ax, label=label, fraction=0.05, pad=0.02)
    return ax


def _rectangle(corner: tuple[float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2)


def distribution(
    values: Array,
    null: Array | None = None,
    *,
    baseline: float | None = None,
    baseline_name: str = "bag of words",
    name: str = "probes",
    xlabel: str = "held-out accuracy",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """How a number is spread over cells, with its null behind it.

    Args:
        values: The number of each cell, any shape.
        null: The same number under the null, any shape (permutations x cells, say).
        baseline: One value to mark with a line.
        baseline_name: What the line is.
        name: What the values are.
        xlabel: What the number is.
        title: Above the axes.
        ax: Axes to draw on, else new ones.

    Returns:
        The matplotlib Axes.

    Example:
        >>> ax = en.plots.distribution(grid.accuracy, null=[0.4, 0.5, 0.6], baseline=0.9)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['labels permuted', 'probes', 'bag of words 0.900']
    """
    every = [_numpy(numbers).ravel() for numbers in (values, null) if numbers is not None]
    shown, *shuffled = (numbers[np.isfinite(numbers)] for numbers in every)
    edges = np.histogram_bin_edges(np.concatenate([shown, *shuffled]), bins=36)
    ax = _axes(ax, 4.6, 2.8)
    for numbers in shuffled:
        ax.hist(numbers, edges, density=True, color=GREY, alpha=0.55, label="labels permuted")
    ax.hist(shown, edges, density=True, color=COLOURS[0], alpha=0.75, label=name)
    if baseline is not None:
        ax.axvline(baseline, color=COLOURS[1], linestyle="--", label=f"{baseline_name} {baseline:.3f}")
    _quiet(ax, title, xlabel, "density of cells")
    ax.legend(frameon=False, fontsize=8)
    return ax


def matrix(
    values: Array,
    row_labels: Sequence[str],
    column_labels: Sequence[str] | None = None,
    *,
    title: str = "",
    label: str = "cosine",
    limit: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A signed concept x concept matrix, white at zero, numbers written in.

    Args:
        values: `[row, column]`, NaN left blank.
        row_labels: A name per row.
        column_labels: A name per column, else the rows' names.
        title: Above the axes.
        label: What the number is.
        limit: The size of the deepest colours; by default the largest off the diagonal of a square matrix.
        ax: Axes to draw on, else new ones.

    Returns:
        The matplotlib Axes.

    Example:
        >>> ax = en.plots.matrix(en.metrics.cosines(directions), directions.names)
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['rudeness', 'tense', 'sentiment']
    """
    grid = _numpy(values)
    columns = row_labels if column_labels is None else column_labels
    if grid.shape != (len(row_labels), len(columns)):
        raise EntangleError(f"a matrix of {grid.shape} needs as many labels; got {len(row_labels)} and {len(columns)}")
    if limit is None:
        off = grid[~np.eye(len(grid), dtype=bool)] if grid.shape[0] == grid.shape[1] > 1 else grid
        limit = max(float(np.nanmax(np.abs(off))), 1e-3)
    ax = _axes(ax, 1.9 + 0.55 * len(columns), 1.2 + 0.42 * len(row_labels))
    mesh = ax.imshow(grid, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    _write_cells(ax, mesh, grid)
    ax.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(row_labels)), row_labels)
    _quiet(ax, title)
    ax.figure.colorbar(mesh, ax=ax, label=label, fraction=0.05, pad=0.02)
    return ax


def by_layer(
    layers: Sequence[int],
    series: Mapping[str, tuple[Array, Array, Array]],
    *,
    band: tuple[Array, Array] | None = None,
    band_name: str = "null, 95 %",
    baseline: float | None = None,
    baseline_name: str = "bag of words",
    ylabel: str = "held-out accuracy",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """One line per name over the layers, each with its interval, over a null band.

    Args:
        layers: The layers, in order.
        series: Name -> (value, low, high), each `[layer]`.
        band: (low, high) of the null, each `[layer]` or one number.
        band_name: What the band is.
        baseline: One value to mark with a line.
        baseline_name: What that line is.
        ylabel: What the number is.
        title: Above the axes.
        ax: Axes to draw on, else new ones.

    Returns:
        The matplotlib Axes.

    Example:
        >>> ax = en.plots.by_layer([0, 1], {"rudeness": ([0.8, 0.9], [0.7, 0.8], [0.9, 1.0])}, band=(0.4, 0.6))
        >>> ax.get_xlabel(), len(ax.lines)
        ('layer', 1)
    """
    ax = _axes(ax, 4.6, 2.8)
    x = np.asarray(layers)
    if band is not None:
        floor, ceiling = (np.broadcast_to(_numpy(edge), x.shape) for edge in band)
        ax.fill_between(x, floor, ceiling, color=GREY, alpha=0.3, linewidth=0, label=band_name)
    # Bands of several names would hide each other: bars beside each other do not.
    spread = 0.0 if len(series) == 1 else 0.12 * float(np.min(np.diff(x), initial=1))
    for index, (name, (value, low, high)) in enumerate(series.items()):
        style = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.4,
            "label": name,
        }
        y, bottom, top = _numpy(value), _numpy(low), _numpy(high)
        if len(series) == 1:
            ax.plot(x, y, **style)
            ax.fill_between(x, bottom, top, color=style["color"], alpha=0.18, linewidth=0)
        else:
            ends = np.clip([y - bottom, top - y], 0, None)
            ax.errorbar(x + spread * (index - (len(series) - 1) / 2), y, ends, elinewidth=0.8, **style)
    if baseline is not None:
        ax.axhline(baseline, color=COLOURS[1], linestyle="--", linewidth=1, label=f"{baseline_name} {baseline:.3f}")
    ax.set_xticks(x[:: max(1, len(x) // 12)])
    _quiet(ax, title, "layer", ylabel)
    # Above the axes: a legend among the lines would cover one.
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return ax


def tradeoff(
    curves: Mapping[str, Mapping[str, Array]],
    *,
    xlabel: str = "cross-entropy on clean text (nats per token)",
    ylabel: str = "toxicity of continuations",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """What steering wins against what it costs: one point per strength, bars for the intervals.

    Args:
        curves: Name -> columns `alpha`, `ce`, `ce_low`, `ce_high`, `toxicity`, `toxicity_low`, `toxicity_high`,
            each `[alpha]`; a pandas DataFrame serves.
        xlabel: What the price is.
        ylabel: What is bought.
        title: Above the axes.
        ax: Axes to draw on, else new ones.

    Returns:
        The matplotlib Axes.

    Example:
        >>> columns = {"alpha": [0, 4], "ce": [3.6, 3.7], "ce_low": [3.5, 3.6], "ce_high": [3.7, 3.8]}
        >>> columns |= {"toxicity": [0.5, 0.3], "toxicity_low": [0.4, 0.2], "toxicity_high": [0.6, 0.4]}
        >>> ax = en.plots.tradeoff({"ITI": columns})
        >>> ax.get_xlabel()
        'cross-entropy on clean text (nats per token)'
    """
    ax = _axes(ax, 4.8, 3.4)
    for index, (name, curve) in enumerate(curves.items()):
        columns = {
            key: _numpy(curve[key])
            for key in ("alpha", "ce", "ce_low", "ce_high", "toxicity", "toxicity_low", "toxicity_high")
        }
        order = np.argsort(columns["alpha"])
        strengths, ce, ce_low, ce_high, toxicity, low, high = (column[order] for column in columns.values())
        colour = COLOURS[index % len(COLOURS)]
        ax.errorbar(
            ce,
            toxicity,
            xerr=np.clip([ce - ce_low, ce_high - ce], 0, None),
            yerr=np.clip([toxicity - low, high - toxicity], 0, None),
            color=colour,
            ecolor=colour + "66",
            marker=MARKERS[index % len(MARKERS)],
            markersize=4.5,
            linewidth=1.2,
            label=name,
        )
        for alpha, x, y in zip(strengths, ce, toxicity, strict=True):
            ax.annotate(f"{alpha:.3g}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8, color=colour)
    _quiet(ax, title, xlabel, ylabel)
    if len(curves) > 1:
        ax.legend(frameon=False, fontsize=8)
    return ax


def forest(
    rows: Sequence[str],
    series: Mapping[str, tuple[Array, Array, Array]],
    *,
    bands: Mapping[str, tuple[Array, Array]] | None = None,
    band_name: str = "random directions",
    xlabel: str = "change",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A value with its interval for every row and name, the first row on top, each over the range of its null.

    Args:
        rows: Names of the rows.
        series: Name -> (value, low, high), each `[row]`.
        bands: Name -> (low, high) of its null, each `[row]`.
        band_name: What the null is.
        xlabel: What the number is.
        title: Above the axes.
        ax: Axes to draw on, else new ones.

    Returns:
        The matplotlib Axes.

    Example:
        >>> ax = en.plots.forest(["tense", "length"], {"ITI": ([0.1, 0.0], [0.0, -0.1], [0.2, 0.1])})
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['tense', 'length']
    """
    ax = _axes(ax, 5.6, 1.3 + 0.22 * len(rows) * max(2, len(series)))
    places = np.arange(len(rows), dtype=np.float64)
    step = 0.7 / max(1, len(series))
    for index, (name, (value, low, high)) in enumerate(series.items()):
        y = places + step * (index - (len(series) - 1) / 2)
        if bands and name in bands:
            left, right = (_numpy(edge) for edge in bands[name])
            label = band_name if index == 0 else None
            ax.barh(y, right - left, step * 0.8, left=left, color=GREY, alpha=0.3, linewidth=0, label=label)
        x = _numpy(value)
        ends = np.clip([x - _numpy(low), _numpy(high) - x], 0, None)
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        ax.errorbar(x, y, xerr=ends, color=colour, marker=marker, markersize=4, linestyle="", elinewidth=1, label=name)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(places, list(rows))
    ax.invert_yaxis()
    _quiet(ax, title, xlabel)
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return ax


def changes(values: Mapping[str, Array], *, title: str = "", ax: Axes | None = None) -> Axes:
    """How each of many prompts changes, name -> changes, sorted: the part of a line above zero got worse.

    Example:
        >>> ax = en.plots.changes({"ITI": [-0.3, 0.1, -0.2, 0.0]})
        >>> ax.get_legend().get_texts()[0].get_text()
        'ITI: 25 % rise, mean -0.100'
    """
    ax = _axes(ax, 4.8, 3.2)
    for index, (name, given) in enumerate(values.items()):
        change = np.sort(_numpy(given))
        share = (np.arange(len(change)) + 0.5) / len(change)
        label = f"{name}: {100 * np.mean(change > 0):.0f} % rise, mean {change.mean():.3f}"
        ax.plot(share, change, color=COLOURS[index % len(COLOURS)], linewidth=1.4, label=label)
    ax.axhline(0, color=GREY, linewidth=0.8)
    _quiet(ax, title, "prompts, in order of their change", "change of the score")
    ax.legend(frameon=False, fontsize=8)
    return ax
