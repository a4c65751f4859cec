"""How much directions lie along one another: per feature, for the set, and as a graph.

All are blind to what the directions do to the model, and to how they were found: noisy estimates of one direction lie
apart, and in few dimensions unrelated directions are close. Read every value beside its null (`metrics.nulls`).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.neighbours import nearest_partners
from entangle.metrics.vectors import DirectionsLike, unit_vectors


def entanglement(directions: DirectionsLike) -> Float[Tensor, " feature"]:
    """Entanglement of each feature: E_i = max over j != i of |cos(v_i, v_j)|.

    Li, Chen, Viegas & Wattenberg (2025, arXiv 2505.04741). 0: orthogonal to all others; 1: along or against another.
    Unchanged by rotating the space and by scaling or flipping any direction; a duplicate has 1. Differentiable.

    Args:
        directions: `[feature, d]`, two or more; up to millions (see `nearest_partners`, which also names the partner).

    Returns:
        One value in [0, 1] per feature.

    What it cannot tell: whether the value is more than chance (`random_entanglement_cdf`), more than the noise of the
    estimates (`entanglement_report`), or felt by the model (`cross_talk`).

    Example:
        >>> en.metrics.entanglement(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
        tensor([0.6000, 0.8000, 0.8000])
        >>> en.metrics.entanglement(directions).round(decimals=1)  # rudeness, tense, sentiment
        tensor([0.3000, 0.4000, 0.4000])
    """
    return nearest_partners(directions, 1).cosine[:, 0].abs()


def coherence(directions: DirectionsLike) -> Float[Tensor, ""]:
    """The largest absolute cosine of any pair (Donoho & Huo 2001); at least `coherence_bound`.

    Example:
        >>> en.metrics.coherence(torch.eye(3)), en.metrics.coherence(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
        (tensor(0.), tensor(0.6000))
    """
    return entanglement(directions).max()


def babel(directions: DirectionsLike, max_order: int | None = None) -> Float[Tensor, " order"]:
    """Cumulative coherence: the largest sum of absolute cosines between one feature and m others, for m = 1, 2, ...

    The Babel function of Tropp (2004, "Greed is good"). The first is the coherence; m * coherence bounds the m-th.
    Where babel(m) + babel(m - 1) < 1, any m features can be read apart by basis pursuit (ibid.).

    Args:
        directions: `[feature, d]`, two or more.
        max_order: The largest m; all of `1 ... feature - 1` by default.

    Returns:
        babel(1) ... babel(max_order), increasing.

    Example:
        >>> angles = torch.arange(5) * torch.pi / 5
        >>> en.metrics.babel(torch.stack([angles.cos(), angles.sin()], dim=1))  # a pentagon of lines
        tensor([0.8090, 1.6180, 1.9271, 2.2361])
    """
    n = len(unit_vectors(directions, at_least=2))
    nearest = nearest_partners(directions, n - 1 if max_order is None else max_order)
    return nearest.cosine.abs().cumsum(1).amax(0)


def interference(directions: DirectionsLike, *, neighbours: int | None = None) -> Float[Tensor, " feature"]:
    """Squared cosine of each feature with the others: summed over all, or meaned over the nearest few.

    The sum is the variance that a read-out of feature i picks up from the others when each is independently present
    with unit variance (Elhage et al. 2022). By Welch (1974) its mean over features is at least N / M - 1.

    Args:
        directions: `[feature, d]`, two or more.
        neighbours: Mean over this many nearest partners instead of the sum over all.

    Returns:
        One value per feature, at least 0.

    Example:
        >>> en.metrics.interference(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
        tensor([0.3600, 1.0000, 0.6400])
    """
    if neighbours is not None:
        return nearest_partners(directions, neighbours).cosine.square().mean(1)
    unit = unit_vectors(directions, at_least=2)
    wide = unit.double()  # 1 is taken off, which may be nearly all of it
    frame = wide.T @ wide  # sum_j (v_i . v_j)^2 = v_i' (sum_j v_j v_j') v_i: linear in the number of features
    own = wide.square().sum(1).square()
    return ((wide @ frame) * wide).sum(1).sub(own).clamp(min=0).to(unit)


def clusters(directions: DirectionsLike, threshold: float, *, block: int = 4096) -> Int[Tensor, " feature"]:
    """Connected groups of the graph that joins two features where their absolute cosine exceeds `threshold`.

    Args:
        directions: `[feature, d]`.
        threshold: In [0, 1).
        block: Features looked at together.

    Returns:
        A group number per feature, 0 for the largest group, then by size.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]])
        >>> en.metrics.clusters(rows, threshold=0.5)
        tensor([0, 0, 1])
    """
    if not 0 <= threshold < 1:
        raise EntangleError(f"threshold is an absolute cosine in [0, 1), not {threshold}")
    unit = unit_vectors(directions).detach()
    n = len(unit)
    blocks = [
        ((unit[i : i + block] @ unit[j : j + block].T).abs() > threshold).nonzero().cpu() + torch.tensor([i, j])
        for i in range(0, n, block)
        for j in range(i, n, block)
    ]
    pairs = torch.cat(blocks).numpy()
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    by_size = np.argsort(-np.bincount(group), kind="stable")
    return torch.from_numpy(np.argsort(by_size)[group])
