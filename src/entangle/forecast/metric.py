"""What a shift of a model's activations costs in language, before anyone makes it.

For a constant shift d of a site, KL(plain || shifted) per predicted token is 1/2 d' F d to second order, with F the
Fisher information of the next token pulled back to the site: the mean over tokens of J' (diag p - p p') J. F needs only
backward passes on clean text; it knows no concept, so the price of any shift can be asked of it afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.errors import EntangleError
from entangle.forecast.contrast import Contrast
from entangle.forecast.limit import limit_of, limits
from entangle.forecast.price import Price, priced
from entangle.forecast.rows import Scope, rows_of
from entangle.forecast.scores import row_scores
from entangle.forecast.span import Key, Span, forms_by_place, slices
from entangle.forecast.spectrum import Spectrum
from entangle.interventions import Edit
from entangle.interventions.forms import AffineForm
from entangle.models import check_fingerprint, fingerprint
from entangle.storage.record import read, write

KIND, VERSION = "ShiftMetric", 1
_WIDE = ("scores", "observed", "means", "local_scores", "local_activations")
_TENSORS = (*_WIDE, "counted", "shifted", "squares")
FEWEST = 8
"""Texts that an interval needs."""


@dataclass(frozen=True, eq=False)
class ShiftMetric:
    """The metric of shifts at some places of a model; made by `ShiftMetric.fit`.

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
    digests: tuple[str, ...]
    fingerprint: Mapping[str, Any] | None = None
    _spectra: dict[tuple[Key, ...], Spectrum] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        *,
        sites: str | Sequence[str] = "resid_post",
        layers: Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
        tokens: Scope = "all",
        samples: int = 4,
        positions: int = 4,
        max_length: int | None = None,
        batch_tokens: int = 2048,
        seed: int = 0,
        progress: bool = True,
    ) -> Self:
        """Estimate the metric from scores on texts.

        Args:
            model: A causal language model that can be differentiated.
            tokenizer: Its tokenizer.
            texts: Clean documents, eight or more; the interval of a price is over them. Longer ones are cut to
                `max_length` tokens.
            sites: Sites, such as `"resid_post"` or `["z", "mlp_out"]`.
            layers: Layers, the same at every site; all that have the site by default.
            prompts: What comes before each text, where texts are continuations.
            tokens: Which tokens are shifted: `"all"`, or with prompts `"prompt"` or `"generated"`. With prompts only
                the continuation's tokens are counted.
            samples: Next tokens drawn per position; each is one backward pass.
            positions: Tokens of each text whose own gradients are kept, for edits that are no constant shift.
            max_length: Keep at most this many tokens of a text.
            batch_tokens: Tokens in one batch, padding included; fewer where the vocabulary is large.
            seed: Seed of the draws.
            progress: Show a progress bar.

        Returns:
            The metric.

        Raises:
            EntangleError: Too few texts, a text without a token to predict, or a model without gradients.

        Example:
            >>> metric = en.ShiftMetric.fit(model, tokenizer, clean_texts)  # doctest: +SKIP
            >>> metric.price(edit, alpha=2.0).value  # doctest: +SKIP
            0.083
        """
        if samples < 1 or positions < 1:
            raise EntangleError(f"a metric needs one sample and one position or more; got {samples} and {positions}")
        if len(texts) < FEWEST:
            raise EntangleError(f"a metric needs {FEWEST} texts or more for its interval; got {len(texts)}: give more")
        rows, digests = rows_of(model, tokenizer, texts, prompts, tokens, max_length)
        span = Span.of(model, sites, layers)
        scores = row_scores(
            model,
            tokenizer,
            rows,
            span,
            draws=samples,
            positions=positions,
            seed=seed,
            batch_tokens=batch_tokens,
            progress=progress,
            what="metric",
        )
        texts_scores = [each for _, each in sorted(scores, key=lambda numbered: numbered[0])]
        return cls(
            keys=span.keys,
            sizes=span.sizes,
            scores=torch.stack([each.drawn for each in texts_scores]),
            observed=torch.stack([each.observed for each in texts_scores]),
            means=torch.stack([each.mean for each in texts_scores]),
            local_scores=torch.stack([each.positions for each in texts_scores]),
            local_activations=torch.stack([each.activations for each in texts_scores]),
            counted=torch.tensor([each.n_counted for each in texts_scores]),
            shifted=torch.tensor([each.n_shifted for each in texts_scores]),
            squares=torch.stack([each.square for each in texts_scores]),
            heads=span.heads,
            settings={"tokens": tokens, "samples": samples, "seed": seed, "max_length": max_length},
            digests=tuple(digests),
            fingerprint=fingerprint(model),
        )

    def __repr__(self) -> str:
        sites = ", ".join(dict.fromkeys(site for site, _ in self.keys))
        return (
            f"ShiftMetric({sites} of {len({layer for _, layer in self.keys})} layers, d={sum(self.sizes)}, "
            f"{len(self.counted)} texts x {self.scores.shape[1]} draws, tokens={self.settings['tokens']!r})"
        )

    def matrix(self, site: str, layer: int) -> Float[Tensor, "d d"]:
        """F at one place, in nats per token per unit of shift squared: KL is `d @ F @ d / 2`."""
        part = self.scores[..., self._part((site, layer))].flatten(0, 1).double()
        return part.T @ part / (self.scores.shape[1] * float(self.counted.sum()))

    def price(
        self, edit: Edit, alpha: float | str = 1.0, *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
    ) -> Price:
        """What an edit is foretold to cost.

        A constant shift d costs 1/2 d' F d. An affine edit moves each token otherwise: the text's mean shift is priced
        as a constant, and what differs from token to token as shifts that know nothing of each other.

        Args:
            edit: Any edit that is affine: `AddDirection`, `ITI`, `Ablate`, `Erase`, `Scale`, `Compose` of them.
            alpha: Its strength.
            n_resamples: Resamples of the texts for the interval.
            level: Coverage of the interval.
            seed: Seed of the resamples.

        Returns:
            The price per predicted token. Texts on which the edit itself was fitted (`NaturalShift`) are left out.

        Raises:
            EntangleError: An edit that is no affine map, of another model, or at a place that the metric does not know.
        """
        return priced(
            self.on(self._texts_for(edit)), self._maps(edit, alpha), n_resamples=n_resamples, level=level, seed=seed
        )

    def shift(self, edit: Edit, alpha: float | str = 1.0) -> Float[Tensor, " d"]:
        """A constant edit's shift of all places, end to end.

        Raises:
            EntangleError: The edit is no constant shift.
        """
        vector = torch.zeros(sum(self.sizes), dtype=torch.float64)
        for key, form in self._maps(edit, alpha).items():
            if not form.is_constant:
                raise EntangleError(
                    f"this {type(edit).__name__} moves each token otherwise, so it is no constant shift: ask its price"
                )
            vector[self._part(key)] = form.constant.double()
        return vector

    def at(self, sites: str | Sequence[str] | None = None, layers: Sequence[int] | None = None) -> ShiftMetric:
        """The metric of some of the places.

        Raises:
            EntangleError: None of its places is meant.
        """
        names = None if sites is None else [sites] if isinstance(sites, str) else list(sites)
        chosen = [
            key for key in self.keys if (names is None or key[0] in names) and (layers is None or key[1] in layers)
        ]
        if not chosen:
            raise EntangleError(f"the metric knows {self._known()}; got sites={sites}, layers={layers}")
        return self._only(chosen)

    def on(self, rows: Sequence[int] | Int[Tensor, " row"]) -> ShiftMetric:
        """The metric of some of the texts, by number."""
        index = torch.as_tensor(rows)
        chosen: dict[str, Any] = {name: getattr(self, name)[index] for name in _TENSORS}
        chosen |= {"digests": tuple(self.digests[i] for i in index.tolist()), "_spectra": {}}
        return replace(self, **chosen)

    def halves(self, seed: int = 0) -> tuple[ShiftMetric, ShiftMetric]:
        """Two metrics of half the texts each: one to choose a shift by, one to price it by."""
        order = torch.randperm(len(self.counted), generator=torch.Generator().manual_seed(seed))
        half = len(order) // 2
        return self.on(order[:half].sort().values), self.on(order[half:].sort().values)

    def spectrum(self) -> Spectrum:
        """F of all its places together, shrunk as far as held-out texts want; for its inverse."""
        if self.keys not in self._spectra:
            self._spectra[self.keys] = Spectrum.of(self.scores, self.counted, self.sizes)
        return self._spectra[self.keys]

    def limit(self, contrast: Contrast, *, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """The most of a contrast that a shift can buy, place by place; see `entangle.forecast.limit`.

        Returns:
            Columns `site`, `layer`, `limit`, `limit_low`, `limit_high`, `reached`.
        """
        return limits(self, contrast, level=level, seed=seed)

    def efficiency(self, edit: Edit, contrast: Contrast) -> float:
        """What a constant edit buys of a contrast over the most that a shift of the same places and price could.

        Between -1 and 1, but for the noise of the estimate; the same at every strength.
        """
        keys = [key for key in self.keys if key in self._maps(edit, 1.0)]
        shift = torch.cat([self.shift(edit)[self._part(key)] for key in keys])
        here = self._only(keys)
        return contrast.at(keys).buys(shift) / (here.length(shift) * limit_of(here, contrast).value)

    def length(self, shift: Float[Tensor, " d"]) -> float:
        """sqrt(d' F d): the length of a shift in the metric; half its square is its price."""
        along = self.scores.double() @ shift.double()
        return float((along.square().mean(1).sum() / self.counted.double().sum()).sqrt())

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write it to a directory."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        meta = {
            "keys": self.keys,
            "sizes": self.sizes,
            "heads": [[*key, *value] for key, value in self.heads.items()],
            "settings": dict(self.settings),
            "digests": self.digests,
            "fingerprint": None if self.fingerprint is None else dict(self.fingerprint),
        }
        write(directory, KIND, VERSION, tensors, meta)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, model: nn.Module | None = None) -> Self:
        """Read one that `save` wrote.

        Args:
            directory: Where it is.
            model: The model it will be used with, checked now.

        Raises:
            EntangleError: No metric is there, it is damaged, or it belongs to another model.
        """
        tensors, meta = read(directory, KIND, VERSION)
        if model is not None and meta["fingerprint"] is not None:
            check_fingerprint(meta["fingerprint"], model, what=f"the metric in {directory}")
        kept: dict[str, Any] = {name: tensors[name] for name in _TENSORS}
        return cls(
            keys=tuple((site, layer) for site, layer in meta["keys"]),
            sizes=tuple(meta["sizes"]),
            heads={(site, layer): (count, size) for site, layer, count, size in meta["heads"]},
            settings=meta["settings"],
            digests=tuple(meta["digests"]),
            fingerprint=meta["fingerprint"],
            **kept,
        )

    def _only(self, chosen: Sequence[Key]) -> ShiftMetric:
        if len(chosen) == len(self.keys):
            return self
        columns = torch.cat([torch.arange(part.start, part.stop) for part in map(self._part, chosen)])
        numbers = [self.keys.index(key) for key in chosen]
        changed: dict[str, Any] = {name: getattr(self, name)[..., columns] for name in _WIDE}
        numbers = [self.keys.index(key) for key in chosen]
        changed |= {"keys": tuple(chosen), "sizes": tuple(self.sizes[number] for number in numbers), "_spectra": {}}
        changed["squares"] = self.squares[:, numbers]
        changed["heads"] = {key: value for key, value in self.heads.items() if key in chosen}
        return replace(self, **changed)

    def _part(self, key: Key) -> slice:
        if key not in self.keys:
            raise EntangleError(f"the metric knows {self._known()}; got {key[0]} of layer {key[1]}")
        return slices(self.sizes)[self.keys.index(key)]

    def _known(self) -> str:
        layers: dict[str, list[int]] = {}
        for site, layer in self.keys:
            layers.setdefault(site, []).append(layer)
        return " and ".join(f"{site} of layers {', '.join(map(str, each))}" for site, each in layers.items())

    def _maps(self, edit: Edit, alpha: float | str) -> dict[Key, AffineForm]:
        if (
            edit.fingerprint is not None
            and self.fingerprint is not None
            and dict(edit.fingerprint) != dict(self.fingerprint)
        ):
            raise EntangleError(
                f"this {type(edit).__name__} was made for another model than the metric: fit both on one model"
            )
        return forms_by_place(edit, alpha, dict(zip(self.keys, self.sizes, strict=True)), self.heads)

    def _texts_for(self, edit: Edit) -> Int[Tensor, " row"]:
        """The texts on which the edit was not fitted."""
        fitted = set(getattr(edit, "documents", ()))
        rows = torch.tensor([i for i, digest in enumerate(self.digests) if digest not in fitted], dtype=torch.long)
        if len(rows) < FEWEST:
            raise EntangleError(
                f"the edit was fitted on all but {len(rows)} of the metric's {len(self.digests)} texts, on which its "
                f"price would be flattered: price it by a metric of {FEWEST} other texts or more"
            )
        return rows
