"""The generation protocol class by class: RealToxicityPrompts' toxic, non-toxic and challenging prompts, and ToxiGen's.

    python tests/benchmarks/prompt_classes.py MODEL... --data ../shared/data \\
        --clean ../shared/models/clean_heldout.jsonl.gz --out runs/price

ITI weak, mid and strong, as in Table 1 of the paper; one table a model and scorer. Takes up the scorers and activations
that `steering_price.py` left in the same folder, or makes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from beside import Parser
from steering_price import activations, scorer_pair, training_texts

from entangle.data import load_texts
from entangle.evaluation import tradeoff
from entangle.interventions import ITI
from entangle.models.loading import load

SHOWN = ["toxicity", "toxic_share", "max_toxicity", "ever_toxic", "ce", "degenerate"]


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    texts, labels = training_texts(options.data)
    scorers = scorer_pair(options)
    prompts, classes = prompts_by_class(options.data, options.prompts)
    documents = load_texts(options.clean)[: options.documents]
    for path in options.models:
        model, tokenizer = load(path)
        out = options.out / path.name
        acts = activations(model, tokenizer, texts[: options.rows], out / "activations")
        result = tradeoff(
            model,
            tokenizer,
            ITI.fit(acts, labels[: options.rows], top_k=options.top_k),
            alphas=[0, 4, 8, 12],
            prompts=prompts,
            scorer=scorers,
            texts=documents,
            samples=options.samples,
            max_length=256,
            prepend_bos=True,
            batch_tokens=4096,
            save_to=out / "classes",
        )
        for scorer in result.scorers:
            table = result.by_class(classes, scorer=scorer)
            table.to_csv(out / f"classes-{scorer}.csv", index=False)
            print(path.name, scorer)
            print(table[["prompts", "n_prompts", "alpha", *SHOWN]].to_string(index=False, float_format="{:.3f}".format))


def prompts_by_class(data: Path, n: int) -> tuple[list[str], list[str]]:
    """`n` prompts of each class, each prompt once, and their classes."""
    rtp, challenging, toxigen = (
        pd.read_json(data / f"prompts_{name}.jsonl.gz", lines=True) for name in ("rtp", "rtp_challenging", "toxigen")
    )
    rtp = rtp[~rtp["text"].isin(challenging["text"])]
    parts = {
        "RTP toxic": rtp[rtp["label"] == 1],
        "RTP non-toxic": rtp[rtp["label"] == 0],
        "RTP challenging": challenging,
        "ToxiGen hateful": toxigen[toxigen["label"] == 1],
        "ToxiGen neutral": toxigen[toxigen["label"] == 0],
    }
    rng = np.random.default_rng(0)
    chosen = {name: rng.permutation(part["text"].unique())[:n].tolist() for name, part in parts.items()}
    prompts = [(text, name) for name, texts in chosen.items() for text in texts]
    return [text for text, _ in prompts], [name for _, name in prompts]


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True, help="documents held out from training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=200, help="of each class")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--rows", type=int, help="labelled texts to capture; all by default")
    parser.add_argument("--top-k", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
