"""Cosines in other metrics than the coordinates' own, and between subspaces."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.vectors import DirectionsLike, as_vectors


def gram_cosines(gram: Float[Tensor, "*batch feature feature"]) -> Float[Tensor, "*batch feature feature"]:
    """Cosines from inner products, 1 on the diagonal.

    A squared length that is not positive (from a corrected or singular Gram matrix) tells nothing of a direction: its
    cosines are clamped to -1, 0 or 1.

    Example:
        >>> en.metrics.gram_cosines(torch.tensor([[4.0, 1.0], [1.0, 1.0]]))
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(gram.dtype).tiny).sqrt()
    cosine = (gram / scale[..., :, None] / scale[..., None, :]).clamp(-1, 1)
    return cosine.masked_fill(torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device), 1)


def whitened_cosines(directions: DirectionsLike, covariance: Float[Tensor, "d d"]) -> Float[Tensor, "feature feature"]:
    """Cosine after whitening the activations: inner product v_i' C^-1 v_j (Mahalanobis).

    The geometry in which every direction of the activations has the same variance; right for displacements, such as
    class means. Unchanged by any invertible linear map of the activations, taken to directions and covariance alike.

    Args:
        directions: `[feature, d]`.
        covariance: Of the activations; must be invertible (shrink it where examples are few).

    Example:
        >>> covariance = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> en.metrics.whitened_cosines(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), covariance)
        tensor([[ 1.0000, -0.6000],
                [-0.6000,  1.0000]])
    """
    v = _same_space(directions, covariance)
    factor, info = torch.linalg.cholesky_ex(covariance.to(v))
    if int(info) != 0:
        raise EntangleError("the covariance is not positive definite; add shrinkage, or give more examples")
    white = torch.linalg.solve_triangular(factor, v.T, upper=False).T
    return gram_cosines(white @ white.T)


def readout_cosines(directions: DirectionsLike, covariance: Float[Tensor, "d d"]) -> Float[Tensor, "feature feature"]:
    """Correlation of what two directions read from the activations: inner product v_i' C v_j.

    The geometry for read-outs, such as the normals of probes. Unchanged by invertible linear maps that take read-outs
    along (v -> A^-T v).

    Example:
        >>> covariance = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> en.metrics.readout_cosines(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), covariance)
        tensor([[1.0000, 0.6000],
                [0.6000, 1.0000]])
    """
    v = _same_space(directions, covariance)
    return gram_cosines(v @ covariance.to(v) @ v.T)


def causal_gram(
    directions: DirectionsLike,
    unembedding: Float[Tensor, "vocabulary d"],
    *,
    space: Literal["unembedding", "residual"] = "unembedding",
) -> Float[Tensor, "feature feature"]:
    """Inner products in which causally separable concepts are orthogonal (Park, Choe & Veitch 2023).

    For unembedding directions, v_i' Cov(gamma)^-1 v_j with gamma a word's row drawn uniformly (their section 3, "An
    explicit form for causal inner product", with D = I, which they choose without a principle for it). The residual
    stream before the final norm is the dual space: a direction that is added there has the inner product
    v_i' Cov(gamma) v_j.

    Args:
        directions: `[feature, d]`.
        unembedding: The rows of the vocabulary.
        space: What the directions are: rows (or differences of rows) of the unembedding, or vectors of the residual
            stream at the last layer.

    Returns:
        Inner products; `gram_cosines` makes cosines of them.

    What it cannot tell: it assumes words drawn uniformly and a linear path to the logits, which earlier layers lack.

    Example:
        >>> unembedding = model.get_output_embeddings().weight
        >>> gram = en.metrics.causal_gram(unembedding[:3], unembedding)
        >>> gram.shape, bool((gram.diagonal() > 0).all())
        (torch.Size([3, 3]), True)
    """
    if space not in ("unembedding", "residual"):
        raise EntangleError(f'space must be "unembedding" or "residual", not {space!r}')
    v = as_vectors(directions)
    covariance = unembedding_covariance(unembedding, v.shape[1])
    if space == "residual":
        return (v.double() @ covariance @ v.double().T).to(v)
    spread = torch.linalg.eigvalsh(covariance)  # ascending; where it is singular, the smallest is rounding alone
    if spread[0] <= 10 * len(spread) * torch.finfo(spread.dtype).eps * spread[-1]:
        raise EntangleError(
            f"the {tuple(unembedding.shape)} unembedding does not span its space: its covariance has no inverse"
        )
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, v.double().T, upper=False).T
    gram: Tensor = white @ white.T
    return gram.to(v)


