"""How fast nearest partners are, beside the plain full matrix: `python tests/benchmarks/metrics.py`.

Each is timed in turn within one repeat, and a ratio is the median over repeats.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable

import torch

from entangle.metrics import nearest_partners, unit_vectors


def seconds(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def full_matrix(w: torch.Tensor, side: int) -> None:
    """Every product of two blocks, and nothing done with it."""
    for i in range(0, len(w), side):
        for j in range(0, len(w), side):
            w[i : i + side] @ w[j : j + side].T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--dims", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    w = unit_vectors(torch.randn(args.features, args.dims, generator=torch.Generator().manual_seed(0)).to(args.device))
    max_bytes = 1 << (24 if args.device == "cpu" else 30)
    side = int((max_bytes / w.element_size()) ** 0.5)
    nearest_partners(w[: min(4096, args.features)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = [
        [
            seconds(lambda: full_matrix(w, side), args.device),
            seconds(lambda: nearest_partners(w, 1), args.device),
            seconds(lambda: nearest_partners(w, 10), args.device),
        ]
        for _ in range(args.repeats)
    ]
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    full, one, ten = (statistics.median(column) for column in zip(*rows, strict=True))
    tflops = args.features**2 * args.dims / one / 1e12
    print(f"{args.features} x {args.dims}, {args.device}, {args.threads} threads, blocks of {side}")
    print(f"full matrix {full:.2f} s, nearest {one:.2f} s, nearest ten {ten:.2f} s")
    print(f"ratio, nearest    {statistics.median(r[1] / r[0] for r in rows):.2f}")
    print(f"ratio, nearest 10 {statistics.median(r[2] / r[0] for r in rows):.2f}")
    print(f"nearest: {tflops:.3f} TFLOP/s of pairs needed; peak memory above the input {above:.2f} GB")


if __name__ == "__main__":
    main()
