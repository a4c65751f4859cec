"""How activations are spread, data set by data set: what the covariance null, whitening and shares of variance rest on.

Where every concept has examples of its own, their data sets differ (in subject, source, length), and the differences
between data sets are no variance that a direction found within one of them could lie along. So each concept has the
covariance of its own data set, about that set's mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics import gram_cosines, random_entanglement_draws

Directions = Float[Tensor, "*batch concept d"]
Measure = Callable[[Directions], Tensor]
_BLOCK = 1 << 22  # numbers of one block of draws


@dataclass(frozen=True)
class Maps:
    """A linear map for each concept: that of its data set.

    Attributes:
        maps: Of each data set, `[d, k]`; of one alone where it serves all concepts.
        of_concept: The data set of each concept.
    """

    maps: tuple[Float[Tensor, "d k"], ...]
    of_concept: tuple[int, ...] = ()

    def __call__(self, v: Directions) -> Float[Tensor, "*batch concept k"]:
        """Every concept's directions through its own map."""
        if len(self.maps) == 1:
            return v @ self.maps[0]
        mapped = v.new_empty(*v.shape[:-1], self.maps[0].shape[1])
        for number, own in enumerate(self.maps):
            concepts = [i for i, data in enumerate(self.of_concept) if data == number]
            mapped[..., concepts, :] = v[..., concepts, :] @ own
        return mapped


