"""Time and memory of capturing z of all heads at the last token, beside the bare model, TransformerLens and nnsight.

`python tests/benchmarks/capture.py DATA.jsonl.gz TOKENIZER_DIR --nnsight-python PATH`

A random Llama of 8 layers x 512 on texts in a seeded shuffle. Each way has a process of its own, with the same weights
and tokens; they take turns. A ratio is within one turn: its median over the turns, and range. Peak memory is what a
process's resident memory rose by above the loaded model, result included. nnsight runs under a Python of its own, since
it need not agree with this project on versions.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from beside import Parser
from torch import Tensor

N_LAYERS, D_MODEL = 8, 512
Rows = list[list[int]]
Run = Callable[[Rows], Tensor | None]  # the last token's z [text layer d_model], if it is kept


def batches(rows: Rows, order: list[int], size: int = 32) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Indices of some texts, and these padded on the right."""
    for start in range(0, len(order), size):
        part = order[start : start + size]
        lengths = torch.tensor([len(rows[i]) for i in part])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        ids = torch.zeros_like(mask)
        ids[mask.bool()] = torch.tensor([token for i in part for token in rows[i]])
        yield part, {"input_ids": ids, "attention_mask": mask}


def given(rows: Rows) -> list[int]:
    return list(range(len(rows)))


def by_length(rows: Rows) -> list[int]:
    return sorted(given(rows), key=lambda i: len(rows[i]))


def llama(folder: Path):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder).eval()


def bare(folder: Path) -> Run:
    """The model without its head; nothing is kept."""
    model = llama(folder).model

    def run(rows: Rows) -> None:
        with torch.inference_mode():
            for _, batch in batches(rows, by_length(rows)):
                model(**batch, use_cache=False)

    return run


def ours(folder: Path, **settings: object) -> Run:
    from entangle import collect

    model = llama(folder)

    def run(rows: Rows) -> Tensor:
        _, texts = next(batches(rows, given(rows), len(rows)))
        return collect(model, None, texts, sites="z", progress=False, **settings)["z"].flatten(2).float()

    return run


def transformer_lens(folder: Path) -> Run:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder))

    def run(rows: Rows) -> Tensor:
        z = torch.empty(len(rows), N_LAYERS, D_MODEL)
        with torch.inference_mode():
            for part, batch in batches(rows, given(rows)):
                _, cache = bridge.run_with_cache(
                    batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    names_filter=lambda name: name.endswith("attn.hook_z"),
                )
                last = torch.arange(len(part)), batch["attention_mask"].sum(1) - 1
                for layer in range(N_LAYERS):
                    z[part, layer] = cache[f"blocks.{layer}.attn.hook_z"][last].flatten(1)
        return z

    return run


def nnsight(folder: Path, order: Callable[[Rows], list[int]] = given) -> Run:
    """Only the last tokens are saved, and the forward is stopped after the last layer's z."""
    from nnsight import NNsight

    model = NNsight(llama(folder))

    def run(rows: Rows) -> Tensor:
        z = torch.empty(len(rows), N_LAYERS, D_MODEL)
        with torch.inference_mode():
            for part, batch in batches(rows, order(rows)):
                last = torch.arange(len(part)), batch["attention_mask"].sum(1) - 1
                with model.trace(**batch, use_cache=False) as tracer:
                    seen = []
                    for layer in range(N_LAYERS):
                        seen.append(model.model.layers[layer].self_attn.o_proj.input[last])  # noqa: PERF401
                    stacked = torch.stack(seen, 1).save()
                    tracer.stop()
                z[part] = stacked
        return z

    return run


WAYS: dict[str, Callable[[Path], Run]] = {
    "bare, batches of 32 by length": bare,
    "collect": ours,
    "collect, layers 0-3": lambda folder: ours(folder, layers=[0, 1, 2, 3]),
    "collect, bfloat16": lambda folder: ours(folder, dtype=torch.bfloat16),
    "TransformerBridge.run_with_cache": transformer_lens,
    "nnsight, order given": nnsight,
    "nnsight, by length": lambda folder: nnsight(folder, order=by_length),
}


