"""What a page shows of a study's numbers: each function takes one study's numbers and returns panels and tables.

Everything is drawn from the dictionary that becomes `report.json`, so that the page and the file cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entangle import plots
from entangle.study.page.drawing import Panel, Table
from entangle.study.wording import interval, number

Numbers = Mapping[str, Any]
NULLS = ("percentile, uniform", "percentile, covariance")
ASIDE = ("massive coordinates", "E without them [95 %]")


def probe_panels(study: Numbers) -> dict[str, Panel]:
    """The heat map over heads, the distribution with its null, and the residual stream layer by layer."""
    panels = {}
    words = study["baselines"].get("bag_of_words", {}).get("accuracy")
    if "z" in study["probes"]:
        heads = study["probes"]["z"]
        accuracy = np.array(heads["accuracy"], dtype=float)
        steered = study["intervention"]
        panels["heads"] = Panel(
            plots.heatmap,
            (accuracy,),
            {"rows": heads["layers"], "mark": [tuple(cell) for cell in steered["cells"]] if steered else []},
            (1.9 + 0.4 * max(accuracy.shape[1], 5), 1.2 + 0.28 * max(accuracy.shape[0], 5)),
            "Held-out accuracy of a linear probe on the output z of every attention head, at the last token."
            + (" Outlined: the heads that the intervention takes." if steered else ""),
            _cells(heads),
            wide=accuracy.shape[1] > 12,
        )
        panels["spread"] = Panel(
            plots.distribution,
            (accuracy, heads["null"]),
            {"baseline": words},
            (4.8, 2.9),
            f"How accuracy is spread over the {accuracy.size} heads, against the same probes on permuted labels "
            f"({heads['n_permutations']} permutations). {heads['n_significant']} heads beat the null at 5 %, corrected "
            "for the number of heads.",
        )
    if "resid_post" in study["probes"]:
        stream = study["probes"]["resid_post"]
        series = {"probe on resid_post": (stream["accuracy"], stream["accuracy_low"], stream["accuracy_high"])}
        null = [np.quantile(stream["null"], level, axis=0) for level in (0.025, 0.975)]
        panels["layers"] = Panel(
            plots.by_layer,
            (stream["layers"], series),
            {"band": tuple(null), "baseline": words},
            (4.8, 2.9),
            "Held-out accuracy of a probe on the whole residual stream after each layer, with 95 % intervals.",
            _cells(stream),
        )
    return panels


def _cells(grid: Numbers) -> Table:
    """Accuracy and AUROC of every cell with intervals and corrected p-values."""
    by_head = np.ndim(grid["accuracy"]) == 2
    rows = []
    for index, accuracy in np.ndenumerate(np.array(grid["accuracy"], dtype=float)):
        pick = {key: float(np.array(grid[key], dtype=float)[index]) for key in _SHOWN}
        rows.append(
            [
                *[str(grid["layers"][index[0]]), *map(str, index[1:])],
                interval(accuracy, pick["accuracy_low"], pick["accuracy_high"]),
                interval(pick["auroc"], pick["auroc_low"], pick["auroc_high"]),
                number(pick["p"]),
            ]
        )
    return Table(["layer", *(["head"] if by_head else []), "accuracy [95 %]", "AUROC [95 %]", "p, corrected"], rows)


_SHOWN = ("accuracy_low", "accuracy_high", "auroc", "auroc_low", "auroc_high", "p")


def probe_tables(study: Numbers) -> list[Table]:
    """The probes beside what they must beat."""
    rows = []
    for label, site in (("best head", "z"), ("best layer", "resid_post")):
        if site not in study["probes"]:
            continue
        best = study["probes"][site]["best"]
        where = f"layer {best['layer']}" + (f", head {best['head']}" if best["head"] is not None else "")
        rows.append([f"{label}: {where}", *_score(best)])
    rows += [[name.replace("_", " "), *_score(score)] for name, score in study["baselines"].items()]
    return [
        Table(
            ["", "accuracy [95 %]", "AUROC [95 %]"],
            rows,
            "On the reporting rows. The best head and layer were chosen on other rows.",
        )
    ]


def _score(score: Numbers) -> list[str]:
    return [
        interval(score["accuracy"], score["accuracy_low"], score["accuracy_high"]),
        interval(score["auroc"], score["auroc_low"], score["auroc_high"]),
    ]


def _aside(row: Numbers) -> list[str]:
    """How many coordinates are massive, and E without them."""
    if row.get("massive") is None:
        return ["", ""]
    without = interval(row["set_aside"], row["set_aside_low"], row["set_aside_high"])
    return [str(row["massive"]), without if row["massive"] else "the same"]


def entanglement_panels(study: Numbers) -> dict[str, Panel]:
    """E over the layers for every concept, and the matrix of cosines after the layer where the concept reads best."""
    table = study["entanglement"]
    if not table:
        return {}
    rows, names, layers = table["rows"], table["names"], table["layers"]
    by_concept = {concept: [row for row in rows if row["concept"] == concept] for concept in names}
    series = {
        concept: tuple([row[key] for row in own] for key in ("entanglement", "low", "high"))
        for concept, own in by_concept.items()
    }
    null = by_concept[names[0]]
    curve = Panel(
        plots.by_layer,
        (layers, series),
        {
            "band": ([row["null_low"] for row in null], [row["null_high"] for row in null]),
            "band_name": "random directions, 95 %",
            "ylabel": "E = max |cos| with another concept",
        },
        (4.8, 3.2),
        "Entanglement of each concept's direction in the residual stream, with 95 % bootstrap intervals, over the band "
        "of random directions.",
        Table(
            ["layer", "concept", "E [95 %]", "nearest", "null, 95 %", *NULLS, *ASIDE, "split-half", "variance share"],
            [
                [
                    str(row["layer"]),
                    row["concept"],
                    interval(row["entanglement"], row["low"], row["high"]),
                    row["partner"],
                    f"{number(row['null_low'])} – {number(row['null_high'])}",
                    *(number(100 * row[key], 1) for key in ("percentile", "covariance_percentile")),
                    *_aside(row),
                    number(row["split_half"], 2),
                    number(row["variance_share"], 4),
                ]
                for row in rows
            ],
        ),
    )
    matrix = Panel(
        plots.matrix,
        (table["cosine"][layers.index(table["best_layer"])], names),
        {},
        (2.1 + 0.5 * len(names), 1.4 + 0.4 * len(names)),
        f"Cosines between the concepts' directions after layer {table['best_layer']}, where {study['concept']} reads "
        "best.",
    )
    return {"entanglement": curve, "cosines": matrix}


def entanglement_tables(study: Numbers) -> list[Table]:
    """One row per concept at the layer where the reported concept reads best."""
    table = study["entanglement"]
    return [
        Table(
            ["concept", "E [95 %]", "nearest", *NULLS, *ASIDE, "split-half", "variance share"],
            [
                [
                    row["concept"],
                    interval(row["entanglement"], row["low"], row["high"]),
                    row["partner"],
                    *(number(100 * row[key], 1) for key in ("percentile", "covariance_percentile")),
                    *_aside(row),
                    number(row["split_half"], 2),
                    number(row["variance_share"], 4),
                ]
                for row in table["rows"]
                if row["layer"] == table["best_layer"]
            ],
            f"After layer {table['best_layer']}. The percentile of E among random directions, uniform and with the "
            "covariance of each concept's own texts. Split-half: the cosine r of a concept's own directions on two "
            "halves of its texts; noise shrinks cosines with others by about 2r / (1 + r). Massive coordinates vary 8 "
            "times as much as the median one and hold a twentieth of all variance or more, so that they may carry "
            "every cosine: E without them stands beside it.",
        )
    ]


def tradeoff_panel(studies: Sequence[Numbers]) -> Panel | None:
    """Toxicity against cross-entropy, one curve per model and method, one point per strength."""
    curves = {}
    for study in studies:
        rows = [row for row in study["tradeoff"] or () if not row["error"]]
        methods = list(dict.fromkeys(row["method"] for row in rows))
        for method in methods:
            name = " ".join([*([study["label"]] if len(studies) > 1 else []), *([method] if len(methods) > 1 else [])])
            own = [row for row in rows if row["method"] == method]
            curves[name or study["label"]] = {key: [row[key] for row in own] for key in _CURVE}
    if not curves:
        return None
    concept = studies[0]["concept"]
    return Panel(
        plots.tradeoff,
        (curves,),
        {"ylabel": f"{concept} of continuations (mean score)"},
        (4.8, 3.4),
        "What steering wins against what it costs: a point per strength (alpha, written beside it), 95 % intervals. "
        f"Down is less {concept}, right is worse language.",
    )


def panels(study: Numbers) -> dict[str, Panel]:
    """Every panel of one study, by name, in the order of the page."""
    price = tradeoff_panel([study])
    return {**probe_panels(study), **entanglement_panels(study), **({"tradeoff": price} if price else {})}


_CURVE = ("alpha", "ce", "ce_low", "ce_high", "toxicity", "toxicity_low", "toxicity_high")


def tradeoff_tables(study: Numbers) -> list[Table]:
    """The levels, and the paired differences against no steering."""
    rows = study["tradeoff"]
    concept = study["concept"]
    several = len({row["method"] for row in rows}) > 1
    named = ["method"] if several else []
    return [
        Table(
            [*named, "alpha", f"{concept} [95 %]", "above .5", "cross-entropy [95 %]", "KL", "degenerate"],
            [
                [
                    *([row["method"]] if several else []),
                    f"{row['alpha']:g}",
                    interval(row["toxicity"], row["toxicity_low"], row["toxicity_high"]),
                    number(row["toxic_share"]),
                    interval(row["ce"], row["ce_low"], row["ce_high"]),
                    number(row["kl"]),
                    number(row["degenerate"]),
                ]
                for row in rows
            ],
            "Levels. Degenerate: empty or endlessly repeating; a broken model is not a polite one.",
        ),
        Table(
            [*named, "alpha", f"{concept} removed [95 %]", "nats paid per token [95 %]", "removed per nat [95 %]"],
            [
                [
                    *([row["method"]] if several else []),
                    f"{row['alpha']:g}",
                    interval(row["removed"], row["removed_low"], row["removed_high"]),
                    interval(row["ce_change"], row["ce_change_low"], row["ce_change_high"]),
                    interval(row["removed_per_nat"], row["removed_per_nat_low"], row["removed_per_nat_high"], 2),
                ]
                for row in rows
                if row["alpha"] != 0
            ],
            "Against no steering, paired by prompt and by document.",
        ),
    ]


def provenance_tables(study: Numbers) -> list[Table]:
    """Settings, versions, data and model fingerprint."""
    data = [
        [
            each["name"],
            each["source"],
            number(each["n"]),
            number(each["n_positive"]),
            each["positive"],
            each["label_names"][0],
            each["rule"],
            each["sha256"][:16],
        ]
        for each in study["data"]
    ]
    return [
        Table(["data", "source", "rows", "labelled 1", "label 1 is", "label 0 is", "since", "sha256"], data),
        _listing("model", study["fingerprint"]),
        _listing("setting", study["settings"]),
        _listing("version", study["versions"]),
        _listing("step, seconds", study["seconds"]),
    ]


def _listing(kind: str, values: Mapping[str, object]) -> Table:
    rows = [[key, number(value, 1) if isinstance(value, float) else str(value)] for key, value in values.items()]
    return Table([kind, ""], rows)


def atlas_table(study: Numbers) -> Table:
    """Where each site is, or why it is not."""
    return Table(study["atlas"]["columns"], [[number(cell) for cell in row] for row in study["atlas"]["rows"]])


def drawn_together(panels: Sequence[Panel]) -> Any:
    """Panels on one matplotlib Figure, two in a row."""
    import matplotlib.pyplot as plt

    n_rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(n_rows, 2, figsize=(11, 3.6 * n_rows), layout="constrained", squeeze=False)
    for panel, ax in zip(panels, axes.flat, strict=False):
        panel.on(ax)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    return figure
