"""Directions of concepts that occur together: what is left of their cosine once each is held fixed for the other."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from entangle.errors import EntangleError


def conditional_cosines(
    x: Float[Tensor, "example d"],
    labels: Shaped[Tensor, "example concept"],
    weights: Float[Tensor, "resample example"] | None = None,
) -> Float[Tensor, "concept concept"] | Float[Tensor, "resample concept concept"]:
    """Cosine of each pair of concepts' directions at fixed values of the other concept.

    Where concepts co-occur, the mean difference of one contains part of the other's, and the two directions look alike
    whatever the model does. Here both directions of a pair are the coefficients of one regression of the activations on
    both labels (Frisch & Waugh 1933; for uncorrelated labels, the mean differences). With covariance s of two labels
    and m_i the covariance of label i with the activations, they are s_jj m_i - s_ij m_j and s_ii m_j - s_ij m_i.

    This definition is the library's own. What it guards against is that co-occurring features are placed along one
    another because they co-occur (Prieto et al. 2026, arXiv 2603.09972, "From data statistics to feature geometry").

    Args:
        x: Activations.
        labels: 0/1 (or any numbers) for every concept on the same examples.
        weights: Weights of the examples for each resample, as `bootstrap_counts` gives them.

    Returns:
        Signed cosines, 1 on the diagonal, NaN for labels that determine one another; with a leading resample axis when
        there are weights.

    What it cannot tell: it removes linear dependence between two labels only; a third, unlabelled concept may tie them.

    Example:
        >>> a, b = torch.randn(2, 2000)
        >>> other = (a + 0.5 * b > 0).float()  # a label that often goes with a > 0
        >>> x = torch.stack([a, b], dim=1)
        >>> labels = torch.stack([(a > 0).float(), other], dim=1)
        >>> en.metrics.conditional_cosines(x, labels)[0, 1].round(decimals=1)
        tensor(-0.2000, dtype=torch.float64)
    """
    y = labels.double()
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise EntangleError(
            f"needs activations [example, d] and labels [example, concept], not {tuple(x.shape)} and {tuple(y.shape)}"
        )
    x = x.double() - x.double().mean(0)  # for rounding's sake
    if weights is None:
        return _of_means(*_moments(x, y, torch.ones_like(y[:, 0])[None]))[0]
    if weights.ndim != 2 or weights.shape[1] != len(x):
        raise EntangleError(f"weights must be [resample, {len(x)}], not {tuple(weights.shape)}")
    blocks = torch.split(weights.to(y), 128)
    return torch.cat([_of_means(*_moments(x, y, block)) for block in blocks])


def _moments(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of every resample: covariances of the labels, and inner products of their covariances with the activations."""
    share = weights / weights.sum(1, keepdim=True)
    y = y - y.mean(0)
    weighted = share[:, None] * y.T
    mean = weighted.sum(2)
    of_labels = weighted @ y - mean[:, :, None] * mean[:, None]
    means = weighted @ x - mean[:, :, None] * (share @ x)[:, None]
    return of_labels, means @ means.mT


def _of_means(
    s: Float[Tensor, "resample concept concept"], m: Float[Tensor, "resample concept concept"]
) -> Float[Tensor, "resample concept concept"]:
    # The regression of a pair is a 2 x 2 system; all cosines follow from inner products of the m alone.
    own, k = s.diagonal(dim1=1, dim2=2), m.diagonal(dim1=1, dim2=2)
    a, b, c, d = own[:, :, None], own[:, None], k[:, :, None], k[:, None]
    inner = a * b * m - s * (a * d + b * c) + s.square() * m
    square = b.square() * c - 2 * s * b * m + s.square() * d
    cosine = inner / (square * square.mT).clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    dependent = s.square() > (1 - 1e-9) * a * b
    cosine = cosine.clamp(-1, 1).masked_fill(dependent, torch.nan)
    return cosine.masked_fill(torch.eye(s.shape[1], dtype=torch.bool, device=s.device), 1)
