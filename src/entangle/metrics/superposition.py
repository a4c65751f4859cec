"""How many features share how many dimensions.

Feature matrices are `[feature, d]` with their lengths, which here say how strongly a feature is represented: unlike
entanglement, these metrics do not normalise.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.entanglement import babel
from entangle.metrics.vectors import DirectionsLike, as_vectors


def feature_dimensionality(features: DirectionsLike) -> Float[Tensor, " feature"]:
    """Share of a dimension that each feature has to itself: D_i = |W_i|^2 / sum_j (W_i/|W_i| . W_j)^2.

    Elhage et al. (2022), "Toy models of superposition". 1 for a feature alone on its axis, 1/2 in an antipodal pair,
    2/5 in a pentagon, 3/4 in a tetrahedron, 0 for a feature that is not represented (a row of zeros). Unchanged by
    rotation and by scaling all features together; a duplicate halves it. Sums to at most the rank.

    What it cannot tell: whether the features are ever present at the same time, which is when sharing costs.

    Example:
        >>> pair_and_one = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
        >>> en.metrics.feature_dimensionality(pair_and_one)
        tensor([0.5000, 0.5000, 1.0000])
    """
    return capacity(features)


def capacity(features: DirectionsLike) -> Float[Tensor, " feature"]:
    """Capacity allotted to each feature: C_i = (W_i . W_i)^2 / sum_j (W_i . W_j)^2.

    Scherlis et al. (2022), "Polysemanticity and capacity in neural networks", section 2 ("Capacity and
    superposition"); algebraically the same as `feature_dimensionality`. In [0, 1]; the sum is at most the rank, with
    equality where the matrix is block-semi-orthogonal: features fall into orthogonal blocks, each a tight frame.

    Returns:
        One value per feature; 0 for a row of zeros. Linear in the number of features in time and memory.

    Example:
        >>> pentagon = torch.stack([torch.tensor([0.4 * torch.pi * k]) for k in range(5)])
        >>> en.metrics.capacity(torch.cat([pentagon.cos(), pentagon.sin()], dim=1))
        tensor([0.4000, 0.4000, 0.4000, 0.4000, 0.4000])
    """
    vectors = as_vectors(features)
    w = vectors.double()
    largest = w.detach().abs().max()
    if float(largest) == 0:
        return torch.zeros_like(vectors[:, 0])
    w = w / largest
    length = w.norm(dim=1)
    kept = length > 0
    # Squares of short features would be lost beside long ones: lengths are taken of the unit rows' images, and the
    # products of all features come through one triangular factor, which is never squared.
    unit = w / torch.where(kept, length, 1)[:, None]
    factor = w if w.requires_grad or len(w) <= w.shape[1] else torch.linalg.qr(w, mode="r").R
    shared = (unit @ factor.T).square().sum(1)
    share: Tensor = torch.where(kept, length.square() / torch.where(kept, shared, 1), 0).clamp(max=1)
    return share.to(vectors)


def leverage(features: DirectionsLike) -> Float[Tensor, " feature"]:
    """Share of each feature's variance that the best linear read-out recovers, if features are uncorrelated.

    W_i' (W'W)^+ W_i: the diagonal of the hat matrix, and the largest value of the capacity ratio over all read-outs u,
    max_u (u . W_i)^2 / sum_j (u . W_j)^2. At least `capacity`, which reads out along W_i itself; sums to the rank.

    Example:
        >>> w = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
        >>> en.metrics.leverage(w)
        tensor([0.5000, 0.5000, 1.0000])
    """
    w = as_vectors(features)
    q = torch.linalg.svd(w.double(), full_matrices=False)
    kept = q.S.max() * max(w.shape) * torch.finfo(w.dtype).eps < q.S
    shares: Tensor = q.U[:, kept].square().sum(1)
    return shares.to(w)


def features_per_dimension(features: DirectionsLike) -> Float[Tensor, ""]:
    """|W|_F^2 / d: how many features of unit length the matrix holds per dimension (Elhage et al. 2022).

    Needs features scaled so that 1 is "fully represented"; of unit directions it is only N / d.

    Example:
        >>> en.metrics.features_per_dimension(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        tensor(1.5000)
    """
    w = as_vectors(features)
    return w.square().sum() / w.shape[1]


def polysemanticity(features: DirectionsLike) -> Float[Tensor, " neuron"]:
    """Effective number of features each neuron responds to: (sum_i w_in^2)^2 / sum_i w_in^4.

    The participation ratio of a neuron's squared weights; 1 is monosemantic, N responds to all alike, 0 to none.

    Args:
        features: `[feature, neuron]` in the neurons' own basis: the result depends on the basis, as it must.

    Example:
        >>> en.metrics.polysemanticity(torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]]))
        tensor([1., 3.])
    """
    vectors = as_vectors(features)
    w = vectors.double().abs()
    squares = (w / w.amax(0).clamp(min=torch.finfo(w.dtype).tiny)).square()  # scaled first: squares may underflow
    fourth = squares.square().sum(0)
    return torch.where(fourth > 0, squares.sum(0).square() / torch.where(fourth > 0, fourth, 1), 0).to(vectors)


def effective_rank(matrix: Float[Tensor, "row column"]) -> Float[Tensor, ""]:
    """exp of the entropy of the singular values divided by their sum (Roy & Vetterli 2007).

    From 1 to the rank; unchanged by rotation on either side and by scaling. Not centred: subtract the mean of
    activations first. Not the rank: small singular values count, in proportion to their size.

    Example:
        >>> en.metrics.effective_rank(torch.diag(torch.tensor([1.0, 1.0, 0.1])))
        tensor(2.3434)
    """
    s = _singular_values(matrix)
    p = s / s.sum()
    rank: Tensor = torch.special.entr(p).sum().exp()
    return _like(rank, matrix)


def participation_ratio(x: Float[Tensor, "example d"], *, center: bool = True) -> Float[Tensor, ""]:
    """Dimensions that share the variance: (sum of eigenvalues)^2 / sum of squared eigenvalues of the covariance.

    Gao et al. (2017). From 1 to min(d, examples - 1); a few examples bias it downwards.

    Args:
        x: Activations.
        center: Subtract the mean; without it, a common offset counts as variance.

    Example:
        >>> round(float(en.metrics.participation_ratio(acts["resid_post"][:, -1])))  # of 32 dimensions
        4
    """
    wide = _finite_matrix(x)
    s = _singular_values(wide - wide.mean(0) if center else wide)
    variances = (s / s.max()).square()
    ratio: Tensor = variances.sum().square() / variances.square().sum()
    return _like(ratio, x)


def stable_rank(matrix: Float[Tensor, "row column"]) -> Float[Tensor, ""]:
    """|A|_F^2 / |A|_2^2 (Rudelson & Vershynin 2007): at most the rank, and steady under small perturbations.

    Example:
        >>> en.metrics.stable_rank(torch.diag(torch.tensor([1.0, 1.0, 0.1])))
        tensor(2.0100)
    """
    s = _singular_values(matrix)
    return _like((s / s.max()).square().sum(), matrix)


def effective_features(activations: Float[Tensor, "example feature"]) -> Float[Tensor, ""]:
    """exp of the entropy of how total activation is divided between features.

    Bereska et al. (2025), "Superposition as lossy compression": p_i = sum |z_i| / sum over all features, F = exp H(p).
    Divided by the number of neurons, F / N is their measure of superposition: above 1, more features than neurons.

    Args:
        activations: Of the features of a sparse autoencoder.

    What it cannot tell: it inherits the autoencoder. More dictionary features, or less sparsity, give a larger F;
    compare only between autoencoders of one size trained alike.

    Example:
        >>> en.metrics.effective_features(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        tensor(2.)
    """
    shares = _finite_matrix(activations).abs().sum(0)
    if float(shares.sum()) == 0:
        raise EntangleError("no feature is ever active; effective_features needs activations that are not all zero")
    features: Tensor = torch.special.entr(shares / shares.sum()).sum().exp()
    return _like(features, activations)


def accessible_sparsity(directions: DirectionsLike, tolerance: float, *, max_sparsity: int | None = None) -> int:
    """How many features may be active at once for every feature to be read along its own direction to `tolerance`.

    Linear accessibility in the sense of Garg, Kleinberg & Peng (2026): z is k-sparse with entries in [-1, 1], and
    |v_i . sum_j z_j v_j - z_i| <= tolerance for all i. The worst case is exactly `babel(k)`.

    Args:
        directions: `[feature, d]`; normalised here.
        tolerance: Largest error allowed, above 0.
        max_sparsity: Where to stop looking; all features by default.

    Returns:
        The largest such k, 0 if even a single active feature disturbs another by more. Other read-outs than the
        directions themselves may do better.

    Example:
        >>> en.metrics.accessible_sparsity(torch.randn(50, 400), tolerance=0.5) >= 3
        True
    """
    if not tolerance > 0:
        raise EntangleError(f"tolerance is an error above 0, not {tolerance}")
    errors = babel(directions, max_sparsity)
    return int((errors <= tolerance).sum())


def dims_for_linear_access(n_features: int, sparsity: int, tolerance: float) -> int:
    """Dimensions in which `n_features` random directions can be read to `tolerance` when `sparsity` are active.

    A sufficient number, ceil(4 k^2 ln(N) / tolerance^2): by a union bound over pairs, some set of N directions has a
    coherence of at most tolerance / k there. It is the O(k^2 log N) of Garg, Kleinberg & Peng (2026), who show that
    k^2 log(N / k) / log k is needed up to a constant; non-linear decoding needs only k log(N / k).

    A yardstick: a model with far fewer dimensions than this for the features claimed of it must rely on structure.

    Example:
        >>> en.metrics.dims_for_linear_access(n_features=1000, sparsity=5, tolerance=0.5)
        2764
    """
    if n_features < 2 or sparsity < 1 or not tolerance > 0:
        raise EntangleError(
            f"needs 2 features, sparsity 1 and a tolerance above 0 or more, not {n_features}, {sparsity}, {tolerance}"
        )
    return math.ceil(4 * sparsity**2 * math.log(n_features) / tolerance**2)


def _singular_values(matrix: Float[Tensor, "row column"]) -> Float[Tensor, " rank"]:
    values: Tensor = torch.linalg.svdvals(_finite_matrix(matrix))
    if float(values.max()) == 0:
        raise EntangleError("the matrix is all zeros (or constant, if centred), which has no rank to speak of")
    return values


def _finite_matrix(matrix: Tensor) -> Tensor:
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise EntangleError(f"this needs a matrix [row, column], not shape {tuple(matrix.shape)}")
    if not bool(matrix.isfinite().all()):
        raise EntangleError(f"the matrix holds {int((~matrix.isfinite()).sum())} values that are NaN or infinite")
    return matrix.double()


def _like(value: Tensor, given: Tensor) -> Tensor:
    """In the precision of what was given; what was summed was float64."""
    return value if given.dtype == torch.float64 else value.float()
