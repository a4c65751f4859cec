"""Figures of the toy studies; matplotlib loads when one is drawn. Every function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from entangle import plots
from entangle.errors import EntangleError
from entangle.toy.autoencoders.sweeps import PHASES, PhaseDiagram

if TYPE_CHECKING:
    from entangle.toy.autoencoders.superposition import SuperpositionModel
    from entangle.toy.chains.table import DataShareStudy

Figure = Any  # matplotlib.figure.Figure
BLUE, ORANGE, GREEN, PINK = plots.COLOURS[:4]


def _panels(n: int, width: float, height: float) -> tuple[Figure, Any]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, n, figsize=(width * n, height), layout="constrained", squeeze=False)
    return figure, axes[0]


def _tidy(ax: Any, title: str, x: str, y: str) -> None:
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)


def features(model: SuperpositionModel, instances: Sequence[int] = (0,), titles: Sequence[str] = ()) -> Figure:
    """The features of two-dimensional models as arrows, darker where more important (Elhage et al. 2022, introduction).

    Raises:
        EntangleError: for models with other than two hidden dimensions; `gram` shows those.
    """
    if model.n_hidden != 2:
        raise EntangleError(f"arrows need 2 hidden dimensions, the model has {model.n_hidden}; use figures.gram")
    figure, axes = _panels(len(instances), 2.6, 2.8)
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
    figure, axes = _panels(len(instances), 2.8, 2.8)
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
    figure, (ax,) = _panels(1, 5, 2.6)
    names = [f"{row.n_features} in {row.n_hidden}: {row.expected}" for row in table.itertuples()]
    error = np.stack([table["at_optimum"] - table["low"], table["high"] - table["at_optimum"]])
    ax.barh(names, table["at_optimum"], xerr=error.clip(0), color=BLUE)
    ax.set_xlim(0, 1.05)
    _tidy(ax, "random starts that found the optimum", "share", "")
    return figure


def phases(diagram: PhaseDiagram) -> Figure:
    """Phase of the extra feature by sparsity and importance, beside how surely training found the optimum."""
    from matplotlib.colors import ListedColormap

    figure, axes = _panels(2, 4.6, 3.8)
    x, y = diagram.importances.numpy(), diagram.densities.numpy()
    colours = ListedColormap(["#E8E8E8", BLUE, ORANGE])
    mesh = axes[0].pcolormesh(x, y, diagram.phase.numpy(), cmap=colours, vmin=-0.5, vmax=2.5, shading="nearest")
    figure.colorbar(mesh, ax=axes[0], ticks=range(len(PHASES))).ax.set_yticklabels(PHASES)
    share = axes[1].pcolormesh(x, y, diagram.share_at_optimum.numpy(), vmin=0, vmax=1, shading="nearest")
    figure.colorbar(share, ax=axes[1])
    for ax, title in zip(axes, ("the extra feature", "share of random starts at the lowest loss"), strict=True):
        ax.set(xscale="log", yscale="log")
        _tidy(ax, title, "relative importance", "feature density, 1 - sparsity")
    return figure


def plateaus(frame: pd.DataFrame) -> Figure:
    """Dimensions per feature, and each feature's dimensionality, against sparsity."""
    figure, (ax,) = _panels(1, 6, 3.6)
    kept = frame[frame["norm"] >= 0.5]
    ax.plot(1 / kept["density"], kept["dimensionality"], ".", color=plots.GREY, markersize=3, label="features")
    line = frame.groupby("density")["dimensions_per_feature"].first()
    ax.plot(1 / line.index, line, color=BLUE, label="dimensions per feature")
    for value, name in ((1, "dedicated"), (1 / 2, "antipodal pair"), (2 / 5, "pentagon"), (3 / 8, "square antiprism")):
        ax.axhline(value, color=plots.GREY, linewidth=0.6, linestyle=":")
        ax.text(1 / frame["density"].min(), value, name, fontsize=7, va="bottom", ha="right")
    ax.set_xscale("log")
    _tidy(ax, "features grow sparser", "1 / density", "dimensions per feature")
    ax.legend(frameon=False, fontsize=8)
    return figure


def rarity(frame: pd.DataFrame) -> Figure:
    """What a rare feature loses in an autoencoder: its place first; entanglement only rises for want of one."""
    figure, axes = _panels(2, 4.4, 3.2)
    means = frame.groupby("share").mean()
    axes[0].plot(means.index, means["norm"], "o-", color=BLUE, label="length")
    axes[0].plot(means.index, means["dimensionality"], "o-", color=GREEN, label="dimensionality")
    axes[0].plot(means.index, means["dropped"], "o-", color=ORANGE, label="share dropped")
    axes[1].plot(means.index, means["entanglement"], "o--", color=plots.GREY, label="rare, dropped ones included")
    axes[1].plot(means.index, means["entanglement_if_kept"], "o-", color=ORANGE, label="rare, where kept")
    axes[1].plot(means.index, means["others_entanglement"], "o-", color=BLUE, label="others, where kept")
    for ax, y in zip(axes, ("the rare feature", "entanglement"), strict=True):
        ax.set_xscale("log")
        _tidy(ax, y, "frequency relative to the others", "")
        ax.legend(frameon=False, fontsize=8)
    return figure


