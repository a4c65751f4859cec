"""What the page of a composition shows: drawings and tables of the models compared over shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entangle.composition.comparing.comparison import ALL, PLAIN, Comparison
from entangle.metrics import Estimate
from entangle.plots import COLOURS, MARKERS
from entangle.study.page import Drawing, Spot, Table, draw
from entangle.study.wording import interval, number, percent, spread

Array = NDArray[np.float64]
SIZE = (5.2, 3.4)


def over_shares(
    shares: Sequence[float],
    series: Mapping[str, tuple[Array, Array, Array]],
    *,
    points: Mapping[str, Sequence[Sequence[float]]] | None = None,
    ylabel: str,
    ax: Any,
) -> None:
    """One line per name over the shares, with intervals, and a dot for each seed.

    Args:
        shares: Shares of the added corpus.
        series: Name -> (value, low, high), each [share].
        points: Name -> the values of each seed, [share][seed].
        ylabel: What the number is.
        ax: Axes to draw on.
    """
    x = 100 * np.asarray(shares)
    nudge = 0.012 * float(np.ptp(x))
    for index, (name, (value, low, high)) in enumerate(series.items()):
        colour, at = COLOURS[index % len(COLOURS)], x + nudge * (index - (len(series) - 1) / 2)
        with np.errstate(invalid="ignore"):  # of an infinite value
            ends = np.clip([value - low, high - value], 0, None)
        ends[~np.isfinite(ends)] = 0
        style = {"color": colour, "marker": MARKERS[index % len(MARKERS)], "markersize": 4, "label": name}
        ax.errorbar(at, value, ends, linewidth=1.3, elinewidth=0.8, **style)
        for place, seeds in zip(at, (points or {}).get(name, []), strict=False):
            ax.plot(np.full(len(seeds), place), seeds, "x", color=colour, markersize=4, alpha=0.7)
    ax.set_xticks(x, [f"{each:g}" for each in x])
    ax.set_xlabel("share of the added corpus, %")
    ax.set_ylabel(ylabel)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if len(series) > 1:
        ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)


def drawing_over_shares(
    comparison: Comparison,
    series: Mapping[str, tuple[Array, Array, Array]],
    *,
    name: str,
    title: str,
    caption: str,
    ylabel: str,
    points: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> Drawing:
    """`over_shares` as a drawing whose every share says its numbers."""
    lines_of_shares = [
        [
            f"{percent(share)}",
            *(
                f"{line}: {interval(float(ends[0][i]), float(ends[1][i]), float(ends[2][i]))}"
                for line, ends in series.items()
            ),
        ]
        for i, share in enumerate(comparison.shares)
    ]
    width = 100 * float(np.min(np.diff(comparison.shares)))
    svg = draw(
        over_shares,
        comparison.shares,
        series,
        points=points,
        ylabel=ylabel,
        size=SIZE,
        name=name,
        says=f"{ylabel} over the share of the added corpus. "
        + " ".join(", ".join(lines) + "." for lines in lines_of_shares),
        spots=[
            Spot(lines, 100 * share, size=(width, 0))
            for lines, share in zip(lines_of_shares, comparison.shares, strict=True)
        ],
    )
    return Drawing(svg, caption, title=title)


def head_distributions(accuracies: Mapping[str, Array], *, baseline: float, ax: Any) -> None:
    """How accuracy is spread over heads, one outline a share, with their means."""
    edges = np.histogram_bin_edges(np.concatenate(list(accuracies.values())), bins=24)
    for index, (name, heads) in enumerate(accuracies.items()):
        colour = COLOURS[index % len(COLOURS)]
        ax.hist(heads, edges, density=True, histtype="step", linewidth=1.4, color=colour, label=name)
        ax.axvline(heads.mean(), color=colour, linewidth=0.8, linestyle=":")
    if baseline <= edges[-1] + np.ptp(edges):
        ax.axvline(baseline, color="black", linestyle="--", linewidth=1, label=f"bag of words {baseline:.3f}")
    ax.set_xlabel("held-out accuracy")
    ax.set_ylabel("density of heads")
    ax.legend(frameon=False, fontsize=8)


def capability(comparison: Comparison) -> tuple[list[Drawing], list[Table]]:
    """Figure 4: cross-entropy on clean text."""
    frame = comparison.capability
    series = {"cross-entropy": columns_of(frame, "ce")}
    drawing = drawing_over_shares(
        comparison,
        series,
        points={"cross-entropy": frame["seeds"].tolist()},
        ylabel="nats per token on clean text",
        name="capability",
        title="Are they equally good at clean text?",
        caption="Cross-entropy on clean documents that no model has seen; a cross for each seed.",
    )
    rows = [
        [percent(row["share"]), spread(row, "ce"), spread(row, "difference", 4), number(row["seed_noise"], 4)]
        for row in frame.to_dict("records")
    ]
    columns = ["share", "nats per token [95 %]", "difference to the first, paired [95 %]", "between seeds (s.d.)"]
    return [drawing], [Table(columns, rows)]


def probes(comparison: Comparison) -> tuple[list[Drawing], list[Table]]:
    """Figure 5: how well heads read the concept."""
    frame, tests = comparison.probes, comparison.probe_tests
    heads = {percent(share): comparison.accuracies[i].ravel() for i, share in enumerate(comparison.shares)}
    words = float(frame["bag_of_words"].iloc[0])
    means = ", ".join(f"{share} {number(float(values.mean()))}" for share, values in heads.items())
    says = f"Histograms of the heads' accuracies, one a share. Their means: {means}. A bag of words: {number(words)}."
    spread = Drawing(
        draw(head_distributions, heads, baseline=words, size=SIZE, name="heads", says=says),
        "Held-out accuracy of a linear probe on every head's output at the last token, all seeds; dotted: means.",
        title="How heads are spread",
    )
    tail = {name: (values, values, values) for name, values in (
        ("all heads", frame["mean"].to_numpy()), ("best tenth", frame["best_tenth"].to_numpy()))}  # fmt: skip
    seeds = {"all heads": frame["seeds"].tolist()}
    lines = drawing_over_shares(
        comparison,
        tail,
        points=seeds,
        ylabel="mean accuracy",
        name="tail",
        title=f"Do heads read {comparison.concept} better?",
        caption="Mean accuracy of all heads and of each model's best tenth; a cross for each seed.",
    )
    columns = ["share", "mean", "best tenth", "best", "beyond the first's best tenth", "skewness", "residual stream"]
    rows = [
        [
            percent(row["share"]),
            *(number(row[key]) for key in ("mean", "best_tenth", "best", "beyond")),
            number(row["skewness"], 2),
            number(row["stream"]),
        ]
        for row in frame.to_dict("records")
    ]
    tested = [
        ["heads of the largest against the smallest share, Welch's t", number(tests["heads_t"], 4)],
        ["the same by ranks (Mann and Whitney)", number(tests["heads_rank"], 4)],
        ["over seeds: the heads' mean rises with the share", number(tests["seeds_mean"], 4)],
        ["over seeds: the best tenth's mean rises with the share", number(tests["seeds_tail"], 4)],
        ["the least that these shares and seeds can give", number(tests["seeds_least"], 4)],
    ]
    caption = (
        "One-sided. Over heads, as in the paper, each head counts as independent, which heads of one model are not. "
        "Over seeds, shares are permuted within each seed."
    )
    return [spread, lines], [Table(columns, rows), Table(["test", "p"], tested, caption)]


def toxicity(comparison: Comparison) -> tuple[list[Drawing], list[Table]]:
    """Figure 6: the concept in continuations against the share, for every strength, one drawing a set of prompts."""
    drawings = []
    for prompts in comparison.prompt_sets:
        column = "toxicity" if prompts == ALL else prompts
        series = {
            "not steered" if method == PLAIN else f"alpha {alpha:g}": columns_of(frame, column)
            for (method, alpha), frame in _by_condition(comparison)
        }
        drawings.append(
            drawing_over_shares(
                comparison,
                series,
                ylabel=f"{comparison.concept} (mean score)",
                name=f"by-{column}",
                title="What do they write, steered and not?",
                caption=f"{comparison.concept.capitalize()} of continuations by strength of ITI: {prompts}.",
            )
        )
    return drawings, []


def price(comparison: Comparison) -> tuple[list[Drawing], list[Table]]:
    """What a nat of cross-entropy buys at each share."""
    series = {
        f"alpha {alpha:g}": columns_of(frame, "removed_per_nat")
        for (method, alpha), frame in _by_condition(comparison)
        if method != PLAIN
    }
    caption = (
        "The score removed by ITI for each nat of cross-entropy paid, against the same models unsteered. Intervals are "
        "for other seeds, prompts and documents (Fieller's); one that reaches infinity is not drawn."
    )
    drawing = drawing_over_shares(
        comparison,
        series,
        ylabel=f"{comparison.concept} removed a nat",
        name="price",
        title="What does a nat buy?",
        caption=caption,
    )
    return [drawing], []


def table_one(comparison: Comparison) -> tuple[list[Drawing], list[Table]]:
    """Table 1: every method at every share, and the baselines that were trained."""
    sets = [prompts for prompts in comparison.prompt_sets if prompts != ALL] or ["toxicity"]
    columns = ["share", "method", "alpha", *(f"{each} [95 %]" for each in sets), "cross-entropy [95 %]"]
    columns += [
        "removed [95 %]",
        "paid, nats [95 %]",
        "removed a nat [95 %]",
        "against the first share [95 %]",
        "degenerate",
    ]
    rows = []
    for row in comparison.steering.to_dict("records"):
        method = row["method"] or "none"
        rows.append(
            [
                percent(row["share"]),
                f"{row['variant']}: {method}" if row["variant"] else method,
                f"{row['alpha']:g}" if row["method"] else "",
                *(spread(row, each) for each in sets),
                spread(row, "ce"),
                *(spread(row, key) for key in ("removed", "paid")),
                spread(row, "removed_per_nat", 2) if row["method"] else "",
                spread(row, "against_first"),
                number(row["degenerate"], 2),
            ]
        )
    caption = (
        "Mean score of continuations. Removed and paid are against the same models unsteered; the last difference is "
        "to the smallest share at the same method and strength. Degenerate: empty or endlessly repeating."
    )
    return [], [Table(columns, rows, caption)]


def entanglement(comparison: Comparison) -> tuple[list[Drawing], list[Table]]:
    """How entangled the concept is in each model."""
    rows = [
        [
            percent(row["share"]),
            str(row["seed"]),
            str(row["layer"]),
            interval(row["entanglement"], row["low"], row["high"]),
            number(100 * row["covariance_percentile"], 1),
            row["partner"],
            number(row["variance_share"], 4),
        ]
        for row in comparison.entanglement.to_dict("records")
    ]
    columns = ["share", "seed", "layer", "E [95 %]", "percentile", "nearest", "variance share"]
    caption = (
        "E is the largest |cosine| with another concept's direction, in the residual stream where the concept is read "
        "best; its percentile among random directions with the activations' own covariance."
    )
    uniform = [
        [*row[:4], number(100 * each["percentile"], 1)]
        for row, each in zip(rows, comparison.entanglement.to_dict("records"), strict=True)
    ]
    folded = Table([*columns[:4], "percentile, uniform"], uniform)
    return [], [
        Table(columns, rows, caption, folded=folded, summary="against uniform random directions")
    ] if rows else []


def _by_condition(comparison: Comparison) -> list[tuple[tuple[str, float], pd.DataFrame]]:
    """Unsteered and each strength of ITI that every share has, with the rows of all shares in order."""
    frame = comparison.steering
    chosen = frame[(frame["variant"] == "") & frame["method"].isin([PLAIN, "ITI"])]
    groups = []
    for method, alpha in dict.fromkeys(zip(chosen["method"], chosen["alpha"], strict=True)):
        group = chosen[(chosen["method"] == method) & (chosen["alpha"] == alpha)].sort_values("share")
        if len(group) == len(comparison.shares):
            groups.append(((method, alpha), group))
    return groups


def columns_of(frame: pd.DataFrame, name: str) -> tuple[Array, Array, Array]:
    """Value, low and high of a quantity, row by row."""
    value, low, high = (np.asarray(column, dtype=np.float64) for column in Estimate.of(frame, name))
    return value, low, high
