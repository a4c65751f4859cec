"""The cheapest constant shift for a contrast: its natural gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.forecast.contrast import Contrast
from entangle.forecast.metric import ShiftMetric
from entangle.forecast.samples import Samples
from entangle.forecast.span import slices
from entangle.forecast.spectrum import GRID
from entangle.interventions import AffineForm, Edit, Form
from entangle.interventions.base import finite_vector


@dataclass(frozen=True, eq=False)
class NaturalShift(Edit):
    """A shift along F^-1 g, the most of a contrast for its price (Amari 1998); make one with `NaturalShift.fit`.

    `alpha` is the square root of the foretold price: at alpha = .3 the shift is foretold to cost .09 nats per token.

    Attributes:
        vector: The shift of all places at alpha = 1, end to end.
        sites: Site of each place.
        layers: Layer of each place.
        sizes: Width of each place.
        documents: Digests of the metric's texts it was fitted on; its price is asked of others.

    Example:
        >>> metric = en.ShiftMetric.fit(model, tokenizer, clean[:16], layers=[1], samples=2, progress=False)
        >>> contrast = en.Contrast.fit(model, tokenizer, texts[0::2], texts[1::2], layers=[1], progress=False)
        >>> natural = en.NaturalShift.fit(metric, contrast)
        >>> caa = en.AddDirection(-directions.vectors[0], "resid_post", 1)
        >>> metric.efficiency(caa, contrast) < metric.efficiency(natural, contrast)
        True
    """

    vector: Float[Tensor, " d"]
    sites: Sequence[str]
    layers: Sequence[int]
    sizes: Sequence[int]
    documents: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", finite_vector(self.vector, "the vector of NaturalShift"))
        if not len(self.sites) == len(self.layers) == len(self.sizes) or sum(self.sizes) != len(self.vector):
            raise EntangleError(
                f"a NaturalShift needs a site, a layer and a size for each place, which add up to its vector; "
                f"got {len(self.sites)}, {len(self.layers)} and {list(self.sizes)} for {len(self.vector)} numbers"
            )

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """Alpha times the part of each place."""
        parts = slices(self.sizes)
        return [
            AffineForm(site, layer, None, bias=alpha * self.vector[part])
            for site, layer, part in zip(self.sites, self.layers, parts, strict=True)
        ]

    @classmethod
    def fit(
        cls,
        metric: ShiftMetric,
        contrast: Contrast,
        *,
        sites: str | Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        selection: Contrast | None = None,
        seed: int = 0,
    ) -> Self:
        """The natural gradient at some of the metric's places.

        The direction comes from half of the metric's texts and its length from the other half, so that its forecast is
        not flattered by its own choice. The metric is shrunk as its own held-out texts want, or, with texts to select
        on, as far as the shift then gains most of their contrast for its price.

        Args:
            metric: The metric, of texts that are none of the contrast's.
            contrast: The contrast to gain.
            sites: Sites to shift; the metric's by default.
            layers: Layers to shift; the metric's by default.
            selection: The same contrast on other texts, or another one that the shift is meant for, to choose the
                shrinkage by.
            seed: Seed of the halves.

        Returns:
            The edit; `alpha` squared is its foretold price in nats per token.

        Raises:
            EntangleError: Metric and contrast of different models, on the same texts, or at other places.
        """
        _check(metric, contrast)
        here, there = metric.at(sites, layers).halves(seed)
        spectrum, gradient = here.spectrum(), contrast.at(here.keys).gradient
        if selection is not None:
            _check(metric, selection)
            judge = selection.at(here.keys)
            tried = [replace(spectrum, shrinkage=float(shrinkage)) for shrinkage in GRID]
            spectrum = max(tried, key=lambda each: gained(there, judge, each.solve(gradient)))
        direction = spectrum.solve(gradient)
        price = there.length(direction) ** 2 / 2
        if not price > 0:
            raise EntangleError("the contrast has no gradient at these places: no shift there changes it")
        return cls(
            vector=(direction / price**0.5).float(),
            sites=[site for site, _ in here.keys],
            layers=[layer for _, layer in here.keys],
            sizes=list(here.sizes),
            documents=list(here.digests),
            fingerprint=metric.fingerprint,
        )

    @classmethod
    def choose(cls, metric: ShiftMetric, contrast: Contrast, selection: Contrast, *, seed: int = 0) -> Self:
        """The natural shift where it gains most: at one place, at all places of a site together, or at all together.

        Args:
            metric: As for `fit`.
            contrast: As for `fit`.
            selection: Texts that choose the places and the shrinkage; those of a report should be others again.
            seed: As for `fit`.

        Returns:
            The edit whose shift gains most of the selection's contrast for its price.

        Raises:
            EntangleError: As for `fit`.
        """
        sites = list(dict.fromkeys(site for site, _ in metric.keys))
        places: list[tuple[list[str], list[int] | None]] = [([site], [layer]) for site, layer in metric.keys]
        places += [([site], None) for site in sites]
        places += [(sites, None)] if len(sites) > 1 else []
        shifts = [
            cls.fit(metric, contrast, sites=some, layers=layers, selection=selection, seed=seed)
            for some, layers in places
        ]
        return max(shifts, key=lambda shift: metric.gain(shift, selection))


def gained(metric: Samples, contrast: Contrast, shift: Float[Tensor, " d"]) -> float:
    """What a shift of all the metric's places buys of a contrast per square root of twice its price."""
    length = metric.length(shift)
    return contrast.buys(shift) / length if length > 0 else 0.0


def _check(metric: ShiftMetric, contrast: Contrast) -> None:
    if contrast.fingerprint != metric.fingerprint:
        raise EntangleError("metric and contrast belong to different models: fit both on one")
    shared = set(metric.digests) & set(contrast.digests)
    if shared:
        raise EntangleError(
            f"metric and contrast need different texts, but share {len(shared)}: the forecast would flatter itself"
        )
