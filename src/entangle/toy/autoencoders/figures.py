"""Figures of the autoencoders; every function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from entangle import plots
from entangle.errors import EntangleError
from entangle.toy.autoencoders.superposition import SuperpositionModel
from entangle.toy.autoencoders.sweeps import PHASES, PhaseDiagram
from entangle.toy.drawing import BLUE, GREEN, ORANGE, Figure, panels, tidy


def features(model: SuperpositionModel, instances: Sequence[int] = (0,), titles: Sequence[str] = ()) -> Figure:
    """The features of two-dimensional models as arrows, darker where more important (Elhage et al. 2022, introduction).

    Raises:
        EntangleError: For models with other than two hidden dimensions; `gram` shows those.
    """
    if model.n_hidden != 2:
        raise EntangleError(f"arrows need 2 hidden dimensions, the model has {model.n_hidden}; use figures.gram")
    figure, axes = panels(len(instances), 2.6, 2.8)
    for number, (ax, instance) in enumerate(zip(axes, instances, strict=True)):
        vectors = model.dictionaries[instance].numpy()
        weight = model.importance[instance].numpy()
        for vector, shade in zip(vectors, weight / weight.max(), strict=True):
            ax.plot([0, vector[0]], [0, vector[1]], color=BLUE, alpha=0.25 + 0.75 * float(shade))
            ax.plot(*vector, "o", color=BLUE, alpha=0.25 + 0.75 * float(shade))
        ax.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[], yticks=[])
        ax.set_title(titles[number] if titles else f"instance {instance}", fontsize=9)
    return figure


def gram(model: SuperpositionModel, instances: Sequence[int] = (0,), titles: Sequence[str] = ()) -> Figure:
    """W.T W and the bias: what each feature reads from the others."""
    figure, axes = panels(len(instances), 2.8, 2.8)
    for number, (ax, instance) in enumerate(zip(axes, instances, strict=True)):
        vectors = model.dictionaries[instance].numpy()
        bias = model.bias[instance].detach().numpy()[:, None]
        shown = np.hstack([vectors @ vectors.T, np.full_like(bias, np.nan), bias])
        ax.imshow(shown, cmap="RdBu_r", vmin=-1.2, vmax=1.2)
        ax.set_title(titles[number] if titles else f"instance {instance}: W.T W | b", fontsize=9)
        ax.set(xticks=[], yticks=[])
    return figure


def geometry_census(table: pd.DataFrame) -> Figure:
    """Share of random starts that found each known optimum, with its interval."""
    figure, (ax,) = panels(1, 5, 2.6)
    names = [f"{row.n_features} in {row.n_hidden}: {row.expected}" for row in table.itertuples()]
    error = np.stack([table["at_optimum"] - table["low"], table["high"] - table["at_optimum"]])
    ax.barh(names, table["at_optimum"], xerr=error.clip(0), color=BLUE)
    ax.set_xlim(0, 1.05)
    tidy(ax, "random starts that found the optimum", "share", "")
    return figure


def phases(diagram: PhaseDiagram) -> Figure:
    """Phase of the extra feature by sparsity and importance, beside how surely training found the optimum."""
    from matplotlib.colors import ListedColormap

    figure, axes = panels(2, 4.6, 3.8)
    x, y = diagram.importances.numpy(), diagram.densities.numpy()
    colours = ListedColormap(["#E8E8E8", BLUE, ORANGE])
    mesh = axes[0].pcolormesh(x, y, diagram.phase.numpy(), cmap=colours, vmin=-0.5, vmax=2.5, shading="nearest")
    figure.colorbar(mesh, ax=axes[0], ticks=range(len(PHASES))).ax.set_yticklabels(PHASES)
    share = axes[1].pcolormesh(x, y, diagram.share_at_optimum.numpy(), vmin=0, vmax=1, shading="nearest")
    figure.colorbar(share, ax=axes[1])
    for ax, title in zip(axes, ("the extra feature", "share of random starts at the lowest loss"), strict=True):
        ax.set(xscale="log", yscale="log")
        tidy(ax, title, "relative importance", "feature density, 1 - sparsity")
    return figure


def plateaus(frame: pd.DataFrame) -> Figure:
    """Dimensions per feature, and each feature's dimensionality, against sparsity."""
    figure, (ax,) = panels(1, 6, 3.6)
    kept = frame[frame["norm"] >= 0.5]
    ax.plot(1 / kept["density"], kept["dimensionality"], ".", color=plots.GREY, markersize=3, label="features")
    line = frame.groupby("density")["dimensions_per_feature"].first()
    ax.plot(1 / line.index, line, color=BLUE, label="dimensions per feature")
    for value, name in ((1, "dedicated"), (1 / 2, "antipodal pair"), (2 / 5, "pentagon"), (3 / 8, "square antiprism")):
        ax.axhline(value, color=plots.GREY, linewidth=0.6, linestyle=":")
        ax.text(1 / frame["density"].min(), value, name, fontsize=7, va="bottom", ha="right")
    ax.set_xscale("log")
    tidy(ax, "features grow sparser", "1 / density", "dimensions per feature")
    ax.legend(frameon=False, fontsize=8)
    return figure


def rarity(frame: pd.DataFrame) -> Figure:
    """What a rare feature loses in an autoencoder: its place first; entanglement only rises for want of one."""
    figure, axes = panels(2, 4.4, 3.2)
    means = frame.groupby("share").mean()
    axes[0].plot(means.index, means["norm"], "o-", color=BLUE, label="length")
    axes[0].plot(means.index, means["dimensionality"], "o-", color=GREEN, label="dimensionality")
    axes[0].plot(means.index, means["dropped"], "o-", color=ORANGE, label="share dropped")
    axes[1].plot(means.index, means["entanglement"], "o--", color=plots.GREY, label="rare, dropped ones included")
    axes[1].plot(means.index, means["entanglement_if_kept"], "o-", color=ORANGE, label="rare, where kept")
    axes[1].plot(means.index, means["others_entanglement"], "o-", color=BLUE, label="others, where kept")
    for ax, y in zip(axes, ("the rare feature", "entanglement"), strict=True):
        ax.set_xscale("log")
        tidy(ax, y, "frequency relative to the others", "")
        ax.legend(frameon=False, fontsize=8)
    return figure
