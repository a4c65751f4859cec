"""Time capturing z of all heads at the last token: `python bench_capture.py DATA.jsonl.gz TOKENIZER_DIR [N]`.

A random Llama of 8 layers x 512 on N texts (512 by default) in a seeded shuffle, each way in turn in one process: the
bare model without its head over length-sorted batches of 32; `collect`; TransformerLens's `run_with_cache` over batches
of 32 in the given order.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from entangle.activations import collect
from entangle.activations.batching import pad
from entangle.models import Atlas


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(data: str, tokenizer_dir: str, n: int = 512) -> None:
    with gzip.open(data, "rt") as file:
        texts = [json.loads(line)["text"] for line in file]
    random.Random(0).shuffle(texts)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = tokenizer(texts[:n])["input_ids"]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
    )
    model = LlamaForCausalLM(config).eval()
    Atlas(model)
    lengths = [len(row) for row in rows]
    print(
        f"{n} texts, median length {sorted(lengths)[n // 2]}, longest {max(lengths)}, {torch.get_num_threads()} threads"
    )

    def batches(order: list[int]) -> list[dict[str, torch.Tensor]]:
        parts = [order[i : i + 32] for i in range(0, n, 32)]
        names = ("input_ids", "attention_mask")
        return [{name: pad([rows[i] for i in part], 0)[name] for name in names} for part in parts]

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches(sorted(range(n), key=lambda i: lengths[i])):
                model.model(**batch, use_cache=False)

    everything = batches(list(range(n)))
    width = max(lengths)
    tokens = pad(rows, 0)
    one = {name: tokens[name][:, :width] for name in ("input_ids", "attention_mask")}

    def ours(**settings: object) -> None:
        collect(model, None, one, sites="z", progress=False, **settings)

    def transformer_lens(bridge: object) -> None:
        with torch.inference_mode():
            for batch in everything:
                _, cache = bridge.run_with_cache(  # type: ignore[attr-defined]
                    batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    names_filter=lambda name: name.endswith("hook_z"),
                )
                last = batch["attention_mask"].sum(1) - 1
                for layer in range(8):
                    cache[f"blocks.{layer}.attn.hook_z"][torch.arange(len(last)), last]

    bare()
    times = {"bare": min(timed(bare), timed(bare)), "collect": min(timed(ours), timed(ours))}
    times["collect, layers 0-3"] = timed(lambda: ours(layers=[0, 1, 2, 3]))
    times["collect, bfloat16"] = timed(lambda: ours(dtype=torch.bfloat16))
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers(directory)
    times["TransformerLens run_with_cache"] = timed(lambda: transformer_lens(bridge))
    for name, seconds in times.items():
        print(f"{name:32s} {seconds:7.2f} s   {seconds / times['bare']:5.2f} x bare")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(x) for x in sys.argv[3:]))
