"""Entanglement in the basis in which the next layer reads: it does not depend on the activations' own coordinates."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.inner_products import gram_cosines
from entangle.metrics.vectors import DirectionsLike, as_vectors


def local_interaction_basis(
    x: Float[Tensor, "example d"], gradients: Float[Tensor, "sample d"], *, tolerance: float = 1e-6
) -> Float[Tensor, "component d"]:
    """The transformation to the local interaction basis (Bushnaq et al. 2024, arXiv 2405.10928).

    Whitens the activations by their principal components, then rotates to the eigenbasis of the gradients' second
    moment there and scales by the root of its eigenvalues: components which the later layer does not read vanish.

    Args:
        x: Activations at the earlier layer.
        gradients: Samples of J'u: gradients at the earlier layer of random projections u ~ N(0, I) of the (whitened)
            later layer; see `entangle.concepts.interaction_gradients`.
        tolerance: Principal components and interactions smaller than this share of the largest are left out.

    Returns:
        C, most important component first: coordinates are C (x - mean), and those of a direction are C v.

    Example:
        >>> x, gradients = torch.randn(500, 3), torch.randn(500, 3) * torch.tensor([1.0, 0.1, 0.0])
        >>> en.metrics.local_interaction_basis(x, gradients).shape  # the last coordinate is never read
        torch.Size([2, 3])
    """
    if x.ndim != 2 or gradients.ndim != 2 or x.shape[1] != gradients.shape[1]:
        raise EntangleError(
            f"activations and gradients must be [example, d] and [sample, d], not {tuple(x.shape)} and "
            f"{tuple(gradients.shape)}"
        )
    centred = x.double() - x.double().mean(0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(x))
    kept = variances > tolerance * variances.max()
    scale, axes = variances[kept].sqrt(), axes[:, kept]
    white = gradients.double() @ axes * scale
    strengths, rotation = torch.linalg.eigh(white.T @ white / len(white))
    read = strengths > tolerance * strengths.max()
    basis: Tensor = (strengths[read].sqrt()[:, None] * rotation[:, read].T) @ (axes / scale).T
    return basis.flip(0)


def interaction_cosines(
    directions: DirectionsLike, basis: Float[Tensor, "component d"]
) -> Float[Tensor, "feature feature"]:
    """Cosine of directions in the local interaction basis.

    Where the activations span their space, the inner product is v_i' E[J'J] v_j: two directions are alike when the
    later layer responds alike to both. Unchanged by invertible linear maps of either layer's coordinates.

    Example:
        >>> basis = torch.diag(torch.tensor([1.0, 0.1]))  # the second coordinate is hardly read
        >>> en.metrics.interaction_cosines(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), basis)[0, 1]
        tensor(0.9802, dtype=torch.float64)
    """
    v = as_vectors(directions).double()
    if basis.shape[1] != v.shape[1]:
        raise EntangleError(f"directions of {v.shape[1]} dimensions need a basis of as many, not {tuple(basis.shape)}")
    coordinates = v @ basis.double().T
    return gram_cosines(coordinates @ coordinates.T)
