"""What a report shows of its numbers: each function takes one study's numbers and returns drawings and tables.

Everything is drawn from the dictionary that becomes `report.json`, so that the page and the file cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entangle import plots
from entangle.report.drawing import Drawing, Table, draw, interval, number

Numbers = Mapping[str, Any]
NULLS = ("percentile, uniform", "percentile, covariance")


def probe_drawings(study: Numbers, name: str) -> list[Drawing]:
    """The heat map over heads, the distribution with its null, and the residual stream layer by layer."""
    heads, stream = study["probes"]["z"], study["probes"]["resid_post"]
    accuracy = np.array(heads["accuracy"], dtype=float)
    chosen = [tuple(cell) for cell in study["intervention"]["cells"]] if study["intervention"] else []
    heat = Drawing(
        draw(
            plots.heatmap,
            accuracy,
            rows=heads["layers"],
            mark=chosen,
            size=(1.9 + 0.4 * max(accuracy.shape[1], 5), 1.2 + 0.28 * max(accuracy.shape[0], 5)),
            name=f"{name}-heat",
        ),
        "Held-out accuracy of a linear probe on the output z of every attention head, at the last token."
        + (" Outlined: the heads that the intervention takes." if chosen else ""),
        _cells(heads),
        wide=accuracy.shape[1] > 12,
    )
    words = study["baselines"]["bag_of_words"]
    spread = Drawing(
        draw(
            plots.distribution,
            accuracy,
            heads["null"],
            baseline=words["accuracy"],
            name=f"{name}-spread",
            size=(4.8, 2.9),
        ),
        f"How accuracy is spread over the {accuracy.size} heads, against the same probes on permuted labels "
        f"({heads['n_permutations']} permutations). {heads['n_significant']} heads beat the null at 5 %, corrected for "
        "the number of heads.",
    )
    series = {"probe on resid_post": (stream["accuracy"], stream["accuracy_low"], stream["accuracy_high"])}
    layers = Drawing(
        draw(
            plots.by_layer,
            stream["layers"],
            series,
            band=(np.quantile(stream["null"], 0.025, axis=0), np.quantile(stream["null"], 0.975, axis=0)),
            baseline=words["accuracy"],
            name=f"{name}-layers",
            size=(4.8, 2.9),
        ),
        "Held-out accuracy of a probe on the whole residual stream after each layer, with 95 % intervals.",
        _cells(stream),
    )
    return [heat, spread, layers]


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


def entanglement_drawings(study: Numbers, name: str) -> list[Drawing]:
    """E over the layers for every concept, and the matrix of cosines at the layer where the concept reads best."""
    found = study["entanglement"]
    rows = found["rows"]
    names, layers = found["names"], found["layers"]
    by_concept = {concept: [row for row in rows if row["concept"] == concept] for concept in names}
    series = {
        concept: tuple([row[key] for row in own] for key in ("entanglement", "low", "high"))
        for concept, own in by_concept.items()
    }
    null = [row for row in rows if row["concept"] == names[0]]
    curve = Drawing(
        draw(
            plots.by_layer,
            layers,
            series,
            band=([row["null_low"] for row in null], [row["null_high"] for row in null]),
            band_name="random directions, 95 %",
            ylabel="E = max |cos| with another concept",
            name=f"{name}-e",
            size=(4.8, 3.2),
        ),
        "Entanglement of each concept's direction in the residual stream, with 95 % bootstrap intervals, over the band "
        "of random directions.",
        Table(
            ["layer", "concept", "E [95 %]", "nearest", "null, 95 %", *NULLS, "split-half", "variance share"],
            [
                [
                    str(row["layer"]),
                    row["concept"],
                    interval(row["entanglement"], row["low"], row["high"]),
                    row["partner"],
                    f"{number(row['null_low'])} – {number(row['null_high'])}",
                    *(number(100 * row[key], 1) for key in ("percentile", "covariance_percentile")),
                    number(row["split_half"], 2),
                    number(row["variance_share"], 4),
                ]
                for row in rows
            ],
        ),
    )
    at = layers.index(found["best_layer"])
    matrix = Drawing(
        draw(
            plots.matrix,
            found["cosine"][at],
            names,
            name=f"{name}-cosine",
            size=(2.1 + 0.5 * len(names), 1.4 + 0.4 * len(names)),
        ),
        f"Cosines between the concepts' directions after layer {found['best_layer']}, where {study['concept']} reads "
        "best.",
    )
    return [curve, matrix]


def entanglement_tables(study: Numbers) -> list[Table]:
    """One row a concept at the layer where the reported concept reads best."""
    found = study["entanglement"]
    return [
        Table(
            ["concept", "E [95 %]", "nearest", *NULLS, "split-half", "variance share"],
            [
                [
                    row["concept"],
                    interval(row["entanglement"], row["low"], row["high"]),
                    row["partner"],
                    *(number(100 * row[key], 1) for key in ("percentile", "covariance_percentile")),
                    number(row["split_half"], 2),
                    number(row["variance_share"], 4),
                ]
                for row in found["rows"]
                if row["layer"] == found["best_layer"]
            ],
            f"After layer {found['best_layer']}. The percentile of E among random directions, uniform and with the "
            "activations' own covariance. Split-half: the cosine of a concept's own directions on two halves of "
            "its texts, the most that a cosine with another can mean.",
        )
    ]


def tradeoff_drawing(studies: Sequence[Numbers]) -> Drawing:
    """Toxicity against cross-entropy, one curve a model, one point a strength."""
    curves = {study["label"]: {key: [row[key] for row in study["tradeoff"]] for key in _CURVE} for study in studies}
    concept = studies[0]["concept"]
    return Drawing(
        draw(
            plots.tradeoff,
            curves,
            ylabel=f"{concept} of continuations (mean score)",
            name="tradeoff",
            size=(4.8, 3.4),
        ),
        "What steering wins against what it costs: a point a strength (alpha, written beside it), 95 % intervals. "
        f"Down is less {concept}, right is worse language.",
    )


_CURVE = ("alpha", "ce", "ce_low", "ce_high", "toxicity", "toxicity_low", "toxicity_high")


def tradeoff_tables(study: Numbers) -> list[Table]:
    """The levels, and the paired differences against no steering."""
    rows = study["tradeoff"]
    concept = study["concept"]
    return [
        Table(
            ["alpha", f"{concept} [95 %]", "above .5", "cross-entropy [95 %]", "KL", "degenerate"],
            [
                [
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
            ["alpha", f"{concept} removed [95 %]", "nats paid a token [95 %]", "removed a nat [95 %]"],
            [
                [
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
