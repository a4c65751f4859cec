"""How long a report of ten concepts takes: `python tests/benchmarks/entanglement_report.py`.

The bootstrap is compared with one refit after another, on a few resamples and extrapolated.
"""

from __future__ import annotations

import time

import torch
from beside import Parser

from entangle.concepts import entanglement_report
from entangle.metrics import bootstrap_counts


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--concepts", type=int, default=10)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--dims", type=int, default=768)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--subspace-dims", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    generator = torch.Generator().manual_seed(0)
    examples = {}
    for concept in range(args.concepts):
        y = torch.arange(args.examples) % 2
        x = torch.randn(args.examples, args.dims, generator=generator)
        examples[f"concept {concept}"] = (x + y[:, None] * torch.randn(args.dims, generator=generator), y)
    directions = torch.stack([x[y == 1].mean(0) - x[y == 0].mean(0) for x, y in examples.values()])

    start = time.perf_counter()
    entanglement_report(
        directions,
        examples,
        estimator="mean_difference",
        n_resamples=args.resamples,
        n_permutations=args.resamples,
        subspace_dims=args.subspace_dims,
    )
    whole = time.perf_counter() - start

    few = 10
    counts = bootstrap_counts(args.examples, few).long()
    start = time.perf_counter()
    for own in counts:
        for x, y in examples.values():
            rows, labels = x.repeat_interleave(own, 0), y.repeat_interleave(own)
            rows[labels == 1].mean(0) - rows[labels == 0].mean(0)
    one_by_one = (time.perf_counter() - start) * args.resamples / few
    print(f"{args.concepts} concepts, {args.examples} x {args.dims}, {args.resamples} resamples and permutations")
    print(f"report {whole:.1f} s; bootstrap refits alone, one after another: {one_by_one:.1f} s")


if __name__ == "__main__":
    main()