def unembedding_covariance(unembedding: Float[Tensor, "vocabulary d"], n_dims: int) -> Float[Tensor, "d d"]:
    """Covariance of a word's row, words drawn uniformly, in float64; refused where it is not of `n_dims` dimensions.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> en.metrics.unembedding_covariance(rows, n_dims=2)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]], dtype=torch.float64)
    """
    rows = as_vectors(unembedding, at_least=2).double()
    if rows.shape[1] != n_dims:
        raise EntangleError(f"directions of {n_dims} dimensions need a metric of as many, not {tuple(rows.shape)}")
    centred = rows - rows.mean(0)
    covariance: Tensor = centred.T @ centred / len(rows)
    return covariance


def principal_angles(first: Float[Tensor, "a d"], second: Float[Tensor, "b d"]) -> Float[Tensor, " angle"]:
    """Angles between the spans of the rows of two matrices, smallest first, in radians (Bjorck & Golub 1973).

    Example:
        >>> plane, line = torch.eye(3)[:2], torch.tensor([[0.0, 1.0, 1.0]])
        >>> en.metrics.principal_angles(plane, line)  # 45 degrees
        tensor([0.7854], dtype=torch.float64)
    """
    a, b = _basis(first), _basis(second)
    if a.shape[1] != b.shape[1]:
        raise EntangleError(f"subspaces of {a.shape[1]} and {b.shape[1]} dimensions cannot be compared")
    cosine = torch.linalg.svdvals(a @ b.T).clamp(max=1)
    # arccos loses small angles to rounding; their sines are the part of the smaller space outside the larger one.
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    sine = torch.linalg.svdvals(small - (small @ large.T) @ large).flip(0).clamp(max=1)
    angles: Tensor = torch.where(cosine.square() > 0.5, torch.asin(sine), torch.acos(cosine))
    return angles


def subspace_overlap(first: Float[Tensor, "a d"], second: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean squared cosine of the principal angles between the spans of the rows of two matrices.

    0 is orthogonal, 1 is one inside the other; for single directions the squared cosine. Random subspaces of a and b
    dimensions in d overlap by max(a, b) / d on average. Depends on the spans alone, not on the bases.

    Example:
        >>> plane, line = torch.eye(3)[:2], torch.tensor([[0.0, 1.0, 1.0]])
        >>> en.metrics.subspace_overlap(plane, line)
        tensor(0.5000, dtype=torch.float64)
    """
    overlap: Tensor = principal_angles(first, second).cos().square().mean()
    return overlap


def _basis(rows: Tensor) -> Float[Tensor, "rank d"]:
    """Orthonormal rows with the same span."""
    decomposition = torch.linalg.svd(as_vectors(rows).double(), full_matrices=False)
    kept = decomposition.S.max() * max(rows.shape) * torch.finfo(torch.float32).eps < decomposition.S
    if float(decomposition.S.max()) == 0:
        raise EntangleError("a subspace needs a row that is not zero")
    basis: Tensor = decomposition.Vh[kept]
    return basis


def _same_space(directions: DirectionsLike, covariance: Tensor) -> Tensor:
    v = as_vectors(directions)
    if covariance.shape != (v.shape[1], v.shape[1]):
        raise EntangleError(
            f"directions of {v.shape[1]} dimensions need a metric of as many, not {tuple(covariance.shape)}"
        )
    return v
