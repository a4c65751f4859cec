"""Where does the price of a shift leave the quadratic? Layer by layer of a model, along differences of its own texts.

    python tests/benchmarks/departures.py MODEL --clean CLEAN.jsonl --layers 1 4 9 13

What is paid over what the quadratic says, read at about .4 nats per token, and by how much a price of .1 nats is then
said to be off.
"""

from __future__ import annotations

import argparse
import time

import pandas as pd

import entangle as en
from entangle.data import load_texts
from entangle.models import load

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clean", required=True)
    parser.add_argument("--layers", type=int, nargs="+")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--directions", type=int, default=2)
    given = parser.parse_args()
    model, tokenizer = load(given.model)
    texts = [text for text in load_texts(given.clean) if len(text) > 200][: given.documents]
    start = time.process_time()
    metric = en.ShiftMetric.fit(
        model,
        tokenizer,
        texts,
        layers=given.layers,
        samples=given.samples,
        positions=1,
        directions=given.directions,
        max_length=given.tokens,
        progress=False,
    )
    rows = []
    for number, key in enumerate(metric.keys):
        here = metric.only([key])
        edit = en.AddDirection(here.means[0] - here.means[1], *key)
        unit = here.price(edit, n_resamples=10).value
        off = {nats: here.price(edit, (nats / unit) ** 0.5, n_resamples=10) for nats in (0.03, 0.1, 0.3)}
        rows.append(
            {
                "layer": key[1],
                "paid over quadratic": [round(each, 2) for each in metric.departures[number].tolist()],
                "at nats": [round(each, 2) for each in metric.departure_prices[number].tolist()],
                **{f"off at {nats:g}": f"{price.off:.2f} {price.holds}" for nats, price in off.items()},
            }
        )
    print(pd.DataFrame(rows).to_string(index=False))
    print(f"{metric}: {time.process_time() - start:.0f} s of processor time")
