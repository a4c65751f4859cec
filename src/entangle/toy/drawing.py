"""What the figures of the toy studies share; matplotlib loads when one is drawn."""

from __future__ import annotations

from typing import Any

from entangle import plots

Figure = Any  # matplotlib.figure.Figure
BLUE, ORANGE, GREEN, PINK = plots.COLOURS[:4]


def panels(n: int, width: float, height: float) -> tuple[Figure, Any]:
    """A figure with `n` axes in a row."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, n, figsize=(width * n, height), layout="constrained", squeeze=False)
    return figure, axes[0]


def tidy(ax: Any, title: str, x: str, y: str) -> None:
    """Title, names of the axes, and no box."""
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
