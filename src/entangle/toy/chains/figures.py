"""Figures of the data-share study; every function returns a matplotlib Figure."""

from __future__ import annotations

from typing import Any, Protocol

import pandas as pd
from scipy import stats

from entangle import plots
from entangle.toy.chains.definitions import LITERAL, MOTIVATED
from entangle.toy.drawing import BLUE, GREEN, ORANGE, PINK, Figure, panels, tidy


class _Study(Protocol):
    """What is drawn of a `DataShareStudy`, which imports this module."""

    @property
    def frame(self) -> pd.DataFrame: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def last_site(self) -> str: ...
    def of(self, definition: dict[str, str], *, step: int | None = None) -> pd.DataFrame: ...


def data_share(study: _Study, table: pd.DataFrame) -> Figure:
    """The literal reading, the best-motivated reading, and the spread of all definitions beside the loss."""
    steps = study.settings["steps"]
    figure, axes = panels(3, 4.4, 3.6)
    for ax, definition in zip(axes, (LITERAL, MOTIVATED), strict=False):
        rows = study.of(definition)
        for column, colour, name in (("minority", ORANGE, "minority chain"), ("control", BLUE, "other chains")):
            spread = rows.groupby("share")[column]
            mean, error = spread.mean(), spread.sem() * stats.t.ppf(0.975, spread.count() - 1)
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
        tidy(ax, words, "minority's data, share of each other chain's", "entanglement")
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
    tidy(
        axes[2],
        f"{len(last)} definitions, {steps} steps",
        "definition, sorted",
        f"minority - control at share {share:g}",
    )
    axes[2].legend(frameon=False, fontsize=8)
    return figure


def budgets(study: _Study) -> Figure:
    """The best-motivated reading at every training budget: what fades with training was not yet learned."""
    steps = sorted(study.frame["step"].unique())
    figure, axes = panels(len(steps), 2.3, 2.8)
    random = study.of(MOTIVATED | {"direction": "random"})["minority"].mean()
    for ax, step in zip(axes, steps, strict=True):
        means = study.of(MOTIVATED, step=step).groupby("share")[["minority", "control"]].mean()
        ax.plot(range(len(means)), means["minority"], ".-", color=ORANGE, label="minority")
        ax.plot(range(len(means)), means["control"], ".-", color=BLUE, label="others")
        ax.axhline(random, color=plots.GREY, linestyle=":")
        ax.set(ylim=(0.5, 1.02), xticks=range(len(means)), xticklabels=[f"{share:g}" for share in means.index])
        ax.tick_params(axis="x", labelsize=6)
        tidy(ax, f"{step} steps", "share", "entanglement" if step == steps[0] else "")
    axes[0].legend(frameon=False, fontsize=7)
    return figure