def data_share(study: DataShareStudy, table: pd.DataFrame) -> Figure:
    """The literal reading, the best-motivated reading, and the spread of all definitions beside the loss."""
    from entangle.toy.chains.table import LITERAL, MOTIVATED

    steps = study.settings["steps"]
    figure, axes = _panels(3, 4.4, 3.6)
    for ax, definition in zip(axes, (LITERAL, MOTIVATED), strict=False):
        rows = study.of(definition)
        for column, colour, name in (("minority", ORANGE, "minority chain"), ("control", BLUE, "other chains")):
            spread = rows.groupby("share")[column]
            mean, error = spread.mean(), 1.96 * spread.std() / spread.count() ** 0.5
            ax.plot(range(len(mean)), mean, "o-", color=colour, label=name)
            ax.fill_between(range(len(mean)), mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
        random = study.of(definition | {"direction": "random"})["minority"].mean()
        untrained = study.of(definition, step=0)["minority"].mean()
        ax.axhline(random, color=plots.GREY, linestyle=":", label="random directions")
        ax.axhline(untrained, color=plots.GREY, linestyle="--", label="untrained")
        losses = rows.groupby("share")["minority_loss"].mean()
        twin = ax.twinx()
        twin.plot(range(len(losses)), losses, color=GREEN, linewidth=1, alpha=0.7)
        twin.set_ylabel("minority's loss (nats, green)", fontsize=8)
        twin.spines["top"].set_visible(False)
        ax.set_xticks(range(len(losses)), [f"{share:g}" for share in losses.index])
        feature, direction, scope, partners = definition.values()
        words = f"{feature}; {direction}, {scope};\npartners: {partners}"
        _tidy(ax, words, "minority's data, share of each other chain's", "entanglement")
        ax.legend(frameon=False, fontsize=7, loc="center right")
    axes[0].text(0, 1.16, "literal reading", transform=axes[0].transAxes, weight="bold")
    axes[1].text(0, 1.16, "best-motivated reading", transform=axes[1].transAxes, weight="bold")
    last = table[table["step"] == steps].sort_values("difference").reset_index(drop=True)
    axes[2].axhline(0, color=plots.GREY, linewidth=0.8)
    axes[2].vlines(last.index, last["low"], last["high"], color=BLUE, alpha=0.4)
    axes[2].plot(last.index, last["difference"], ".", color=BLUE, markersize=4)
    for definition, colour, name in ((LITERAL, ORANGE, "literal"), (MOTIVATED, PINK, "best-motivated")):
        wanted = {"site": study.last_site} | definition
        here = last[(last[list(wanted)] == pd.Series(wanted)).all(axis=1)]
        axes[2].plot(here.index, here["difference"], "D", color=colour, markersize=6, label=name)
    axes[2].text(0, 1.16, "every definition", transform=axes[2].transAxes, weight="bold")
    share = last["share"].iloc[0]
    _tidy(
        axes[2],
        f"{len(last)} definitions, {steps} steps",
        "definition, sorted",
        f"minority - control at share {share:g}",
    )
    axes[2].legend(frameon=False, fontsize=8)
    return figure


def budgets(study: DataShareStudy) -> Figure:
    """The best-motivated reading at every training budget: what fades with training was not yet learned."""
    from entangle.toy.chains.table import MOTIVATED

    steps = sorted(study.frame["step"].unique())
    figure, axes = _panels(len(steps), 2.3, 2.8)
    random = study.of(MOTIVATED | {"direction": "random"})["minority"].mean()
    for ax, step in zip(axes, steps, strict=True):
        means = study.of(MOTIVATED, step=step).groupby("share")[["minority", "control"]].mean()
        ax.plot(range(len(means)), means["minority"], ".-", color=ORANGE, label="minority")
        ax.plot(range(len(means)), means["control"], ".-", color=BLUE, label="others")
        ax.axhline(random, color=plots.GREY, linestyle=":")
        ax.set(ylim=(0.5, 1.02), xticks=range(len(means)), xticklabels=[f"{share:g}" for share in means.index])
        ax.tick_params(axis="x", labelsize=6)
        _tidy(ax, f"{step} steps", "share", "entanglement" if step == steps[0] else "")
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def recovery(frame: pd.DataFrame) -> Figure:
    """Planted and recovered entanglement along a `recovery_curve`."""
    setting = frame.columns[0]
    figure, axes = _panels(2, 4.4, 3.2)
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
    _tidy(axes[0], "recovered entanglement, noise-corrected", setting, "E")
    _tidy(axes[1], "intervals that hold the planted E", setting, "share of repeats")
    for ax in axes:
        ax.set_xscale("log" if setting == "n_examples" else "linear")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
