"""How far measured cosines would move if the directions were measured again, and what the true ones may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.concepts import refits
from entangle.concepts.refits import Refit, Sample
from entangle.concepts.spread import Maps
from entangle.metrics import Estimate, bias_corrected_interval, gram_cosines

_EDGE = 1e-12  # from the ends of a scale, where it has no end
Gram = Float[Tensor, "concept concept"]


class Refits(NamedTuple):
    """Directions fitted on all examples, and on resamples of them."""

    measured: Float[Tensor, "concept d"]
    resampled: Float[Tensor, "resample concept d"]

    def remeasured(self, maps: Maps | None = None) -> Float[Tensor, "resample concept d"]:
        """Directions as they might be found on as many other examples, each through its own map.

        A measured direction is the true one plus noise, and a resample adds as much noise once more. So a draw of what
        a new measurement would find is the true direction, as far as inner products tell it, plus one resample's noise.
        Where noise is all there is, it is all that a draw holds.
        """
        there = self if maps is None else Refits(maps(self.measured), maps(self.resampled))
        gram, noise = there._moments()
        return _transport(gram, _denoised(gram, noise)) @ there.measured + (there.resampled - there.measured)

    def corrected(self, level: float) -> Estimate:
        """Cosines of the true directions, from inner products less the noise's.

        Spearman's correction for attenuation, also where noise is shared.
        """
        gram, noise = self._moments()
        grams = self.resampled @ self.resampled.mT
        return bias_corrected_interval(gram_cosines(gram - noise), gram_cosines(grams - 2 * noise), level=level)

    def _moments(self) -> tuple[Gram, Gram]:
        """Inner products of what was measured, and what noise adds to them."""
        measured, resampled = self
        gram = measured @ measured.T
        return gram, (resampled @ resampled.mT).mean(0) - gram


def refitted(
    names: Sequence[str],
    samples: Sequence[Sample],
    seeds: Sequence[int],
    refit: Refit,
    n_resamples: int,
) -> Refits:
    """Every concept's direction on its examples, and on bootstrap resamples of them."""
    measured = torch.stack([refits.full(s, refit) for s in samples]).double().cpu()
    resampled = torch.stack(
        [refits.bootstrapped(n, s, refit, n_resamples, k) for n, s, k in zip(names, samples, seeds, strict=True)], dim=1
    ).to(measured)
    # A penalised probe is longer on a resample, which holds fewer distinct examples: that is no noise.
    resampled *= (measured.square().sum(1) / (resampled.mean(0) * measured).sum(1))[:, None]
    return Refits(measured, resampled)


def around(value: Tensor, draws: Float[Tensor, "resample ..."], level: float, *, share: bool = False) -> Estimate:
    """Where a new measurement would fall, given one and draws of what measurements find.

    Two measurements differ by the noise of both. So the interval reaches as far from the measured value as two draws
    are from one another in a share `level` of pairs; where the draws lie, as those of a maximum lie too high, does not
    matter. Distances are taken where a measurement's noise hardly depends on its value: of cosines by Fisher's (1921)
    inverse hyperbolic tangent, of shares by their log-odds.

    Args:
        value: What was measured.
        draws: What might have been.
        level: Share of new measurements that the interval is to hold.
        share: Values are shares, in [0, 1], and not cosines.
    """
    spread, back = (torch.logit, torch.sigmoid) if share else (torch.atanh, torch.tanh)
    least, most = (_EDGE, 1 - _EDGE) if share else (_EDGE - 1, 1 - _EDGE)
    middle, z = (spread(x.clamp(least, most)) for x in (value, draws))
    middle = middle.clamp(z.amin(0), z.amax(0))  # equal data given twice measure a cosine of exactly 1
    apart = torch.cat([(z - z.roll(len(z) // part, 0)).abs() for part in (2, 3, 7)])
    reach = apart.quantile(level, dim=0)
    low, high = back(middle - reach), back(middle + reach)
    return Estimate(value, torch.minimum(low, value), torch.maximum(high, value))


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
