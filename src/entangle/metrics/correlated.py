"""Directions of concepts that occur together: what is left of their cosine once each is held fixed for the other."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from entangle.errors import EntangleError


def conditional_cosines(
    x: Float[Tensor, "example d"], labels: Shaped[Tensor, "example concept"]
) -> Float[Tensor, "concept concept"]:
    """Cosine of each pair of concepts' directions at fixed values of the other concept.

    Where concepts co-occur, the mean difference of one contains part of the other's, and the two directions look alike
    whatever the model does. Here both directions of a pair are the coefficients of one regression of the activations on
    both labels (Frisch & Waugh 1933; for uncorrelated labels, the mean differences).

    Args:
        x: Activations.
        labels: 0/1 (or any numbers) for every concept on the same examples.

    Returns:
        Signed cosines, 1 on the diagonal, NaN for labels that determine one another.

    What it cannot tell: it removes linear dependence between two labels only; a third, unlabelled concept may tie them.
    """
    y = labels.double()
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise EntangleError(
            f"needs activations [example, d] and labels [example, concept], not {tuple(x.shape)} and {tuple(y.shape)}"
        )
    centred = y - y.mean(0)
    of_labels = centred.T @ centred
    means = centred.T @ (x.double() - x.double().mean(0))
    of_means = means @ means.T
    # The regression of a pair is a 2 x 2 system; all cosines follow from inner products of `means` alone.
    own, k = of_labels.diagonal(), of_means.diagonal()
    s, m = of_labels, of_means
    inner = own[:, None] * own * m - s * (own * k[:, None] + own[:, None] * k) + s.square() * m
    square = own.square() * k[:, None] - 2 * s * own * m + s.square() * k
    cosine = inner / (square * square.T).clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    dependent = s.square() > (1 - 1e-9) * own[:, None] * own
    cosine = cosine.clamp(-1, 1).masked_fill(dependent, torch.nan)
    return cosine.masked_fill(torch.eye(len(cosine), dtype=torch.bool, device=cosine.device), 1)
