"""Two weight-level ways to detoxify a model, as checkpoints for `steering_price.py --checkpoint NAME=DIR`.

    python tests/benchmarks/detoxified_checkpoints.py MODEL... --data ../shared/data --out runs/tuned

SFT: next-token training on the neutral side of ParaDetox pairs. DPO (Rafailov et al. 2023, eq. 7): the neutral side
preferred to the toxic one, beta = 0.1, against the model as it was. Both see the same pairs, in the same order.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
from pathlib import Path

import torch
from beside import Parser
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from entangle.models.loading import load
from entangle.models.rows import encode, pad, pad_id

MAX_LENGTH = 64


def main() -> None:
    options = arguments()
    with gzip.open(options.data / "pairs_paradetox.jsonl.gz", "rt") as file:
        pairs = [(row["neutral"], row["toxic"]) for row in map(json.loads, file)]
    for path in options.models:
        for name, loss in (("sft", sft), ("dpo", dpo)):
            model, tokenizer = load(path)
            tune(model, tokenizer, pairs, loss, options).save_pretrained(options.out / f"{path.name}-{name}")
            tokenizer.save_pretrained(options.out / f"{path.name}-{name}")


def tune(model, tokenizer, pairs, loss, options):
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, options.steps)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(options.seed))
    for step in tqdm(range(options.steps), desc=loss.__name__):
        chosen = [pairs[i] for i in order.roll(-step * options.batch)[: options.batch].tolist()]
        loss(model, reference, tokenizer, chosen).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
    return model.eval()


def sft(model, reference, tokenizer, pairs) -> Tensor:
    logp, tokens = log_likelihood(model, tokenizer, [neutral for neutral, _ in pairs])
    return -logp.sum() / tokens.sum()


def dpo(model, reference, tokenizer, pairs, beta: float = 0.1) -> Tensor:
    texts = [text for side in zip(*pairs, strict=True) for text in side]
    now, _ = log_likelihood(model, tokenizer, texts)
    with torch.no_grad():
        before, _ = log_likelihood(reference, tokenizer, texts)
    neutral, toxic = (now - before).chunk(2)
    return -F.logsigmoid(beta * (neutral - toxic)).mean()


def log_likelihood(model, tokenizer, texts) -> tuple[Tensor, Tensor]:
    """Log-probability of each text, summed over its tokens, and how many they are."""
    batch = pad(encode(tokenizer, texts, max_length=MAX_LENGTH, prepend_bos=True), pad_id(tokenizer))
    targets = batch["input_ids"][:, 1:]
    logp = model(**batch).logits[:, :-1].log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    mask = batch["attention_mask"][:, 1:]
    return (logp * mask).sum(1), mask.sum(1)


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
