"""How far other concepts' probes move when one concept is steered: alone, and with the others held.

    python tests/benchmarks/holding.py ../shared/models/olmo2-4m-toxic10 --data ../shared/data \
        --clean ../shared/models/clean_heldout.jsonl.gz

Toxicity is steered away from by the difference of class means at one layer. Probes of sentiment, topic and tense are
fitted on training texts at that layer and at the last one. Each edit gets the strength at which it costs the same on
clean documents; other texts, of the test split, are read with it and without. Shown is how far each probe's mean score
moves, in standard deviations of the plain scores, with an interval over texts; beside it a random direction of the
same price, drawn several times. Held are the probes of this layer; or those of the last one too, pulled back to this
layer on training texts.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import torch
from beside import Parser
from transformers import AutoModelForCausalLM, AutoTokenizer

import entangle as en

HELD = ("sentiment", "topic", "tense")


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    last = en.Atlas(model).n_layers - 1
    layer = options.layer if options.layer is not None else last // 2
    files = {"toxicity": "probe_toxicity"} | {name: f"concept_{name}" for name in HELD}
    data = {name: texts(options.data / f"{file}.jsonl.gz", options.texts) for name, file in files.items()}
    clean = [line["text"] for line in lines(options.clean)][: 2 * options.documents]
    fitted, priced = clean[: options.documents], clean[options.documents :]

    def read(side: list[str]) -> dict[int, torch.Tensor]:
        acts = en.collect(
            model, tokenizer, side, sites="resid_post", layers=sorted({layer, last}), max_length=64, progress=False
        )
        return {number: acts["resid_post"][:, i] for i, number in enumerate(acts.layers("resid_post"))}

    probes, mean_difference = {}, None
    for name, (train, _) in data.items():
        x = read([text for text, _ in train])
        y = np.array([label for _, label in train])
        for number, rows in x.items():
            grid = en.fit_probes(rows, y, n_permutations=0, progress=False)
            probes[name, number] = grid.directions
            print(f"  probe of {name} at layer {number}: accuracy {float(grid.accuracy):.3f}")
        if name == "toxicity":
            mean_difference = en.AddDirection.mean_difference(x[layer], y, "resid_post", layer)
    metric = en.ShiftMetric.fit(model, tokenizer, fitted, layers=[layer], max_length=128, progress=False)
    held = torch.stack([probes[name, layer] for name in HELD])
    keep = probes["toxicity", layer]
    others = [text for name in HELD for text, _ in data[name][0][:: options.texts // 40]]
    both = held
    if layer < last:
        there = torch.stack([probes[name, last] for name in HELD])
        back = en.learning.pulled_back(model, tokenizer, others, there, later=last, layer=layer, max_length=64)
        both = torch.cat([held, back])
    generator = torch.Generator().manual_seed(0)
    randoms = [en.AddDirection(torch.randn(len(keep), generator=generator), layer=layer) for _ in range(options.draws)]
    edits = {
        "alone": [mean_difference],
        "held": [en.Hold.fit(mean_difference, held, keep=keep)],
        "held, least cost": [en.Hold.fit(mean_difference, held, keep=keep, metric=metric)],
        "held here and there": [en.Hold.fit(mean_difference, both, keep=keep)],
        "random": randoms,
    }
    plain = {name: read([text for text, _ in test]) for name, (_, test) in data.items()}
    moved: dict[tuple[str, str, int], list[np.ndarray]] = {}
    for condition, several in edits.items():
        for edit in several:
            alpha = en.strength_for(model, tokenizer, edit, priced, kl=options.kl, max_length=128)
            with en.steer(model, edit, alpha=alpha):
                steered = {name: read([text for text, _ in test]) for name, (_, test) in data.items()}
            for (name, number), w in probes.items():
                scores = plain[name][number] @ w
                change = (steered[name][number] @ w - scores) / scores.std()
                moved.setdefault((condition, name, number), []).append(change.numpy())
    print(
        f"{options.model.name}, resid_post of layer {layer}, {options.kl} nats, {len(plain['tense'][layer])} test texts"
    )
    for number in sorted({layer, last}):
        print(f"at layer {number}: mean move of the probe's score, in standard deviations [95 % over texts]")
        for condition in edits:
            cells = [f"{name} {shown(moved[condition, name, number])}" for name in data]
            print(f"  {condition:>19}: " + "; ".join(cells))


def shown(changes: list[np.ndarray]) -> str:
    """Mean and interval over texts; of several draws the mean size of their means."""
    if len(changes) > 1:
        return f"{np.mean([abs(each.mean()) for each in changes]):.3f} on average"
    (values,) = changes
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(2000, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def texts(path: Path, n: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Texts and labels, as many of either label, to fit on and to report on."""
    rows, rng = lines(path), np.random.default_rng(0)
    sides = []
    for split, wanted in (("train", n), ("test", n // 2)):
        some: list[tuple[str, int]] = []
        for label in (0, 1):
            own = [(row["text"], label) for row in rows if row["split"] == split and row["label"] == label]
            some += [own[i] for i in rng.permutation(len(own))[: wanted // 2]]
        sides.append(some)
    return sides[0], sides[1]


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--layer", type=int, help="the middle one by default")
    parser.add_argument("--kl", type=float, default=0.1)
    parser.add_argument("--texts", type=int, default=1200, help="to fit each probe on; half as many are read")
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--draws", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
