"""What learned vectors gain at one price, beside directions that are read off: and how long they take.

    python tests/benchmarks/learned.py ../shared/models/olmo2-4m-toxic10 --data ../shared/data \
        --clean ../shared/models/clean_heldout.jsonl.gz

Pairs of a toxic text and its neutral paraphrase; some to learn on, others to report on. Every vector is added at one
layer at the strength at which it costs the same on clean documents that nothing was learned on. Shown is the contrast:
by how much the neutral texts' log-likelihood gains on the toxic ones', in nats per token, with an interval over pairs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import torch
from beside import Parser
from transformers import AutoModelForCausalLM, AutoTokenizer

import entangle as en


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    layer = options.layer if options.layer is not None else (en.Atlas(model).n_layers - 1) // 2
    pairs = lines(options.data / "pairs_paradetox.jsonl.gz")
    chosen = []
    for split, n in (("train", options.pairs), ("test", options.report)):
        own = [pair for pair in pairs if pair["split"] == split]
        chosen += [own[i] for i in np.random.default_rng(0).permutation(len(own))[:n]]
    neutral, toxic = ([pair[name] for pair in chosen] for name in ("neutral", "toxic"))
    clean = [line["text"] for line in lines(options.clean)][: 3 * options.documents]
    neutrals, priced, read = (clean[i::3] for i in range(3))
    toward, away = neutral[: options.pairs], toxic[: options.pairs]

    edits: dict[str, en.Edit] = {}
    for method in ("ssv", "bipo", "reft-r1"):
        start = time.process_time()
        learned = en.learn(
            model,
            tokenizer,
            toward,
            away,
            method=method,
            layers=layer,
            clean=neutrals,
            kl=options.kl,
            must_converge=False,
            progress=False,
        )
        print(f"  {learned}, {time.process_time() - start:.0f} s of one processor", flush=True)
        edits[method] = learned.edit
    acts = [
        en.collect(model, tokenizer, side, sites="resid_post", layers=layer, max_length=64, progress=False)
        for side in (toward, away)
    ]
    edits["mean difference"] = en.AddDirection.from_pairs(
        *(each["resid_post"][:, 0] for each in acts), "resid_post", layer
    )
    metric = en.ShiftMetric.fit(model, tokenizer, neutrals, layers=[layer], max_length=128, progress=False)
    contrast = en.Contrast.fit(model, tokenizer, toward, away, layers=[layer], max_length=64, progress=False)
    edits["contrast gradient"] = en.AddDirection(contrast.gradient.float(), layer=layer)
    edits["natural shift"] = en.NaturalShift.fit(metric, contrast)
    edits["random"] = en.AddDirection(
        torch.randn(contrast.sizes[0], generator=torch.Generator().manual_seed(0)), layer=layer
    )

    print(f"{options.model.name}, resid_post of layer {layer}, {options.kl} nats, {options.report} other pairs")
    for name, edit in edits.items():
        alpha = en.strength_for(model, tokenizer, edit, priced, kl=options.kl, max_length=128)
        sides = [
            en.evaluation.language_shift(model, tokenizer, side[options.pairs :], edit, alpha=alpha, progress=False)
            for side in (neutral, toxic)
        ]
        paid = en.evaluation.kl(model, tokenizer, read, edit, alpha=alpha, max_length=128, progress=False).mean
        gains = [(each.plain_nats - each.nats, each.tokens) for each in sides]
        print(f"  {name:>17}: {shown(gains)} nats gained, {paid:.3f} paid on other documents", flush=True)


def shown(gains: list[tuple[np.ndarray, np.ndarray]]) -> str:
    """The contrast and its interval over pairs."""
    drawn = np.random.default_rng(0).integers(len(gains[0][0]), size=(2000, len(gains[0][0])))
    (a, n), (b, m) = gains
    values = a[drawn].sum(1) / n[drawn].sum(1) - b[drawn].sum(1) / m[drawn].sum(1)
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{a.sum() / n.sum() - b.sum() / m.sum():+.3f} [{low:+.3f}, {high:+.3f}]"


def lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--layer", type=int, help="the middle one by default")
    parser.add_argument("--kl", type=float, default=0.1)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--report", type=int, default=200)
    parser.add_argument("--documents", type=int, default=30)
    return parser.parse_args()


if __name__ == "__main__":
    main()
