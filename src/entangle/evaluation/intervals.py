"""How far measured cosines would move if the directions were measured again, and what the true ones may be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.evaluation import refits
from entangle.evaluation.refits import Refit, Sample
from entangle.metrics import Estimate, bias_corrected_interval, gram_cosines

Gram = Float[Tensor, "concept concept"]


def intervals(
    names: Sequence[str],
    samples: Sequence[Sample],
    seeds: Sequence[int],
    refit: Refit,
    n_resamples: int,
    level: float,
) -> tuple[Estimate, Estimate, Estimate]:
    """Intervals of every cosine and every E, and the cosines corrected for the noise of the directions.

    A measured direction is the true one plus noise, and a resample adds as much noise once more. So a draw of what a
    new measurement would find is the true direction, as far as it can be told, plus one resample's noise. Where noise
    is all there is, it is all that a draw holds. The corrected cosines are those of inner products less the noise's
    (Spearman's correction for attenuation, also where noise is shared).
    """
    measured = torch.stack([refits.full(s, refit) for s in samples]).double().cpu()
    resampled = torch.stack(
        [refits.bootstrapped(n, s, refit, n_resamples, k) for n, s, k in zip(names, samples, seeds, strict=True)], dim=1
    ).to(measured)
    # A penalised probe is longer on a resample, which holds fewer distinct examples: that is no noise.
    resampled *= (measured.square().sum(1) / (resampled.mean(0) * measured).sum(1))[:, None]
    gram, grams = measured @ measured.T, resampled @ resampled.mT
    noise = grams.mean(0) - gram
    remeasured = _transport(gram, _denoised(gram, noise)) @ measured + (resampled - measured)
    again = gram_cosines(remeasured @ remeasured.mT)
    cosine = _spread(gram_cosines(gram), again, level)
    entanglement = _spread(off_diagonal(gram_cosines(gram)).amax(-1), off_diagonal(again).amax(-1), level)
    true = bias_corrected_interval(gram_cosines(gram - noise), gram_cosines(grams - 2 * noise), level=level)
    return cosine, entanglement, true


def off_diagonal(grams: Float[Tensor, "*batch concept concept"]) -> Float[Tensor, "*batch concept concept"]:
    """Absolute values with zeros on the diagonal."""
    return grams.abs() * (1 - torch.eye(grams.shape[-1], dtype=grams.dtype))


def _denoised(gram: Gram, noise: Gram) -> Gram:
    """Inner products of the true directions: no length below zero, no cosine beyond one."""
    less = gram - noise
    lengths = less.diagonal().clamp(min=0).sqrt()
    bound = lengths[:, None] * lengths
    less = torch.where(torch.eye(len(gram), dtype=torch.bool), bound, less.clamp(min=-bound, max=bound))
    return _power(less, 1)


def _transport(gram: Gram, target: Gram) -> Gram:
    """The map that turns vectors with the inner products `gram` into ones with `target` and moves them least.

    T = G^-1/2 (G^1/2 H G^1/2)^1/2 G^-1/2, the optimal transport between Gaussians (Olkin & Pukelsheim 1982): T G T = H.
    """
    root, inverse = _power(gram, 0.5), _power(gram, -0.5)
    return inverse @ _power(root @ target @ root, 0.5) @ inverse


def _power(matrix: Gram, exponent: float) -> Gram:
    """A power of the positive part of a symmetric matrix; what is zero stays zero."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    kept = values > 1e-10 * values.abs().max()
    powered = torch.where(kept, values.clamp(min=torch.finfo(values.dtype).tiny).pow(exponent), 0)
    raised: Tensor = vectors * powered @ vectors.T
    return raised


def _spread(value: Tensor, draws: Float[Tensor, "resample ..."], level: float) -> Estimate:
    """The central quantiles of the draws."""
    low, high = draws.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=draws.dtype), dim=0)
    return Estimate(value, low, high)
