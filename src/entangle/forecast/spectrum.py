"""The inverse of a metric known from few samples: shrunk toward a sphere at each place, as far as other texts want.

The samples are modelled as Gaussian with covariance (1 - s) S + s t I, with S the mean of their outer products and t
its mean eigenvalue (Ledoit & Wolf 2004); at several places, each has its own t. The shrinkage s is the one under which
held-out texts' samples are likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.errors import EntangleError
from entangle.forecast.span import slices

GRID = torch.logspace(-4, 0, 17, dtype=torch.float64)[:-1]
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Spectrum:
    """(1 - s) S + s T in factors: T = diag(scale^2), S = diag(scale) V diag(values) V' diag(scale).

    Attributes:
        scale: Square root of the mean eigenvalue at each coordinate's place.
        values: Eigenvalues of the scaled S, those that are not zero.
        vectors: Their eigenvectors.
        shrinkage: s.
    """

    scale: Float[Tensor, " d"]
    values: Float[Tensor, " r"]
    vectors: Float[Tensor, "d r"]
    shrinkage: float

    @classmethod
    def of(
        cls,
        scores: Float[Tensor, "text draw d"],
        counted: Int[Tensor, " text"],
        sizes: Sequence[int],
        *,
        shrinkage: float | None = None,
    ) -> Self:
        """The spectrum of scores.

        Args:
            scores: Scores of each text.
            counted: Predicted tokens of each text.
            sizes: Widths of the places, end to end.
            shrinkage: s; by default the likeliest on held-out texts, over five folds.

        Raises:
            EntangleError: Scores that are all zero at a place.
        """
        n_draws = scores.shape[1]
        weights = (1 / (n_draws * counted.double().sum())).sqrt()
        samples = scores.double() * weights
        scale = torch.empty(scores.shape[-1], dtype=torch.float64)
        for part, size in zip(slices(sizes), sizes, strict=True):
            mean = samples[..., part].square().sum() / size
            if mean <= 0:
                raise EntangleError("no shift at this place changes what the model says: the metric is zero there")
            scale[part] = mean.sqrt()
        scaled = samples / scale
        if shrinkage is None:
            shrinkage = _likeliest(scaled, counted)
        values, vectors = _eigen(scaled.flatten(0, 1))
        return cls(scale, values, vectors, shrinkage)

    def solve(self, g: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The shrunk metric's inverse times g."""
        return self._scaled_power(g / self.scale, -1) / self.scale

    def whiten(self, g: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Vectors whose inner products are those of the inverse: `whiten(g) @ whiten(h) == g @ solve(h)`."""
        return self._scaled_power(g / self.scale, -0.5)

    def _scaled_power(self, x: Float[Tensor, "*batch d"], power: float) -> Float[Tensor, "*batch d"]:
        floor = self.shrinkage
        inside = ((1 - floor) * self.values + floor) ** power - floor**power
        result: Tensor = floor**power * x + ((x @ self.vectors) * inside) @ self.vectors.T
        return result


def _eigen(samples: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " r"], Float[Tensor, "d r"]]:
    """Eigenvalues and vectors of samples' samples, by the smaller of the two Gram matrices."""
    n, d = samples.shape
    if d <= n:
        values, vectors = torch.linalg.eigh(samples.T @ samples)
        keep = values > values[-1] * 1e-12
        return values[keep], vectors[:, keep]
    values, left = torch.linalg.eigh(samples @ samples.T)
    keep = values > values[-1] * 1e-10
    values, left = values[keep], left[:, keep]
    return values, samples.T @ left / values.sqrt()


def _likeliest(scaled: Float[Tensor, "text draw d"], counted: Int[Tensor, " text"]) -> float:
    """The shrinkage under which texts that took no part are likeliest."""
    n_texts, n_draws, d = scaled.shape
    folds = torch.arange(n_texts) % min(FOLDS, n_texts)
    likelihood = torch.zeros(len(GRID), dtype=torch.float64)
    shares = counted.double() / counted.double().sum()
    for fold in range(int(folds.max()) + 1):
        inside, outside = folds != fold, folds == fold
        values, vectors = _eigen(scaled[inside].flatten(0, 1) / shares[inside].sum().sqrt())
        # A text's scores have as many times the metric per token as it has tokens.
        held = (scaled[outside] * (n_draws / shares[outside]).sqrt()[:, None, None]).flatten(0, 1)
        inner = held @ vectors
        rest = held.square().sum(-1) - inner.square().sum(-1)
        for index, floor in enumerate(GRID):
            variances = (1 - floor) * values + floor
            spread = (inner.square() / variances).sum() + rest.sum() / floor
            logdet = variances.log().sum() + (d - len(values)) * floor.log()
            likelihood[index] -= (spread + len(inner) * logdet) / 2
    return float(GRID[likelihood.argmax()])
