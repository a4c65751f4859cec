"""What a page lists of a study: probes beside what they must beat, prices, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entangle.study.page.drawing import Table
from entangle.study.wording import interval, number, strength

Numbers = Mapping[str, Any]


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
    """Accuracy and AUROC; what always says the same has no interval."""
    return [
        number(score[key])
        if score[f"{key}_low"] is None
        else interval(score[key], score[f"{key}_low"], score[f"{key}_high"])
        for key in ("accuracy", "auroc")
    ]


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
                    strength(row["alpha"]),
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
                    strength(row["alpha"]),
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
