"""Concepts of more than one dimension: probe, project out what was found, probe again."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.evaluation import refits
from entangle.evaluation.refits import ESTIMATORS, Sample


def nullspace_subspace(
    x: Float[Tensor, "example d"], labels: Any, n_dims: int, *, estimator: str = "logistic"
) -> Float[Tensor, "n_dims d"]:
    """The dimensions a concept can be read from, one after another (Ravfogel et al. 2020).

    Iterated null-space projection: each probe is fitted where the earlier ones' directions have been projected out.
    `subspace_overlap` compares the results of two concepts.

    Args:
        x: Activations.
        labels: 0 or 1 for every example.
        n_dims: How many probes; fewer than d. How many are worth having is for held-out accuracy to say.
        estimator: Which probe. A mean difference leaves nothing for a second one.

    Returns:
        Orthonormal rows, in the order found.

    Raises:
        EntangleError: Labels of one class, an unknown probe, or no direction left to find.
    """
    if not 1 <= n_dims < x.shape[-1]:
        raise EntangleError(f"n_dims must be from 1 to {x.shape[-1] - 1}, not {n_dims}")
    if estimator not in ESTIMATORS:
        raise EntangleError(f"estimator must be one of {sorted(ESTIMATORS)}, not {estimator!r}")
    basis = x.new_zeros(0, x.shape[1]).double()
    centred = (x - x.mean(0)).double()
    for found in range(n_dims):
        left = centred - centred @ basis.T @ basis
        sample = Sample.of("the concept", left.float(), labels)
        direction = refits.full(sample, ESTIMATORS[estimator]).double()
        direction = direction - basis.T @ (basis @ direction)
        scores = left @ direction
        gap = scores[sample.positive].mean() - scores[~sample.positive].mean()
        if not float(gap.abs()) > 1e-4 * float(scores.std()):  # what rounding leaves is no direction
            raise EntangleError(f"nothing linear is left after {found} dimensions; ask for at most that many")
        basis = torch.cat([basis, (direction / direction.norm())[None]])
    return basis.to(x)
