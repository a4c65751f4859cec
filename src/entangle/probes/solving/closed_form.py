"""Probes that class means and the covariance give directly: mean difference and linear discriminant analysis."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from entangle.errors import EntangleError
from entangle.probes.solving.losses import Labels
from entangle.probes.solving.solvers import Design, Solution


def mean_difference(design: Design, labels: Labels, n_classes: int) -> Solution:
    """The nearest class mean: for two classes `coef` is the difference of their means and the threshold lies half way.

    Args:
        design: The examples of each cell.
        labels: Class numbers of each example, one column per labelling.
        n_classes: How many classes there are.
    """
    means, _ = _class_means(design, labels, n_classes)
    return _discriminant(design, means, -0.5 * means.square().sum(-1))


def lda(design: Design, labels: Labels, n_classes: int, *, shrinkage: float | str = "oas") -> Solution:
    """Fisher's discriminant, with the within-class covariance shrunk to a multiple of the identity.

    Args:
        design: The examples of each cell.
        labels: Class numbers of each example, one column per labelling.
        n_classes: How many classes there are.
        shrinkage: From 0 (none; directions without variance are left out) to 1, or "oas" for the oracle approximating
            shrinkage of Chen et al. 2010 as scikit-learn computes it.

    A direction counts as without variance where rounding alone may be all that varies: where its variance is below some
    ten times d times the square of the activations' own precision, relative to their size.
    """
    if shrinkage != "oas" and not (isinstance(shrinkage, int | float) and 0 <= shrinkage <= 1):
        raise EntangleError(f'shrinkage must be "oas" or lie in [0, 1], not {shrinkage!r}')
    if len(labels) <= n_classes:
        raise EntangleError(
            f"lda needs more examples than classes to see how classes vary; got {len(labels)} of {n_classes} classes"
        )
    means, share = _class_means(design, labels, n_classes)
    weight = float(design.weights.sum(dtype=torch.float64))
    total = design.gram / weight
    # Below what rounding leaves of a variance: the examples' own, relative to their size, and the sums'.
    largest = total.diagonal(dim1=-2, dim2=-1)
    size = (largest + design.mean.double().square()).amax(-1)
    rounding = torch.finfo(design.rows.dtype).eps ** 2 * size + torch.finfo(torch.float64).eps * largest.amax(-1)
    noise = 10 * total.shape[-1] * rounding
    identity = torch.eye(total.shape[-1], dtype=total.dtype, device=total.device)
    coefs = []
    for response in range(labels.shape[1]):  # a covariance each: keep one labelling's in memory
        of_class = means[:, response]
        within = total - torch.einsum("k,cki,ckj->cij", share[response], of_class, of_class)
        # What does not vary within classes, such as a head that is always 0, has no covariance to account for.
        level, still = _level(within, total)
        within = within.masked_fill(still[:, None, None], 0)
        rho = _oas(within, weight) if shrinkage == "oas" else within.new_full((len(within),), float(shrinkage))
        rho = rho.masked_fill(still, 1)
        shrunk = (1 - rho)[:, None, None] * within + (rho * level)[:, None, None] * identity
        if shrinkage == 0 and not bool(still.all()):
            none = torch.zeros_like(noise)
            coefs.append(of_class @ torch.linalg.pinv(shrunk, atol=noise, rtol=none, hermitian=True))
        else:
            coefs.append(torch.linalg.solve(shrunk, of_class.mT).mT)
    coef = torch.stack(coefs, 1)
    return _discriminant(design, coef, share.log() - 0.5 * (means * coef).sum(-1))


def _level(
    within: Float[Tensor, "cell feature feature"], total: Float[Tensor, "cell feature feature"]
) -> tuple[Float[Tensor, " cell"], Bool[Tensor, " cell"]]:
    """The mean variance within classes, 1 where there is none but rounding; and where that is."""
    level, scale = (each.diagonal(dim1=-2, dim2=-1).mean(-1) for each in (within, total))
    still = level <= 1e-6 * scale
    return level.masked_fill(still, 1), still


def _class_means(
    design: Design, labels: Labels, n_classes: int
) -> tuple[Float[Tensor, "cell response class feature"], Tensor]:
    """Class means of the raw features about the grand mean, and each class's share of the weight."""
    member = F.one_hot(labels, n_classes).to(design.rows) * design.weights.unsqueeze(-1)
    mass = member.sum(0, dtype=torch.float64)
    sums = torch.stack(  # in float64: small differences between means decide along directions of little variance
        [torch.einsum("nrk,nd->rkd", member.double(), rows.double()) for rows in design.rows]
    )
    means = sums / mass.unsqueeze(-1)
    return means, mass / mass.sum(-1, keepdim=True)


def _discriminant(design: Design, coef: Tensor, intercept: Tensor) -> Solution:
    """Scores of the raw features from one score per class of the centred ones; for two classes, their difference."""
    if coef.shape[2] == 2:
        coef, intercept = coef[:, :, 1:] - coef[:, :, :1], intercept[:, :, 1:] - intercept[:, :, :1]
    intercept = intercept.expand(coef.shape[:3]) - torch.einsum("crkd,cd->crk", coef, design.mean.double())
    shape = coef.shape[:2]
    return Solution(
        coef, intercept, coef.new_full(shape, torch.nan), coef.new_zeros(shape), 0, torch.ones(shape, dtype=torch.bool)
    )


def _oas(covariance: Float[Tensor, "cell feature feature"], n: float) -> Float[Tensor, " cell"]:
    """Chen et al. 2010, equation 23, without its 2/p terms, as in scikit-learn's `oas`."""
    p = covariance.shape[-1]
    alpha = covariance.square().mean((-2, -1))
    squared = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).square()
    excess = (n + 1) * (alpha - squared / p)
    return torch.where(excess > 0, (alpha + squared) / excess, 1).clamp(max=1)
