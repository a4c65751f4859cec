"""How fast nearest partners are, beside the plain full matrix: `python tests/benchmarks/metrics.py`.

Each is timed in turn within one repeat, and a ratio is the median over repeats. Of a large dictionary the full matrix
is timed on a slice of its rows (`--slice`) and extrapolated; nearest partners are found for all of them.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable

import torch
from beside import Parser

from entangle.metrics import nearest_partners, unit_vectors


def seconds(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def full_matrix(w: torch.Tensor, side: int, rows: int) -> None:
    """Every product of two blocks among the first rows and all, and nothing done with it."""
    for i in range(0, rows, side):
        for j in range(0, len(w), side):
            w[i : i + side] @ w[j : j + side].T


def peak_bytes(device: str) -> int:
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--dims", type=int, default=768)
    parser.add_argument("--slice", type=int, help="rows of the full matrix that are timed; all by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--side", type=int, help="of the full matrix's blocks; 2,048, or 16,384 on a GPU, by default")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    side = args.side or (2048 if args.device == "cpu" else 16_384)
    rows = min(args.slice or args.features, args.features)

    generator = torch.Generator(args.device).manual_seed(0)
    w = torch.randn(args.features, args.dims, generator=generator, device=args.device)
    nearest_partners(w[: min(4096, args.features)])  # load what loads late
    unit_vectors(w[:2])
    before = peak_bytes(args.device)
    times = []
    for _ in range(args.repeats):
        one, ten = (seconds(lambda k=k: nearest_partners(w, k), args.device) for k in (1, 10))
        above = (peak_bytes(args.device) - before) / 2**30
        full = seconds(lambda: full_matrix(w, side, rows), args.device) * args.features / rows
        times.append((full, one, ten))
    full, one, ten = (statistics.median(column) for column in zip(*times, strict=True))
    pairs = args.features**2 * args.dims  # multiplications and additions of every pair once
    print(f"{args.features} x {args.dims}, {args.device}, {args.threads} threads, blocks of {side}")
    print(f"full matrix {full:.2f} s{'' if rows == args.features else f' (from {rows} rows)'}")
    print(f"nearest     {one:.2f} s, ratio {statistics.median(t[1] / t[0] for t in times):.3f}")
    print(f"nearest ten {ten:.2f} s, ratio {statistics.median(t[2] / t[0] for t in times):.3f}")
    print(f"{pairs / one / 1e12:.3f} TFLOP/s of the pairs needed (full matrix: {2 * pairs / full / 1e12:.3f} of all)")
    print(f"peak memory above the input {above:.2f} GiB, where the input is {w.nbytes / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
