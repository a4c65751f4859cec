"""Figures of the toy studies; matplotlib loads when one is drawn. Every function returns a matplotlib Figure."""

from __future__ import annotations

import pandas as pd

from entangle import plots
from entangle.toy.autoencoders.figures import features, geometry_census, gram, phases, plateaus, rarity
from entangle.toy.chains.figures import budgets, data_share
from entangle.toy.drawing import Figure, panels, tidy

__all__ = [
    "budgets",
    "data_share",
    "features",
    "geometry_census",
    "gram",
    "phases",
    "plateaus",
    "rarity",
    "recovery",
]


def recovery(frame: pd.DataFrame) -> Figure:
    """Planted and recovered entanglement along a `recovery_curve`."""
    setting = frame.columns[0]
    figure, axes = panels(2, 4.4, 3.2)
    for number, (name, group) in enumerate(frame.groupby("estimator", sort=False)):
        by_value = group.groupby(setting)
        colour = plots.COLOURS[number]
        axes[0].plot(by_value["corrected"].median(), "o-", color=colour, label=name)
        axes[0].fill_between(
            by_value["corrected"].median().index,
            by_value["corrected_low"].median(),
            by_value["corrected_high"].median(),
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        axes[1].plot(by_value["covered"].mean(), "o-", color=colour, label=name)
    axes[0].plot(frame.groupby(setting)["planted"].mean(), color="black", linewidth=1, label="planted")
    axes[1].axhline(0.95, color="black", linewidth=1)
    tidy(axes[0], "recovered entanglement, noise-corrected", setting, "E")
    tidy(axes[1], "intervals that hold the planted E", setting, "share of repeats")
    for ax in axes:
        ax.set_xscale("log" if setting == "n_examples" else "linear")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