def resident(line: str) -> int:
    """Bytes of this process's resident memory: now (`VmRSS`) or at its highest (`VmHWM`)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(entry.split()[1]) for entry in status.splitlines() if entry.startswith(line))


def work(name: str, folder: Path) -> None:
    """A worker: one run, once warm, for each line it reads, which is the file to leave its numbers in."""
    out, sys.stdout = sys.stdout, sys.stderr
    rows = json.loads((folder / "rows.json").read_text())
    torch.set_num_threads(int(os.environ["THREADS"]))
    run = WAYS[name](folder)
    loaded = resident("VmRSS")
    run(rows[:32])
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
        began = time.perf_counter()
        z = run(rows)
        seconds = time.perf_counter() - began
        peak = resident("VmHWM") - loaded
        if z is not None:
            np.save(line.strip(), z.numpy())
        print(json.dumps({"seconds": seconds, "peak": peak}), file=out, flush=True)


class Worker:
    """The process of one way."""

    def __init__(self, name: str, folder: Path, python: str, threads: int) -> None:
        self.file = folder / f"{name}.npy"
        self.process = subprocess.Popen(
            [python, __file__, "--worker", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "THREADS": str(threads), "OMP_NUM_THREADS": str(threads)},
        )
        self.read()

    def read(self) -> str:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"{self.file.stem} has failed")
        return line

    def run(self) -> dict[str, float]:
        self.process.stdin.write(f"{self.file}\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return json.loads(self.read())


def prepare(folder: Path, data: Path, tokenizer_dir: Path, n: int) -> Rows:
    """The model and the tokens that all ways share."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with gzip.open(data, "rt") as file:
        texts = [json.loads(line)["text"] for line in file]
    random.Random(0).shuffle(texts)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    rows = tokenizer(texts[:n], verbose=False)["input_ids"]
    torch.manual_seed(0)
    sizes = {"hidden_size": D_MODEL, "intermediate_size": 1376, "num_hidden_layers": N_LAYERS, "num_attention_heads": 8}
    config = LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=1024)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "rows.json").write_text(json.dumps(rows))
    return rows


def spread(numbers: list[float], form: str) -> str:
    middle, low, high = (format(x, form) for x in (statistics.median(numbers), min(numbers), max(numbers)))
    return f"{middle} ({low} to {high})"


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="gzipped JSON lines with a text each")
    parser.add_argument("tokenizer", type=Path, help="folder of a HuggingFace tokenizer")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--nnsight-python", help="a Python that has nnsight; left out otherwise")
    parser.add_argument("--only", nargs="*", default=[""], help="ways whose names contain one of these")
    args = parser.parse_args()
    pythons = {name: args.nnsight_python if "nnsight" in name else sys.executable for name in WAYS}
    names = [name for name in WAYS if pythons[name] and any(part in name for part in args.only)]
    with tempfile.TemporaryDirectory() as temporary:
        rows = prepare(Path(temporary), args.data, args.tokenizer, args.texts)
        lengths = sorted(map(len, rows))
        print(
            f"{len(rows)} texts of {sum(lengths)} tokens, median {statistics.median(lengths):.0f}, longest "
            f"{lengths[-1]}; {args.threads} threads"
        )
        workers = {name: Worker(name, Path(temporary), pythons[name], args.threads) for name in names}
        turns = [{name: worker.run() for name, worker in workers.items()} for _ in range(args.turns)]
        kept = {name: np.load(worker.file) for name, worker in workers.items() if worker.file.exists()}
    for name in names:
        seconds = [turn[name]["seconds"] for turn in turns]
        print(f"{name}: {spread(seconds, '.2f')} s, peak {max(turn[name]['peak'] for turn in turns) / 2**20:.0f} MiB")
        for other in ("bare, batches of 32 by length", "collect"):
            if other in names and other != name:
                ratios = [turn[name]["seconds"] / turn[other]["seconds"] for turn in turns]
                print(f"    {spread(ratios, '.3f')} x {other}")
        if name in kept and "collect" in kept and name != "collect":
            ours_z = kept["collect"][:, : kept[name].shape[1]]
            print(f"    differs from collect by {np.abs(kept[name] - ours_z).max() / np.abs(ours_z).max():.1e}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
