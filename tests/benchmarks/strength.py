"""How many readings of the texts a price takes, and how near it is met: edits of several kinds, one price or several.

    python tests/benchmarks/strength.py MODEL [MODEL ...] --data ../shared/data --clean CLEAN.jsonl

ITI, a mean difference and a natural shift at three layers each, an ablation and an erasure, for toxicity. Each price is
solved by itself, from alpha = 1 and from the forecast of a metric of other documents, and all prices one after another,
as a sweep does, which keeps what it has read.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from beside import Parser

import entangle as en
from entangle.data import load_labelled, load_texts
from entangle.errors import EntangleError
from entangle.evaluation.language.documents import read_rows
from entangle.evaluation.price.strength import solved
from entangle.models import load

COSTS = (0.05, 0.1, 0.2, 0.4)


def edits(model, tokenizer, given, metric, options) -> dict[str, en.interventions.Edit]:
    """Edits away from toxicity."""
    posts = load_labelled(given.data / "probe_toxicity.jsonl.gz", where={"balanced": True}, limit=given.posts, seed=0)
    acts = en.collect(model, tokenizer, posts.texts, sites=["z", "resid_post"], tokens="last", **options)
    every = acts.layers("resid_post")
    layers = sorted({every[round(share * (len(every) - 1))] for share in (0.2, 0.5, 0.8)})
    sides = ([text for text, label in zip(posts.texts, posts.labels, strict=True) if label == side] for side in (0, 1))
    contrast = en.Contrast.fit(model, tokenizer, *sides, layers=layers, **options)
    made: dict[str, en.interventions.Edit] = {"ITI": en.ITI.fit(acts, posts.labels, top_k=9, seed=0)}
    for layer in layers:
        x = acts["resid_post"][:, every.index(layer)].float()
        made[f"mean difference, {layer}"] = en.AddDirection.mean_difference(x, posts.labels, "resid_post", layer)
        made[f"natural shift, {layer}"] = en.NaturalShift.fit(metric.at("resid_post"), contrast, layers=[layer])
    x = acts["resid_post"][:, every.index(layers[1])].float()
    difference = x[posts.labels == 1].mean(0) - x[posts.labels == 0].mean(0)
    made[f"ablation, {layers[1]}"] = en.Ablate(difference, "resid_post", layers[1])
    made[f"erasure, {layers[1]}"] = en.Erase.fit(x, posts.labels, layer=layers[1])
    return made


def measured(path: Path, given) -> pd.DataFrame:
    model, tokenizer = load(path, dtype=given.dtype)
    texts = load_texts(given.clean)
    cuts = np.cumsum([given.fit, given.solve, given.read])
    fitting, solving, others = (texts[start:end] for start, end in zip([0, *cuts[:-1]], cuts, strict=True))
    options = {"max_length": 96, "progress": False}
    sites = ["resid_post", "z"]
    metric = en.ShiftMetric.fit(model, tokenizer, fitting, sites=sites, samples=4, directions=0, **options)
    plain, elsewhere = (read_rows(model, tokenizer, part, max_length=96) for part in (solving, others))
    count = 0
    price = plain.price

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        return price(*args, **kwargs)

    plain.price = counted  # type: ignore[method-assign]
    rows = []
    for name, edit in edits(model, tokenizer, given, metric, options).items():
        for way, start, read in (("from 1", None, None), ("from the forecast", metric, None), ("a sweep", None, [])):
            for cost in COSTS:
                before = count
                row = {"model": path.name, "edit": name, "way": way, "cost": cost}
                try:
                    alpha = solved(plain, edit, kl=cost, metric=start, read=read)
                except EntangleError:
                    rows.append(row | {"readings": count - before, "off": math.nan, "elsewhere": math.nan})
                    continue
                used = count - before
                off, away = (each(edit, alpha=alpha) / cost - 1 for each in (price, elsewhere.price))
                rows.append(row | {"readings": used, "off": off, "elsewhere": away})
    return pd.DataFrame(rows)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clean", required=True)
    parser.add_argument("--dtype")
    parser.add_argument("--posts", type=int, default=600)
    parser.add_argument("--fit", type=int, default=80, help="documents of the metric")
    parser.add_argument("--solve", type=int, default=30, help="documents that prices are solved on")
    parser.add_argument("--read", type=int, default=60, help="documents that are read at the strengths found")
    given = parser.parse_args()
    frame = pd.concat([measured(path, given) for path in given.models])
    unmet = frame["off"].isna()
    for (model, edit), part in frame[unmet].groupby(["model", "edit"], sort=False):
        print(f"no strength of {edit} on {model} costs {', '.join(f'{cost:g}' for cost in part['cost'].unique())}")
    for (model, way), part in frame[~unmet].groupby(["model", "way"], sort=False):
        readings, off, away = part["readings"], part["off"].abs(), part["elsewhere"].abs()
        print(
            f"{model}, {way}: {len(part)} prices; readings mean {readings.mean():.1f}, most {readings.max()}, "
            f"{(readings <= 5).mean():.0%} in 5 or fewer; off by {off.max():.1%} at most, on other documents by "
            f"{away.median():.1%} (median)"
        )
    sweeps = frame[frame["way"] == "a sweep"].groupby(["model", "edit"])["readings"].sum()
    print(f"all {len(COSTS)} prices of an edit together: mean {sweeps.mean():.1f} readings, most {sweeps.max()}")


if __name__ == "__main__":
    main()
