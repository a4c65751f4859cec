"""What a shift of a model's activations costs in language, before anyone makes it.

For a constant shift d of a site, KL(plain || shifted) per predicted token is 1/2 d' F d to second order, with F the
Fisher information of the next token pulled back to the site: the mean over tokens of J' (diag p - p p') J. F needs only
backward passes on clean text; it knows no concept, so the price of any shift can be asked of it afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from entangle.data import AnyPrompt
from entangle.errors import EntangleError
from entangle.forecast.contrast import Contrast
from entangle.forecast.departure import Departure, departure_along, departures
from entangle.forecast.limit import limit_of, limits
from entangle.forecast.price import Price, priced
from entangle.forecast.reading import some_rows
from entangle.forecast.rows import Scope, rows_of
from entangle.forecast.samples import PER_PLACE, PER_TEXT, Samples
from entangle.forecast.scores import Row, row_scores
from entangle.forecast.span import Key, Span, forms_by_place, key_of
from entangle.interventions import Edit
from entangle.interventions.forms import AffineForm
from entangle.models import Atlas, check_fingerprint, check_made_with, fingerprint, own_tokenizer, underlying
from entangle.storage.record import read, write

KIND, VERSION = "ShiftMetric", 2
READ_ROWS = ("read_ids", "read_flags")
READ = 1024
"""Tokens on which an edit is read itself."""
FEWEST_CLEAN = 8
"""Texts that an interval needs."""


class ShiftMetric(Samples):
    """The metric of shifts at some places of a model; made by `ShiftMetric.fit`. What it holds, `Samples` says.

    Example:
        >>> metric = en.ShiftMetric.fit(model, tokenizer, clean[:16], layers=[1], samples=2, progress=False)
        >>> push = en.AddDirection(directions.vectors[0], "resid_post", 1)
        >>> one, two = metric.price(push, alpha=0.1), metric.price(push, alpha=0.2)
        >>> round(two.value / one.value, 3)  # the price grows with the square of the shift
        4.0
    """

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        *,
        sites: str | Sequence[str] = "resid_post",
        layers: Sequence[int] | None = None,
        prompts: Sequence[AnyPrompt] | None = None,
        tokens: Scope = "all",
        samples: int = 4,
        positions: int = 4,
        directions: int = 2,
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
            prompts: What comes before each text, where texts are continuations: strings, or conversations.
            tokens: Which tokens are shifted: `"all"`, or with prompts `"prompt"` or `"generated"`. With prompts only
                the continuation's tokens are counted.
            samples: Next tokens drawn per position; each is one backward pass.
            positions: Tokens of each text whose own gradients are kept, for edits that are no constant shift.
            directions: Directions of each place along which it is read how far the price departs from the quadratic;
                0 reads none, and no price is then said to be off.
            max_length: Keep at most this many tokens of a text.
            batch_tokens: Tokens in one batch, padding included; fewer where the vocabulary is large.
            seed: Seed of the draws and of the directions.
            progress: Show a progress bar.

        Returns:
            The metric.

        Raises:
            EntangleError: Too few texts, a text without a token to predict, or a model without gradients.
        """
        model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
        if samples < 1 or positions < 1 or directions < 0:
            raise EntangleError(
                "a metric needs one sample, one position, and no direction or more; "
                f"got {samples}, {positions} and {directions}"
            )
        if not isinstance(texts, Sequence):
            raise EntangleError(f"a metric needs a list of texts; got a {type(texts).__name__}")
        if len(texts) < FEWEST_CLEAN:
            raise EntangleError(
                f"a metric needs {FEWEST_CLEAN} texts or more for its interval; got {len(texts)}: give more"
            )
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
        drawn, means = (torch.stack([getattr(each, name) for each in texts_scores]) for name in ("drawn", "mean"))
        counted = torch.tensor([each.n_counted for each in texts_scores])
        departed, at = departures(model, tokenizer, rows, span, means, drawn, counted, directions=directions, seed=seed)
        read_ids, read_flags = Row.stacked(some_rows(rows, READ, torch.Generator().manual_seed(seed)))
        return cls(
            keys=span.keys,
            sizes=span.sizes,
            scores=drawn,
            observed=torch.stack([each.observed for each in texts_scores]),
            means=means,
            local_scores=torch.stack([each.positions for each in texts_scores]),
            local_activations=torch.stack([each.activations for each in texts_scores]),
            counted=counted,
            shifted=torch.tensor([each.n_shifted for each in texts_scores]),
            squares=torch.stack([each.square for each in texts_scores]),
            heads=span.heads,
            departures=departed,
            departure_prices=at,
            read_ids=read_ids,
            read_flags=read_flags,
            settings={"tokens": tokens, "samples": samples, "seed": seed, "max_length": max_length},
            digests=tuple(digests),
            fingerprint=fingerprint(model),
        )

    def price(
        self,
        edit: Edit,
        alpha: float | str = 1.0,
        *,
        model: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        read_on: int | None = None,
        n_resamples: int = 2000,
        level: float = 0.95,
        seed: int = 0,
    ) -> Price:
        """What an edit is foretold to cost.

        A constant shift d costs 1/2 d' F d. An affine edit moves each token otherwise: the text's mean shift is priced
        as a constant, and what differs from token to token as shifts that know nothing of each other. That is the price
        of a small edit. Given the model, a larger one is read itself, at its strength and at a tenth of it (in half
        precision at more, where a tenth is rounding), on a thousand tokens of the metric's texts: the price is the
        quadratic's times how far it departs there.

        Args:
            edit: Any edit that is affine: `AddDirection`, `ITI`, `Ablate`, `Erase`, `Scale`, `Compose` of them.
            alpha: Its strength.
            model: The model, to read how far this edit's price departs from the quadratic; without it that is told from
                other directions of its places, and not corrected.
            tokenizer: Its tokenizer.
            read_on: Number of other texts on which the price will be measured, for the interval of that; as many as
                the metric has by default.
            n_resamples: Resamples of the texts for the interval of the mean.
            level: Coverage of both intervals.
            seed: Seed of the resamples.

        Returns:
            The price per predicted token. Texts on which the edit itself was fitted (`NaturalShift`) are left out.

        Raises:
            EntangleError: An edit that is no affine map, of another model, or at a place that the metric does not know.
        """
        maps = self._maps(edit, alpha)
        return priced(
            self.on(self._texts_for(edit)),
            maps,
            None if model is None else self._departure(maps, model, tokenizer),
            read_on=read_on,
            n_resamples=n_resamples,
            level=level,
            seed=seed,
        )

    def knows(self, edit: Edit) -> bool:
        """Whether this is an affine edit of places that the metric has, so that `price` can foretell it.

        Example:
            >>> metric = en.ShiftMetric.fit(model, tokenizer, clean, layers=[1], samples=2, progress=False)
            >>> at = [en.AddDirection(torch.ones(64), "resid_post", layer) for layer in (0, 1)]
            >>> [metric.knows(edit) for edit in at]
            [False, True]
        """
        return all(isinstance(form, AffineForm) and key_of(form) in self.keys for form in edit.forms(1.0))

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
            vector[self.part(key)] = form.constant.double()
        return vector

    def limit(self, contrast: Contrast, *, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """The most of a contrast that a shift can buy, place by place; see `entangle.forecast.limit`.

        Returns:
            Columns `site`, `layer`, `limit`, `limit_low`, `limit_high`, `reached`.
        """
        return limits(self, contrast, level=level, seed=seed)

    def gain(self, edit: Edit, contrast: Contrast) -> float:
        """What a constant edit buys of a contrast, in nats per token, per square root of twice its price.

        The same at every strength; the unit of `limit`. Texts on which the edit was fitted are left out of its price.
        """
        keys = [key for key in self.keys if key in self._maps(edit, 1.0)]
        shift = torch.cat([self.shift(edit)[self.part(key)] for key in keys])
        length = self.on(self._texts_for(edit)).only(keys).length(shift)
        return contrast.at(keys).buys(shift) / length if length > 0 else 0.0

    def efficiency(self, edit: Edit, contrast: Contrast) -> float:
        """What a constant edit buys of a contrast over the most that a shift of the same places and price could.

        Between -1 and 1, but for the noise of the estimate; the same at every strength.
        """
        keys = [key for key in self.keys if key in self._maps(edit, 1.0)]
        return self.gain(edit, contrast) / limit_of(self.only(keys), contrast).value

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write it to a directory."""
        tensors = {name: getattr(self, name) for name in (*PER_TEXT, *PER_PLACE, *READ_ROWS)}
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
        check_made_with(meta["fingerprint"], model, what=f"the scores of the metric in {directory}")
        kept: dict[str, Any] = {name: tensors[name] for name in (*PER_TEXT, *PER_PLACE)}
        # Files of before edits were read themselves have no texts for it.
        empty = torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0, 2, dtype=torch.bool)
        kept |= {name: tensors.get(name, blank) for name, blank in zip(READ_ROWS, empty, strict=True)}
        return cls(
            keys=tuple((site, layer) for site, layer in meta["keys"]),
            sizes=tuple(meta["sizes"]),
            heads={(site, layer): (count, size) for site, layer, count, size in meta["heads"]},
            settings=meta["settings"],
            digests=tuple(meta["digests"]),
            fingerprint=meta["fingerprint"],
            **kept,
        )

    def _departure(self, maps: Mapping[Key, AffineForm], model: Any, tokenizer: Any) -> Departure:
        """How far an edit's own price departs from the quadratic."""
        model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
        if self.fingerprint is not None:
            check_fingerprint(self.fingerprint, model, what="this metric")
        if not len(self.read_ids):
            raise EntangleError(
                "this metric was saved without texts to read an edit on: fit it anew, or leave the model out"
            )
        atlas = Atlas(model)
        return departure_along(
            model,
            tokenizer,
            Row.unstacked(self.read_ids, self.read_flags),
            {atlas.place(*key): form for key, form in maps.items()},
        )

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
        if len(rows) < FEWEST_CLEAN:
            raise EntangleError(
                f"the edit was fitted on all but {len(rows)} of the metric's {len(self.digests)} texts, on which its "
                f"price would be flattered: price it by a metric of {FEWEST_CLEAN} other texts or more"
            )
        return rows
