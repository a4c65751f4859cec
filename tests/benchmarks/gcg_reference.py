"""Our attack beside nanogcg's, on the same model, prompts, targets and budget.

    pip install --no-deps nanogcg==0.3.0    # in an environment of its own: it asks for transformers <= 4.47.1
    python tests/benchmarks/gcg_reference.py ../shared/models/olmo2-4m-toxic10

With transformers 5 nanogcg fails on its cache of the prompt ("'DynamicCache' object is not subscriptable"), so it runs
without. Printed for each prompt: the loss of nanogcg's best suffix by its own account and by ours, which must agree,
our best loss, and the seconds of both.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import nanogcg
import torch
from beside import Parser

from entangle.evaluation import gcg
from entangle.evaluation.language.gcg import _Search
from entangle.models.loading import load

PROMPTS = ("The mayor said that", "My neighbour told me that", "She wrote to the newspaper because")
TARGET = " you are wrong"
LENGTH, WIDTH, TOP_K = 10, 64, 64


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    model, tokenizer = load(options.model)
    rows = []
    for prompt in PROMPTS:
        for seed in range(options.seeds):
            rows.append(compare(model, tokenizer, prompt, seed, options.steps))
            print(json.dumps(rows[-1]))
    for name in ("theirs", "ours", "their_seconds", "our_seconds"):
        print(name, sum(row[name] for row in rows) / len(rows))
    print("largest disagreement about one suffix", max(abs(row["theirs"] - row["by_our_account"]) for row in rows))


def compare(model, tokenizer, prompt: str, seed: int, steps: int) -> dict[str, object]:
    tokenizer.chat_template = None
    began = time.perf_counter()
    config = nanogcg.GCGConfig(
        num_steps=steps, search_width=WIDTH, topk=TOP_K, seed=seed, use_prefix_cache=False, verbosity="ERROR",
        optim_str_init=" ".join("x" * LENGTH),
    )  # fmt: skip
    theirs = nanogcg.run(model, tokenizer, prompt, TARGET, config)
    middle = time.perf_counter()
    ours = gcg(model, tokenizer, prompt, TARGET, length=LENGTH, steps=steps, width=WIDTH, top_k=TOP_K, seed=seed)
    end = time.perf_counter()
    search = _Search(model, tokenizer, prompt, TARGET, False)
    suffix = torch.tensor(tokenizer(theirs.best_string, add_special_tokens=False)["input_ids"])
    return {
        "prompt": prompt,
        "theirs": theirs.best_loss,
        "by_our_account": float(search.losses(suffix[None])[0]),
        "ours": ours.loss,
        "their_seconds": middle - began,
        "our_seconds": end - middle,
    }


if __name__ == "__main__":
    main()
