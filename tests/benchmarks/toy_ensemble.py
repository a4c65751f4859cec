"""How much faster 80 transformers train stacked than one after another.

    python tests/benchmarks/toy_ensemble.py [threads]

Prints the processor and wall time of a step, and the ratio of 80 single models to one stack; a study takes 4,000 steps.
The single model is HuggingFace's GPT-2 of the same size on the same twelve weighted rows, so only the stacking differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from beside import Parser

from entangle.toy import MarkovMixture, StackedGPT2

MODELS, STEPS = 80, 4000


def timed(run: Callable[[int], object], steps: int) -> tuple[float, float]:
    """Wall and processor seconds per step, after a warm-up that includes compiling."""
    run(3)
    wall, processor = time.perf_counter(), time.process_time()
    run(steps)
    return (time.perf_counter() - wall) / steps, (time.process_time() - processor) / steps


def stacked(compile: bool) -> Callable[[int], object]:
    rows = torch.stack([MarkovMixture(seed=i % 10).sequences.flatten(0, 1) for i in range(MODELS)])
    model, rng = StackedGPT2(range(MODELS), 4), np.random.default_rng(0)

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return rows, torch.from_numpy(rng.multinomial(64, np.full((MODELS, 12), 1 / 12))).float() / 64

    return lambda steps: model.fit(batch, steps=steps, compile=compile, progress=False)


def single() -> Callable[[int], object]:
    rows = MarkovMixture(seed=0).sequences.flatten(0, 1)
    model, rng = StackedGPT2([0], 4).to_huggingface(0).train(), np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)

    def run(steps: int) -> None:
        for _ in range(steps):
            weight = torch.from_numpy(rng.multinomial(64, np.full(12, 1 / 12))).float() / 64
            logits = model(rows[:, :-1]).logits
            losses = torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none").mean(1)
            optimizer.zero_grad()
            (losses * weight).sum().backward()
            optimizer.step()

    return run


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("threads", type=int, nargs="?", default=1)
    torch.set_num_threads(parser.parse_args().threads)
    one_wall, one_processor = timed(single(), 60)
    print(f"one model: {one_wall * 1e3:.1f} ms a step, {one_processor * 1e3:.1f} ms of processor")
    for compile in (False, True):
        wall, processor = timed(stacked(compile), 60)
        name = f"{MODELS} stacked, {'compiled' if compile else 'eager'}"
        print(f"{name}: {wall * 1e3:.1f} ms a step, {processor * 1e3:.1f} ms of processor")
        print(f"  {STEPS} steps take {wall * STEPS:.0f} s, {processor * STEPS:.0f} s of processor")
        faster, cheaper = MODELS * one_wall / wall, MODELS * one_processor / processor
        print(f"  {faster:.1f} times as fast as a loop over single models, {cheaper:.1f} times in processor time")
