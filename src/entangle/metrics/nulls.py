"""What entanglement would be by chance: directions drawn uniformly, or with the activations' own covariance.

For N directions drawn uniformly from the sphere in M dimensions, cos^2 of a pair is Beta(1/2, (M - 1)/2). Given one
direction, its cosines with the others are independent, so E_i has the distribution function F(t)^(N - 1) exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, special
from torch import Tensor

from entangle.errors import EntangleError

Numbers = NDArray[np.float64]


def random_cosine_cdf(value: ArrayLike, n_dims: int) -> Any:
    """Chance that two random directions in `n_dims` dimensions have an absolute cosine of at most `value`.

    Args:
        value: In [0, 1], a number or an array.
        n_dims: M, at least 2.

    Returns:
        Shaped like `value`, in float64.

    Example:
        >>> float(en.metrics.random_cosine_cdf(0.5, n_dims=4))
        0.609
    """
    return 1 - _tail(value, n_dims)


def random_entanglement_cdf(value: ArrayLike, n_features: int, n_dims: int) -> Any:
    """Chance that a feature among `n_features` random directions has an entanglement of at most `value`.

    The percentile of a measured E_i under random directions. It is exact for one feature; the N values of a set depend
    on one another, so correct for choosing the largest (`random_coherence`).

    Args:
        value: In [0, 1], a number or an array.
        n_features: N, at least 2: the feature and its possible partners.
        n_dims: M, at least 2.

    Returns:
        Shaped like `value`, in float64.

    Example:
        >>> float(en.metrics.random_entanglement_cdf(0.9, n_features=12, n_dims=4))  # .9 is no sign of anything here
        0.658
    """
    _check(n_features, n_dims)
    with np.errstate(divide="ignore"):
        return np.exp((n_features - 1) * np.log1p(-_tail(value, n_dims)))


def random_entanglement_quantile(level: ArrayLike, n_features: int, n_dims: int) -> Any:
    """The entanglement that a share `level` of random features stays below: inverse of `random_entanglement_cdf`.

    Example:
        >>> float(en.metrics.random_entanglement_quantile(0.95, n_features=12, n_dims=4))
        0.975
    """
    _check(n_features, n_dims)
    share = np.asarray(level, dtype=np.float64)
    if not bool(((share >= 0) & (share <= 1)).all()):
        raise EntangleError(f"level must lie in [0, 1], not {level!r}")
    with np.errstate(divide="ignore"):
        tail = -np.expm1(np.log(share) / (n_features - 1))
    return np.sqrt(special.betainccinv(0.5, (n_dims - 1) / 2, tail))


def random_entanglement_mean(n_features: int, n_dims: int) -> float:
    """Expected entanglement of a feature among `n_features` random directions in `n_dims` dimensions.

    Example:
        >>> en.metrics.random_entanglement_mean(12, 4), en.metrics.random_entanglement_mean(1000, 2048)
        (0.842, 0.076)
    """
    _check(n_features, n_dims)
    # The distribution is narrow in many dimensions: integrate where it lives, and count 1 for what lies below.
    low, high = random_entanglement_quantile([1e-12, 1 - 1e-12], n_features, n_dims)
    survival, _ = integrate.quad(lambda t: 1 - random_entanglement_cdf(t, n_features, n_dims), low, high, limit=200)
    return float(low + survival)


def random_entanglement_draws(
    n_features: int,
    n_dims: int,
    *,
    covariance: Float[Tensor, "d d"] | None = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> Float[Tensor, "draw feature"]:
    """Entanglement of sets of random directions, by simulation.

    With a covariance, directions are normal with that covariance: the law of mean differences between random halves of
    many activations, and so what unrelated concepts look like where activations fill few of their dimensions.

    Args:
        n_features: N, at least 2.
        n_dims: M, at least 2.
        covariance: Of the activations, `[n_dims, n_dims]`; uniform directions without it.
        n_draws: Number of sets.
        seed: Seed.

    Returns:
        E of every feature of every set; `.amax(1)` is the null of the coherence.

    Example:
        >>> draws = en.metrics.random_entanglement_draws(12, 4, n_draws=500)
        >>> draws.shape, round(float(draws.mean()), 1)
        (torch.Size([500, 12]), 0.8)
    """
    _check(n_features, n_dims)
    generator = torch.Generator().manual_seed(seed)
    # Cosines do not change under rotation, so the covariance's eigenvalues are all that matters of it.
    scale = torch.ones(n_dims, dtype=torch.float64) if covariance is None else _spread(covariance, n_dims)
    draws = []
    for size in _block_sizes(n_draws, n_features * max(n_dims, n_features)):
        vectors = torch.randn(size, n_features, n_dims, generator=generator, dtype=torch.float64) * scale
        unit = vectors / vectors.norm(dim=-1, keepdim=True)
        gram = (unit @ unit.mT).abs().clamp(max=1)
        gram.diagonal(dim1=1, dim2=2).zero_()
        draws.append(gram.amax(2))
    return torch.cat(draws)


def _spread(covariance: Float[Tensor, "d d"], n_dims: int) -> Float[Tensor, " d"]:
    """Standard deviation along each principal component."""
    if covariance.shape != (n_dims, n_dims):
        raise EntangleError(
            f"covariance must be [{n_dims}, {n_dims}] like the directions, not {tuple(covariance.shape)}"
        )
    variances: Tensor = torch.linalg.eigvalsh(covariance.double().cpu())
    return variances.clamp(min=0).sqrt()


def _block_sizes(draws: int, draw_size: int) -> list[int]:
    block = max(1, (1 << 22) // draw_size)
    return [min(block, draws - start) for start in range(0, draws, block)]


def _tail(value: ArrayLike, n_dims: int) -> Numbers:
    """Chance of a larger absolute cosine, accurate where it is tiny."""
    if n_dims < 2:
        raise EntangleError(f"random directions need 2 dimensions or more, not {n_dims}")
    t = np.asarray(value, dtype=np.float64)
    if not bool(((t >= -1e-6) & (t <= 1 + 1e-6)).all()):
        raise EntangleError(f"an absolute cosine lies in [0, 1]; got values from {t.min()} to {t.max()}")
    tail: Numbers = special.betaincc(0.5, (n_dims - 1) / 2, np.clip(t, 0, 1) ** 2)
    return tail


def _check(n_features: int, n_dims: int) -> None:
    if n_features < 2 or n_dims < 2:
        raise EntangleError(f"random directions need N >= 2 and M >= 2, not N={n_features}, M={n_dims}")
