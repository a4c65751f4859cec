"""How fast the batched probes are, beside a loop over scikit-learn: `python tests/benchmarks/probes.py`.

Activations are made: features with a spectrum over two orders of magnitude, rotated and away from the origin, as in a
residual stream. scikit-learn is timed on a few of the cells (`--sample`) and its time for all of them is in proportion;
so is probekit's `fit_logistic_batch`, where that is installed. `--growth` times halves and quarters of the problem.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from beside import Parser
from sklearn.linear_model import LogisticRegression

from entangle.probes import LogisticProbe, fit_probes


def activations(n_cells: int, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`[example, cell, feature]` and labels that about a third of the cells know something of."""
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(n, n_cells, d)
    scale = torch.logspace(0.5, -1.5, d)
    labels = torch.randint(2, (n,), generator=generator)
    for cell in range(n_cells):
        rotation = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
        latent = torch.randn(n, d, generator=generator) + (cell % 3 == 0) * torch.linspace(0, 0.2, d) * labels[:, None]
        x[:, cell] = latent * scale @ rotation + torch.randn(d, generator=generator)
    return x, labels


def timed(run: Callable[[], object], repeats: int) -> tuple[float, object]:
    """Median seconds over repeats, and the last result."""
    seconds, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def objective(coef: np.ndarray, intercept: float, x: np.ndarray, y: np.ndarray) -> float:
    scores = x.astype(np.float64) @ coef + intercept
    return float(0.5 * coef @ coef + (np.logaddexp(0, scores) - y * scores).sum())


def beside_probekit(x: torch.Tensor, y: torch.Tensor, cells: np.ndarray, probe: LogisticProbe, seconds: float) -> None:
    """probekit at the same objective, raw features and free intercept, on some of the cells."""
    try:
        from probekit.fitters.batch.logistic import fit_logistic_batch
    except ImportError:
        print("  probekit is not installed")
        return
    rows = x[:, cells].transpose(0, 1).contiguous()
    theirs, found = timed(lambda: fit_logistic_batch(rows, y.float(), normalize=False), 1)
    excess = [
        objective(found.weights[i].astype(np.float64), float(found.biases[i]), rows[i].numpy(), y.numpy())
        / objective(probe.coef_[cell], float(probe.intercept_[cell]), rows[i].numpy(), y.numpy())
        - 1
        for i, cell in enumerate(cells)
    ]
    theirs *= x.shape[1] / len(cells)
    print(f"  probekit, in proportion from {len(cells)} cells: {theirs:.1f} s, {theirs / seconds:.0f} x")
    print(f"  probekit's objective above ours, relative: {min(excess):.1e} to {max(excess):.1e}")


def growth(x: torch.Tensor, y: torch.Tensor, repeats: int) -> None:
    """Seconds for quarters, halves and all of the cells, and of the examples."""
    n, cells = x.shape[:2]
    for part in (4, 2, 1):
        fewer_cells, _ = timed(lambda: LogisticProbe().fit(x[:, : cells // part], y), repeats)  # noqa: B023
        fewer_rows, _ = timed(lambda: LogisticProbe().fit(x[: n // part], y[: n // part]), repeats)  # noqa: B023
        print(f"  {cells // part} cells: {fewer_cells:.2f} s; {n // part} examples: {fewer_rows:.2f} s")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--cells", type=int, default=256)
    parser.add_argument("--examples", type=int, default=8960)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--sample", type=int, default=6, help="cells that scikit-learn fits")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--permutations", type=int, default=100, help="0 leaves the null out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--growth", action="store_true", help="only time parts of the problem")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x, y = activations(args.cells, args.examples, args.features)
    on_device = x.to(args.device)
    timed(lambda: LogisticProbe().fit(on_device[:, :8], y), 1)
    if args.growth:
        growth(on_device, y, args.repeats)
        return
    ours, probe = timed(lambda: LogisticProbe().fit(on_device, y), args.repeats)
    print(
        f"{args.cells} cells x {args.examples} examples x {args.features} features, {args.threads} threads, "
        f"{args.device}"
    )
    print(
        f"  entangle, all cells: {ours:.2f} s in {probe.n_iter_} steps, all converged: {bool(probe.converged_.all())}"
    )

    cells = np.linspace(0, args.cells - 1, args.sample).astype(int)
    arrays = [x[:, cell].contiguous().numpy() for cell in cells]
    labels = y.numpy()
    theirs, models = timed(lambda: [LogisticRegression(max_iter=1000).fit(a, labels) for a in arrays], 1)
    theirs *= args.cells / args.sample
    excess = [
        objective(model.coef_[0].astype(np.float64), float(model.intercept_[0]), a, labels)
        / objective(probe.coef_[cell], float(probe.intercept_[cell]), a, labels)
        - 1
        for model, a, cell in zip(models, arrays, cells, strict=True)
    ]
    print(f"  scikit-learn, in proportion from {args.sample} cells: {theirs:.1f} s, {theirs / ours:.0f} x")
    print(f"  scikit-learn's objective above ours, relative: {min(excess):.1e} to {max(excess):.1e}")
    beside_probekit(x, y, cells, probe, ours)
    if args.permutations:
        options = {"progress": False, "device": args.device}
        plain, _ = timed(lambda: fit_probes(x, y, n_permutations=0, **options), args.repeats)
        null, _ = timed(lambda: fit_probes(x, y, n_permutations=args.permutations, **options), 1)
        print(
            f"  fit_probes without a null: {plain:.2f} s; a null of {args.permutations} shuffles adds "
            f"{(null - plain) / plain:.1f} x that"
        )


if __name__ == "__main__":
    main()
