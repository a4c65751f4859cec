"""Fitting a grid of probes: a block of cells at a time, true labels and their permutations together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from entangle.data import same_index
from entangle.errors import EntangleError
from entangle.probes.estimators import make_probe
from entangle.probes.grid import METRICS, ProbeGrid
from entangle.probes.inputs import Cells, encode_groups, encode_labels
from entangle.probes.judging.null import permuted_labels
from entangle.probes.linear import BLOCK_BYTES
from entangle.probes.solving.block import Block
from entangle.probes.splits import Split, three_way
from entangle.progress import progress_bar

PENALTIES = tuple(10.0**power for power in range(-5, 3))
"""Inverse strengths of the penalty that a probe by name chooses from, of standardised features."""
BY_NAME = ("logistic", "svm")
STANDARDISED = (*BY_NAME, "ridge")


def fit_probes(
    x: Float[Tensor, "example *grid feature"] | npt.ArrayLike,
    y: Sequence[Any] | npt.ArrayLike | Tensor,
    *,
    positive: Any = None,
    probe: str | Any = "logistic",
    groups: Sequence[Any] | npt.ArrayLike | Tensor | None = None,
    seed: int = 0,
    split: Split | None = None,
    C: float | Sequence[float] | None = None,
    standardise: bool | None = None,
    n_permutations: int = 100,
    n_resamples: int = 2000,
    level: float = 0.95,
    metric: str = "accuracy",
    layers: Sequence[int] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    broken: Literal["refuse", "mark"] = "refuse",
    progress: bool = True,
) -> ProbeGrid:
    """Fit a linear probe in every cell of a grid, and judge each on examples that neither fitted nor chose it.

    Args:
        x: Activations; anything that can be sliced will do, and is read a block of cells at a time.
        y: One label per example: names, bools or whole numbers. Which of two is class 1, the one that scores above 0
            speak for and that directions point to, is decided by the rules of `entangle.data.labels`.
        positive: The label that is class 1 instead, all others being class 0.
        probe: "logistic", "mean_difference", "lda", "ridge", "svm", one of their estimators with parameters of your
            own, or any linear scikit-learn classifier (fitted cell by cell).
        groups: A group per example (author, document, template...), which stays on one side of the split.
        seed: Seed of split, permutations and resamples.
        split: A split of your own, else `three_way(y, groups=groups, seed=seed)`.
        C: Inverse strength of the penalty (logistic and svm, by name); of several, each cell takes the best on the
            select part, the smallest of equals. By default `PENALTIES`, from 1e-5 to 100.
        standardise: Whether each cell's features are divided by their standard deviation on the fitting rows before the
            penalty is applied, so that it means the same in every layer, site and model; directions come back in raw
            units. The coefficients are those of scikit-learn's `make_pipeline(StandardScaler(), ...)`. By default so
            for "logistic", "svm" and "ridge" by name, and not for an estimator of your own. The others do not depend on
            it.
        n_permutations: Shuffles of the labels for the null; 0 for none.
        n_resamples: Bootstrap resamples for the intervals.
        level: Coverage of the intervals.
        metric: "accuracy" or "auroc": what cells are ranked by and the null is of.
        layers: The layer numbers along the grid's first axis.
        fingerprint: Of the model, kept with the result.
        device: Where to compute; by default where `x` is.
        broken: What becomes of a cell whose activations are not all finite: "refuse" all, or "mark" it. A marked cell
            has no probe (its direction is 0), did not converge, and is in no choice; `.broken` says why.
        progress: Show a progress bar.

    Returns:
        The probes with their held-out scores.

        A cell whose probe converged under no penalty is kept, marked in `.converged` and left out of `.top`.

    Raises:
        EntangleError: Activations that are not finite (with "mark": in every cell), labels of one class, a class
            missing from a part of the split, or a group on both sides of it.

    Example:
        >>> grid = en.fit_probes(acts["z"], labels, layers=acts.layers("z"), progress=False)
        >>> grid.accuracy.shape  # [layer, head], on a fifth of the texts that chose nothing
        torch.Size([2, 4])
        >>> float(grid.accuracy.max()) > float(grid.null.max(0).values.median())
        True
    """
    if broken not in ("refuse", "mark"):
        raise EntangleError(f'broken must be "refuse" or "mark", not {broken!r}')
    if metric not in METRICS:
        raise EntangleError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
    if n_permutations < 0 or n_resamples < 1:
        raise EntangleError(
            f"n_permutations must be 0 or more and n_resamples 1 or more, not {n_permutations} and {n_resamples}"
        )
    cells = Cells(x, device=device)
    if layers is not None and (not cells.grid or len(layers) != cells.grid[0]):
        raise EntangleError(f"layers must number the first axis of the grid {cells.grid}; got {list(layers)}")
    same_index(x=x, y=y, groups=groups)
    codes, classes = encode_labels(y, cells.n_examples, positive=positive)
    units = encode_groups(groups, cells.n_examples)
    split = split if split is not None else three_way(codes, groups=units, seed=seed)
    split.check(codes, units)
    has_penalty = isinstance(probe, str) and probe in BY_NAME
    penalties = sorted(C if isinstance(C, Sequence | np.ndarray) else PENALTIES if C is None else [C])
    if not has_penalty and C is not None:
        raise EntangleError(f"C is for the logistic and svm probes; set the penalty of {probe} on its estimator")
    if not penalties:
        raise EntangleError("C must be a positive number, or several to choose from; got none")
    probes = [make_probe(probe, C=c) for c in penalties] if has_penalty else [make_probe(probe)]
    scaled = isinstance(probe, str) and probe in STANDARDISED if standardise is None else standardise

    order = torch.cat([split.fit, split.select, split.report])
    shuffles = permuted_labels(codes, split, n_permutations, seed=seed, groups=units)
    parts: list[dict[str, Tensor]] = []
    reasons: dict[int, str] = {}
    n_outputs = 1 if len(classes) == 2 else len(classes)
    extra = 4 * min(n_permutations, 25) * n_outputs
    with progress_bar(total=cells.n_cells, desc="probes", unit="cell", disable=not progress) as bar:
        for start, stop in cells.blocks(BLOCK_BYTES, extra):
            rows = cells.read(start, stop, order, broken=reasons if broken == "mark" else None)
            block = Block(rows, split, codes, classes, metric, standardise=scaled)
            parts.append(block.fit(probes, shuffles))
            bar.update(stop - start)
    tensors = {
        name: torch.cat([part[name] for part in parts], dim=1 if name.endswith("scores") or name == "null" else 0)
        for name in parts[0]
    }

    if len(reasons) == cells.n_cells:
        raise EntangleError(reasons[0])
    if reasons:
        tensors["converged"][list(reasons)] = False
    constant = [cell for cell in tensors.pop("constant").nonzero()[:, 0].tolist() if cell not in reasons]
    outputs = () if n_outputs == 1 else (n_outputs,)
    shapes = {
        "coef_": (*cells.grid, *outputs, cells.n_features),
        "intercept_": (*cells.grid, *outputs),
        "gap": cells.grid,
        "converged": cells.grid,
    }
    shapes |= {"C": cells.grid, "null": (n_permutations, *cells.grid)}
    shapes |= {name: (len(tensors[name]), *cells.grid, *outputs) for name in ("selection_scores", "report_scores")}
    settings = {
        "probe": probe if isinstance(probe, str) else repr(probe),
        "C": penalties if has_penalty else [],
        "standardised": scaled,
        "seed": seed,
        "n_resamples": n_resamples,
        "constant_cells": [cells.index(cell) for cell in constant],
        "broken_cells": [[cells.index(cell), reason] for cell, reason in reasons.items()],
    }
    return ProbeGrid(
        **{name: tensors[name].reshape(shape) for name, shape in shapes.items()},
        classes_=classes,
        split=split,
        labels=codes,
        groups=units,
        metric=metric,
        settings=settings | {"level": level},
        layers=None if layers is None else [int(layer) for layer in layers],
        fingerprint=fingerprint,
    )
