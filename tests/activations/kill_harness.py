"""Kill a collect at random moments, resume it, compare with an undisturbed one: `kill_harness.py RUNS DIR SEED`."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaModel

from entangle.activations import Activations, collect


def main(runs: int, directory: Path, seed: int) -> None:
    torch.set_num_threads(1)  # a forked child has no other threads to wait for
    tqdm.set_lock(threading.RLock())  # its own is shared between processes: a killed child would keep it for ever
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaModel(LlamaConfig(**sizes, vocab_size=96, max_position_embeddings=64)).eval()
    ids = torch.randint(3, 96, (60, 12))
    mask = (torch.arange(12) < torch.randint(1, 13, (60, 1))).long()
    texts = {"input_ids": ids, "attention_mask": mask}
    settings = {"sites": ["z", "resid_post"], "tokens": "all", "shard_bytes": 20_000, "progress": False}
    began = time.monotonic()
    undisturbed = collect(model, None, texts, save_to=directory / "undisturbed", **settings)
    duration = time.monotonic() - began
    rng = random.Random(seed)
    kills = unfinished = 0
    for run in range(runs):
        target = directory / f"run-{run}"
        for _ in range(rng.randint(1, 3)):
            child = os.fork()
            if child == 0:
                collect(model, None, texts, save_to=target, **settings)
                os._exit(0)
            time.sleep(rng.uniform(0, duration))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            kills += os.WIFSIGNALED(status)
        try:
            Activations.load(target)
        except ValueError:
            unfinished += 1
        resumed = collect(model, None, texts, save_to=target, **settings)
        again = Activations.load(target)
        for site in ("z", "resid_post"):
            assert torch.equal(resumed[site], undisturbed[site]), f"run {run}: {site} differs"
            assert torch.equal(again[site], resumed[site]), f"run {run}: {site} was not stored as returned"
        assert torch.equal(again.rows, undisturbed.rows), f"run {run}: rows differ"
        assert again.input_ids == undisturbed.input_ids, f"run {run}: tokens differ"
        for path in target.glob(".*"):  # killed between making its workshop and signing it: cleared once it is old
            os.utime(path, (0, 0))
            collect(model, None, texts, save_to=target, **settings)
        left = [path.name for path in target.glob(".*")]
        assert not left, f"run {run}: temporary files are left: {left}"
        shutil.rmtree(target)
    print(
        f"{duration:.2f} s a run; {runs} runs, {kills} kills, {unfinished} left unfinished: 0 corrupt, 0 missing, 0 "
        "duplicate"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
