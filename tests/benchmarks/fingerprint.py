"""Seconds a gigabyte of knowing a model by every bit of it, beside hashing the same bytes with the standard library.

`python tests/benchmarks/fingerprint.py --layers 12 --d-model 1024`

A random Llama on the CPU with one thread; the ways take turns, and a line is the median over the turns and its range.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time

import torch
from beside import Parser
from transformers import LlamaConfig, LlamaForCausalLM

from entangle.models import fingerprint


def memory(model: torch.nn.Module) -> list[memoryview]:
    return [p.detach().reshape(-1).view(torch.uint8).numpy().data for p in model.parameters()]


def standard(name: str, model: torch.nn.Module) -> None:
    hasher = hashlib.new(name)
    for octets in memory(model):
        hasher.update(octets)


def one_token(model: torch.nn.Module) -> None:
    with torch.inference_mode():
        model(torch.ones(1, 1, dtype=torch.long))


WAYS = {
    "fingerprint": fingerprint,
    "hashlib.blake2b": lambda model: standard("blake2b", model),
    "hashlib.sha256": lambda model: standard("sha256", model),
    "one token through the model": one_token,
}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"hidden_size": options.d_model, "intermediate_size": 4 * options.d_model, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=options.layers)).eval()
    gigabytes = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(options.turns):
        for name, way in WAYS.items():
            began = time.perf_counter()
            way(model)
            seconds[name].append((time.perf_counter() - began) / gigabytes)
    print(f"{gigabytes:.2f} GB; seconds a gigabyte, median (range):")
    for name, each in seconds.items():
        print(f"{name:30} {statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})")


if __name__ == "__main__":
    main()