@dataclass(frozen=True)
class Spread:
    """The covariance of each data set about its own mean, by its principal axes.

    Attributes:
        variances: Along each axis, ascending.
        axes: As columns.
        whiteners: Inverse root of the covariance, shrunk until there is one: toward its own diagonal, so that a
            coordinate hundreds of times the others decides nothing for them (Ledoit & Wolf 2004, in standard units).
        of_concept: The data set of each concept.
    """

    variances: Float[Tensor, "data d"]
    axes: Float[Tensor, "data d d"]
    whiteners: Float[Tensor, "data d d"]
    of_concept: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[Float[Tensor, "example d"]]) -> Spread:
        """Of each concept's activations; those that are one object are one data set.

        Raises:
            EntangleError: Activations that do not vary at all.
        """
        number: dict[int, int] = {}
        of_concept = tuple(number.setdefault(id(x), len(number)) for x in rows)
        parts = zip(*(_principal(x) for x in {id(x): x for x in rows}.values()), strict=True)
        variances, axes, whiteners = (torch.stack(part) for part in parts)
        return cls(variances, axes, whiteners, of_concept)

    def readout(self) -> Maps:
        """To the spread of activations along directions: the root of the covariance."""
        return self._maps(self.variances.sqrt())

    def whitening(self) -> Maps:
        """To directions of whitened activations (Mahalanobis)."""
        return Maps(tuple(self.whiteners), self.of_concept)

    def shares(self) -> Maps:
        """To vectors whose squared length is the share of the variance along a unit direction."""
        return self._maps((self.variances / self.variances.sum(1, keepdim=True)).sqrt())

    def components(self, n: int) -> Maps:
        """To the coordinates in the `n` leading principal components."""
        return Maps(tuple(axes[:, -n:] for axes in self.axes), self.of_concept)

    def draws(self, n: int, seed: int) -> Iterator[Float[Tensor, "draw concept d"]]:
        """Directions that labels without meaning would find: normal with each concept's own covariance, in blocks.

        Where concepts share one data set any two of them are alike, and only two are drawn.
        """
        readout, d = self.readout(), self.variances.shape[1]
        n_concepts = len(self.of_concept) if len(self.variances) > 1 else 2
        generator = torch.Generator().manual_seed(seed)
        size = max(1, _BLOCK // (n_concepts * d))
        for start in range(0, n, size):
            shape = min(size, n - start), n_concepts, d
            yield readout(torch.randn(shape, generator=generator, dtype=torch.float64))

    def percentiles(
        self, measures: Mapping[str, Measure], measured: Mapping[str, Tensor], n: int, seed: int
    ) -> dict[str, Tensor]:
        """For each measure the share of drawn directions with a smaller absolute value, the measured ones among them.

        Args:
            measures: Of directions: a value for each concept or pair of them.
            measured: What each gave of the measured directions.
            n: Draws.
            seed: Of the draws.
        """
        below = {name: torch.zeros_like(value) for name, value in measured.items()}
        for block in self.draws(n, seed):
            for name, measure in measures.items():
                by_chance = measure(block).abs()
                if by_chance.ndim == 3:
                    by_chance.diagonal(dim1=1, dim2=2).zero_()  # a direction and itself are no pair
                if len(self.variances) == 1:  # what holds for two directions holds for any two
                    by_chance = by_chance[:, 0, 1, None, None] if by_chance.ndim == 3 else by_chance.mT.reshape(-1, 1)
                below[name] += (by_chance < measured[name].abs()).double().mean(0) * len(block)
        return {name: (count / (1 + n)).masked_fill(measured[name].isnan(), torch.nan) for name, count in below.items()}

    def percentile_of_largest(
        self, measured: Float[Tensor, " concept"], n: int, seed: int
    ) -> Float[Tensor, " concept"]:
        """The share of drawn sets of directions in which each concept's E is smaller."""
        if len(self.variances) > 1:
            return self.percentiles({"": largest}, {"": measured}, n, seed)[""]
        # Of one data set any number of directions can be drawn without its axes.
        covariance, shape = self.variances[0].diag(), (len(measured), self.variances.shape[1])
        null = random_entanglement_draws(*shape, covariance=covariance, n_draws=n, seed=seed)
        return (null < measured).double().sum(0) / (1 + n)

    def _maps(self, scales: Float[Tensor, "data d"]) -> Maps:
        maps = tuple((axes * scale) @ axes.T for axes, scale in zip(self.axes, scales, strict=True))
        return Maps(maps, self.of_concept)


def pairwise(maps: Maps | None = None) -> Measure:
    """Cosines of every two concepts' directions, each through its own map."""

    def measure(v: Directions) -> Float[Tensor, "*batch concept concept"]:
        v = torch.nn.functional.normalize(v, dim=-1)
        v = v if maps is None else maps(v)
        cosines: Tensor = gram_cosines(v @ v.mT)
        return cosines

    return measure


def squared(maps: Maps) -> Measure:
    """The squared length of each concept's unit direction through its own map."""

    def measure(v: Directions) -> Float[Tensor, "*batch concept"]:
        shares: Tensor = maps(torch.nn.functional.normalize(v, dim=-1)).square().sum(-1)
        return shares

    return measure


def without(coordinates: Int[Tensor, " massive"], n_dims: int) -> Maps:
    """To directions with some coordinates set aside."""
    kept = torch.ones(n_dims, dtype=torch.float64).index_fill_(0, coordinates, 0.0)
    return Maps((kept.diag(),))


def largest(v: Directions) -> Float[Tensor, "*batch concept"]:
    """E of each concept: the largest absolute cosine with another."""
    cosines = pairwise()(v).abs()
    return (cosines * (1 - torch.eye(cosines.shape[-1], dtype=cosines.dtype))).amax(-1)


def root_of(metric: Float[Tensor, "d d"]) -> Maps:
    """The map after which plain inner products are those of a metric."""
    values, axes = torch.linalg.eigh(metric.double())
    return Maps(((axes * values.clamp(min=0).sqrt()) @ axes.T,))


def _principal(x: Float[Tensor, "example d"]) -> tuple[Tensor, Tensor, Tensor]:
    """Variances along the principal axes, the axes, and the inverse root of the shrunk covariance."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    rows = x.double().cpu()
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / len(centred)
    variances, axes = torch.linalg.eigh(covariance)
    variances = variances.clamp(min=0)
    own = covariance.diagonal()
    if float(variances.sum()) == 0:
        raise EntangleError("the activations do not vary at all; give other examples or another place")
    own = torch.where(own > 0, own, own[own > 0].median())  # a dead coordinate is given the usual variance
    shrinkage = max(float(ledoit_wolf_shrinkage((centred / own.sqrt()).numpy(), assume_centered=True)), 1e-6)
    values, vectors = torch.linalg.eigh(
        _correlations(covariance, own) * (1 - shrinkage) + shrinkage * torch.eye(len(own))
    )
    # Any root of the inverse gives the same inner products: that of the correlations, in standard units.
    return variances, axes, ((vectors / values.sqrt()) @ vectors.T / own.sqrt()).T


def _correlations(covariance: Float[Tensor, "d d"], variances: Float[Tensor, " d"]) -> Float[Tensor, "d d"]:
    scale = variances.sqrt()
    correlations: Tensor = covariance / scale / scale[:, None]
    return correlations
