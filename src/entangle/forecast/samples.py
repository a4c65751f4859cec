"""What a metric of shifts is known from: scores text by text, whose mean outer product it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entangle.errors import EntangleError
from entangle.forecast.span import Key, slices
from entangle.forecast.spectrum import Spectrum
from entangle.models import place_named

WIDE = ("scores", "observed", "means", "local_scores", "local_activations")
PER_TEXT = (*WIDE, "counted", "shifted", "squares")
"""Names of what is kept of each text."""
PER_PLACE = ("departures", "departure_prices")


@dataclass(frozen=True, eq=False)
class Samples:
    """Scores of texts at some places of a model, and what edits that are no constant shift need besides.

    Attributes:
        keys: Site and layer of each place.
        sizes: Width of each place; a shift of all places is one vector of `d = sum(sizes)` numbers.
        scores: Scores of each text, one per draw: the mean of their outer products, per predicted token, is F.
        observed: Gradient of each text's own log-probability.
        means: Mean activation of each text.
        local_scores: Scores of single tokens, for shifts that differ from token to token.
        local_activations: The activations of those tokens.
        counted: Predicted tokens of each text.
        shifted: Shifted tokens of each text.
        squares: Mean square of an activation at each place, per text.
        heads: Number of heads and their size, of the places that have heads.
        settings: How it was fitted.
        fingerprint: Of the model.
        departures: What is paid over what the quadratic says, along some directions of each place (see
            `entangle.forecast.departure`); no columns where none were read.
        departure_prices: The quadratic's price there, in nats per token.
        read_ids: Token ids of some texts, on which an edit can be read itself, padded with -1; no rows in older files.
        read_flags: Of each of those tokens, whether it is shifted and whether its prediction counts.
        digests: Of the texts, so that an edit that was fitted on some of them is not priced on the same.
    """

    keys: tuple[Key, ...]
    sizes: tuple[int, ...]
    scores: Float[Tensor, "text draw d"]
    observed: Float[Tensor, "text d"]
    means: Float[Tensor, "text d"]
    local_scores: Float[Tensor, "text draw position d"]
    local_activations: Float[Tensor, "text position d"]
    counted: Int[Tensor, " text"]
    shifted: Int[Tensor, " text"]
    squares: Float[Tensor, "text place"]
    heads: Mapping[Key, tuple[int, int]]
    settings: Mapping[str, Any]
    departures: Float[Tensor, "place direction"]
    departure_prices: Float[Tensor, "place direction"]
    read_ids: Int[Tensor, "row pos"]
    read_flags: Bool[Tensor, "row pos 2"]
    digests: tuple[str, ...]
    fingerprint: Mapping[str, Any] | None = None
    _spectra: dict[float | None, Spectrum] = field(default_factory=dict, repr=False)
    _parts: dict[tuple[int, ...], Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        sites = ", ".join(dict.fromkeys(site for site, _ in self.keys))
        return (
            f"{type(self).__name__}({sites} of {len({layer for _, layer in self.keys})} layers, d={sum(self.sizes)}, "
            f"{len(self.counted)} texts x {self.scores.shape[1]} draws, tokens={self.settings['tokens']!r})"
        )

    def matrix(self, site: str, layer: int) -> Float[Tensor, "d d"]:
        """F at one place, in nats per token per unit of shift squared: KL is `d @ F @ d / 2`."""
        part = self.scores[..., self.part((site, layer))].flatten(0, 1).double()
        return part.T @ part / (self.scores.shape[1] * float(self.counted.sum()))

    def length(self, shift: Float[Tensor, " d"]) -> float:
        """sqrt(d' F d): the length of a shift in the metric; half its square is its price."""
        along = self.scores.double() @ shift.double()
        return float((along.square().mean(1).sum() / self.counted.double().sum()).sqrt())

    def at(self, sites: str | Sequence[str] | None = None, layers: Sequence[int] | None = None) -> Self:
        """The metric of some of the places.

        Raises:
            EntangleError: None of its places is meant.
        """
        names = None if sites is None else [sites] if isinstance(sites, str) else list(sites)
        exact = {place_named(name) for name in names or ()}
        chosen = [
            key
            for key in self.keys
            if key in exact or ((names is None or key[0] in names) and (layers is None or key[1] in layers))
        ]
        if not chosen:
            raise EntangleError(f"the metric knows {self._known()}; got sites={sites}, layers={layers}")
        return self.only(chosen)

    def on(self, rows: Sequence[int] | Int[Tensor, " row"]) -> Self:
        """The metric of some of the texts, by number."""
        index = torch.as_tensor(rows)
        chosen: dict[str, Any] = {name: getattr(self, name)[index] for name in PER_TEXT}
        chosen |= {"digests": tuple(self.digests[i] for i in index.tolist()), "_spectra": {}, "_parts": {}}
        return replace(self, **chosen)

    def halves(self, seed: int = 0) -> tuple[Self, Self]:
        """Two metrics of half the texts each: one to choose a shift by, one to price it by."""
        if (seed,) not in self._parts:  # kept, as what follows is: each contrast asks for the same ones
            order = torch.randperm(len(self.counted), generator=torch.Generator().manual_seed(seed))
            half = len(order) // 2
            self._parts[(seed,)] = (self.on(order[:half].sort().values), self.on(order[half:].sort().values))
        pair: tuple[Self, Self] = self._parts[(seed,)]
        return pair

    def left_out(self, fold: int, folds: int, seed: int = 0) -> Self:
        """The metric without one of `folds` random groups of its texts."""
        if (seed, fold, folds) in self._parts:
            kept: Self = self._parts[seed, fold, folds]
            return kept
        group = torch.randperm(len(self.counted), generator=torch.Generator().manual_seed(seed)) % folds
        part = self.on((group != fold).nonzero()[:, 0])
        if len(self.keys) == 1:  # for the next contrast; of many places each part is nearly as large as the model
            self._parts[seed, fold, folds] = part
        return part

    def spectrum(self, shrinkage: float | None = None) -> Spectrum:
        """F of all its places together, shrunk as said or as far as held-out texts want; for its inverse."""
        if shrinkage not in self._spectra:
            self._spectra[shrinkage] = Spectrum.of(self.scores, self.counted, self.sizes, shrinkage=shrinkage)
        return self._spectra[shrinkage]

    def only(self, chosen: Sequence[Key]) -> Self:
        """The same at some of the places, by site and layer."""
        if len(chosen) == len(self.keys):
            return self
        columns = torch.cat([torch.arange(part.start, part.stop) for part in map(self.part, chosen)])
        numbers = [self.keys.index(key) for key in chosen]
        changed: dict[str, Any] = {name: getattr(self, name)[..., columns] for name in WIDE}
        changed |= {"keys": tuple(chosen), "sizes": tuple(self.sizes[number] for number in numbers)}
        changed |= {name: getattr(self, name)[numbers] for name in PER_PLACE}
        changed |= {"squares": self.squares[:, numbers], "_spectra": {}, "_parts": {}}
        changed["heads"] = {key: value for key, value in self.heads.items() if key in chosen}
        return replace(self, **changed)

    def part(self, key: Key) -> slice:
        """Where a place's part of a shift is."""
        if key not in self.keys:
            raise EntangleError(f"the metric knows {self._known()}; got {key[0]} of layer {key[1]}")
        return slices(self.sizes)[self.keys.index(key)]

    def _known(self) -> str:
        layers: dict[str, list[int]] = {}
        for site, layer in self.keys:
            layers.setdefault(site, []).append(layer)
        return " and ".join(f"{site} of layers {', '.join(map(str, each))}" for site, each in layers.items())
