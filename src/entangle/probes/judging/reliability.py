"""How well a direction can be told: the cosine between those found on two halves of the examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.statistics import Estimate
from entangle.probes.estimators import make_probe
from entangle.probes.inputs import Cells, encode_groups, encode_labels
from entangle.probes.linear import BLOCK_BYTES
from entangle.probes.solving.solvers import warn_unconverged


def split_half(
    x: Float[Tensor, "example *grid feature"] | npt.ArrayLike,
    y: Any,
    *,
    probe: str | Any = "mean_difference",
    n_splits: int = 20,
    groups: Any = None,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """How well a direction survives being fitted on other examples: the cosine between directions of two random halves.

    Directions of two halves without any signal are at `1 / sqrt(feature)` on average in size; a half has fewer examples
    than the whole, so the whole's direction is steadier than this says.

    Args:
        x: Activations.
        y: One label per example, two classes.
        probe: As in `fit_probes`.
        n_splits: Random divisions into halves.
        groups: A group per example; halves take whole groups.
        level: Share of the divisions between low and high.
        seed: Seed of the divisions.

    Returns:
        The mean cosine over the divisions and their quantiles, each shaped like the grid. A warning counts probes that
        did not converge.

    Example:
        >>> cosine = en.probes.split_half(acts["resid_post"], labels, n_splits=10)
        >>> cosine.value.shape, bool((cosine.value > 0.5).all())
        (torch.Size([2]), True)
    """
    cells = Cells(x)
    codes, classes = encode_labels(y, cells.n_examples)
    if len(classes) != 2:
        raise EntangleError(f"split-half robustness is of one direction: two classes are needed, not {len(classes)}")
    units = encode_groups(groups, cells.n_examples)
    rng = np.random.default_rng(seed)
    halves = [_halves(codes, units, rng) for _ in range(n_splits)]
    estimator = make_probe(probe)
    unconverged = 0
    cosines = torch.empty(n_splits, cells.n_cells, dtype=torch.float64)
    for start, stop in cells.blocks(BLOCK_BYTES):
        rows = cells.read(start, stop)
        for number, pair in enumerate(halves):
            solutions = [estimator.solver(rows[:, half], classes)(codes[half][:, None]) for half in pair]
            unconverged += sum(int((~solution.converged).sum()) for solution in solutions)
            first, second = (solution.coef[:, 0, 0] for solution in solutions)
            cosines[number, start:stop] = torch.nn.functional.cosine_similarity(first, second)
    warn_unconverged(unconverged, 2 * n_splits * cells.n_cells, "probes of halves")
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    parts = [cosines.mean(0), *torch.quantile(cosines, tails, dim=0)]
    return Estimate(*(part.reshape(cells.grid) for part in parts))


def _halves(codes: Tensor, units: Tensor | None, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Two halves, of each class if there are no groups."""
    side = np.zeros(len(codes), bool)
    if units is None:
        for code in range(int(codes.max()) + 1):
            members = rng.permutation(np.flatnonzero(codes.numpy() == code))
            side[members[: len(members) // 2]] = True
    else:
        names = rng.permutation(int(units.max()) + 1)
        side = np.isin(units.numpy(), names[: len(names) // 2])
    first = torch.from_numpy(side)
    for half in (first, ~first):
        if len(set(codes[half].tolist())) < int(codes.max()) + 1:
            raise EntangleError("a half has examples of one class only; give more examples or smaller groups")
    return first, ~first
