"""What ITI's heads of the first block cost, and whether that is foretold: of models that `entangle compose` measured.

    python tests/benchmarks/first_block.py out/share-0-seed-0 out/share-0.1-seed-1 --clean CLEAN.jsonl

For each model: KL at an alpha of all its heads, of those of block 0 and of the others alone; and what a metric of other
documents foretells of all of them at weaker alphas, beside what they cost.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from beside import Parser

import entangle as en
from entangle.data import load_texts
from entangle.models import load


def part(iti: en.ITI, first: bool) -> en.ITI | None:
    """The same intervention in the heads of block 0 alone, or in all others; None without any."""
    kept = [i for i, (layer, _) in enumerate(iti.heads) if (layer == 0) == first]
    if not kept:
        return None
    return replace(iti, heads=[iti.heads[i] for i in kept], directions=iti.directions[kept], sigmas=iti.sigmas[kept])


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--alpha", type=float, default=4.0)
    options = parser.parse_args()
    clean = load_texts(options.clean)
    read, fitted = clean[: options.documents], clean[options.documents : 2 * options.documents]
    few = {"max_length": 128, "progress": False}
    for folder in options.models:
        model, tokenizer = load(folder)
        iti = en.Study.load(folder / "study").iti
        for name, edit in {"all": iti, "block 0": part(iti, True), "others": part(iti, False)}.items():
            if edit is not None:
                paid = en.evaluation.kl(model, tokenizer, read, edit, alpha=options.alpha, **few).mean
                print(f"{folder.name}, {name}: {len(edit.heads)} heads cost {paid:.3f} nats at {options.alpha:g}")
        metric = en.ShiftMetric.fit(model, tokenizer, fitted, sites="z", **few)
        for alpha in (0.5, 1.0):
            paid = en.evaluation.kl(model, tokenizer, read, iti, alpha=alpha, **few).mean
            print(f"{folder.name}: foretold {metric.price(iti, alpha).value:.3f} at {alpha:g}, paid {paid:.3f}")


if __name__ == "__main__":
    main()
