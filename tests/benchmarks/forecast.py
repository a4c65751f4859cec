"""Is the price that was foretold the price that is paid? Directions that took no part in fitting, on other documents.

python tests/benchmarks/forecast.py MODEL --clean CLEAN.jsonl --concept NAME=FILE [--concept ...] [--out FILE.json]

For every third layer of the residual stream: the mean difference and the probe's normal of each concept, the first
principal component both ways, and random directions, each at strengths foretold to cost .03, .1 and .3 nats per token;
and the natural shift of each concept's contrast, fitted on half of the metric's documents and foretold by the other.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from beside import Parser
from tqdm import tqdm

import entangle as en
from entangle.data import load_labelled, load_texts
from entangle.evaluation import kl
from entangle.forecast import Contrast, NaturalShift, ShiftMetric
from entangle.models import load

TARGETS = (0.03, 0.1, 0.3)


def directions(model, tokenizer, concepts, layers, options) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Unit directions of the residual stream that know nothing of the metric."""
    generator = torch.Generator().manual_seed(0)
    for name, data in concepts.items():
        acts = en.collect(model, tokenizer, data.texts, sites="resid_post", layers=layers, tokens="last", **options)
        x = acts["resid_post"].float()
        grid = en.fit_probes(x, data.labels, n_permutations=0, layers=layers, progress=False)
        y = torch.as_tensor(data.labels)
        for index, layer in enumerate(layers):
            yield layer, f"mean difference, {name}", x[y == 0, index].mean(0) - x[y == 1, index].mean(0)
            yield layer, f"probe normal, {name}", -grid.directions[index].float()
    for index, layer in enumerate(layers):
        component = torch.linalg.svd(x[:, index] - x[:, index].mean(0), full_matrices=False)[2][0]
        yield layer, "first component", component
        yield layer, "first component, other way", -component
        yield layer, "random", torch.randn(x.shape[-1], generator=generator)


def measured(args: argparse.Namespace) -> pd.DataFrame:
    model, tokenizer = load(args.model)
    texts = load_texts(args.clean)
    fitting, paying = texts[: args.documents], texts[args.documents : args.documents + args.held_out]
    concepts = {
        name: load_labelled(path, limit=args.limit, seed=0)
        for name, path in (each.split("=", 1) for each in args.concept)
    }
    options = {"max_length": args.tokens, "progress": False}
    n_layers = en.Atlas(model).n_layers
    layers = sorted({round(share * (n_layers - 1)) for share in (0.2, 0.5, 0.8)})
    start = time.perf_counter()
    metric = ShiftMetric.fit(model, tokenizer, fitting, layers=layers, samples=args.samples, **options)
    print(f"{metric}: {time.perf_counter() - start:.0f} s")
    edits = [
        (layer, name, en.AddDirection(vector / vector.norm(), "resid_post", layer))
        for layer, name, vector in directions(model, tokenizer, concepts, layers, options)
    ]
    for name, data in concepts.items():
        y = np.asarray(data.labels)
        sides = ([text for text, label in zip(data.texts, y, strict=True) if label == side] for side in (0, 1))
        contrast = Contrast.fit(model, tokenizer, *sides, layers=layers, **options)
        edits += [
            (layer, f"natural shift, {name}", NaturalShift.fit(metric, contrast, layers=[layer])) for layer in layers
        ]
    rows = []
    for layer, name, edit in tqdm(edits):
        unit = metric.price(edit).value
        for target in TARGETS:
            alpha = (target / unit) ** 0.5
            price = metric.price(edit, alpha)
            paid = kl(model, tokenizer, paying, edit, alpha=alpha, **options)
            rows.append(
                {
                    "layer": layer,
                    "direction": name,
                    "foretold": price.value,
                    "low": price.low,
                    "high": price.high,
                    "paid": paid.mean,
                    "length": price.length,
                    "holds": price.holds,
                }
            )
    return pd.DataFrame(rows)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Paid over foretold, by kind of direction and price."""
    frame = frame.assign(ratio=frame["paid"] / frame["foretold"], kind=frame["direction"].str.split(",").str[0])
    frame["inside"] = (frame["low"] <= frame["paid"]) & (frame["paid"] <= frame["high"])
    grouped = frame.groupby(["kind", frame["foretold"].round(2)])
    table = grouped["ratio"].describe(percentiles=[0.05, 0.5, 0.95])[["count", "5%", "50%", "95%"]]
    for near in (15, 20):
        table[f"within {near} %"] = grouped["ratio"].apply(lambda ratio, n=near: (ratio - 1).abs().le(n / 100).mean())
    table["in the interval"] = grouped["inside"].mean()
    return table


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clean", required=True)
    parser.add_argument("--concept", action="append", required=True)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--limit", type=int, default=1500)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    frame = measured(given)
    if given.out:
        given.out.write_text(json.dumps(frame.to_dict("records"), indent=1))
    print(summary(frame).round(2).to_string())
    others = frame[~frame["direction"].str.startswith("natural")]
    ratio = others["paid"] / others["foretold"]
    print(
        f"all but natural shifts: median {ratio.median():.3f}, nine tenths from {ratio.quantile(0.05):.2f} to "
        f"{ratio.quantile(0.95):.2f}, within 15 % {(ratio - 1).abs().le(0.15).mean():.2f}"
    )
