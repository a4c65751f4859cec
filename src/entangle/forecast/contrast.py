"""What a shift of a site does to the contrast of two kinds of text, to first order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from entangle.data import AnyPrompt
from entangle.errors import EntangleError
from entangle.forecast.rows import Scope, rows_of
from entangle.forecast.scores import row_scores
from entangle.forecast.span import Key, Span, slices
from entangle.models import fingerprint, own_tokenizer, underlying

FEWEST = 8


@dataclass(frozen=True, eq=False)
class Contrast:
    """The gradient, by a constant shift, of mean log p(toward) - mean log p(away), per token; made by `Contrast.fit`.

    Attributes:
        keys: Site and layer of each place.
        sizes: Width of each place.
        toward: Gradient of each text's own log-probability, of the side to steer toward.
        away: The same of the other side.
        toward_tokens: Predicted tokens of each text.
        away_tokens: The same of the other side.
        digests: Of all texts.
        fingerprint: Of the model.

    Example:
        >>> polite, rude = texts[0::2], texts[1::2]
        >>> contrast = en.Contrast.fit(model, tokenizer, polite, rude, layers=[1], progress=False)
        >>> contrast
        Contrast(resid_post of 1 layers, 48 texts toward and 48 away)
        >>> contrast.buys(contrast.gradient) > 0  # nats per token by which polite texts gain on rude ones
        True
    """

    keys: tuple[Key, ...]
    sizes: tuple[int, ...]
    toward: Float[Tensor, "text d"]
    away: Float[Tensor, "other d"]
    toward_tokens: Int[Tensor, " text"]
    away_tokens: Int[Tensor, " other"]
    digests: tuple[str, ...] = ()
    fingerprint: Mapping[str, Any] | None = None

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        toward: Sequence[str],
        away: Sequence[str],
        *,
        sites: str | Sequence[str] = "resid_post",
        layers: Sequence[int] | None = None,
        prompts: tuple[Sequence[AnyPrompt], Sequence[AnyPrompt]] | None = None,
        tokens: Scope = "all",
        max_length: int | None = None,
        batch_tokens: int = 2048,
        progress: bool = True,
    ) -> Self:
        """One backward pass over each text.

        With the model's own continuations of prompts on either side, sorted by a score, the gradient is that of the
        score a shift changes in what the model says (the policy gradient), and not of how it reads others' texts.

        Args:
            model: A causal language model that can be differentiated.
            tokenizer: Its tokenizer.
            toward: Texts of the side to steer toward, eight or more.
            away: Texts of the other side, eight or more.
            sites: As for `ShiftMetric.fit`.
            layers: As for `ShiftMetric.fit`.
            prompts: What comes before each text of either side, where texts are continuations: those alone count.
                Strings, or conversations that the texts answer.
            tokens: Which tokens are shifted, as for `ShiftMetric.fit`.
            max_length: Keep at most this many tokens of a text.
            batch_tokens: Tokens in one batch, padding included.
            progress: Show a progress bar.

        Returns:
            The contrast.

        Raises:
            EntangleError: Too few texts, a text without a token to predict, or a model without gradients.
        """
        model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
        if min(len(toward), len(away)) < FEWEST:
            raise EntangleError(
                f"a contrast needs {FEWEST} texts or more on each side; got {len(toward)} and {len(away)}: give more"
            )
        span = Span.of(model, sites, layers)
        sides, names = [], []
        for texts, before in zip((toward, away), prompts or (None, None), strict=True):
            rows, digests = rows_of(model, tokenizer, texts, before, tokens, max_length)
            gradients = torch.zeros(len(rows), span.size)
            for number, each in row_scores(
                model, tokenizer, rows, span, draws=0, batch_tokens=batch_tokens, progress=progress, what="contrast"
            ):
                gradients[number] = each.observed
            sides.append((gradients, torch.tensor([row.n_counted for row in rows])))
            names += digests
        (towards, toward_tokens), (aways, away_tokens) = sides
        return cls(span.keys, span.sizes, towards, aways, toward_tokens, away_tokens, tuple(names), fingerprint(model))

    def __repr__(self) -> str:
        sites = ", ".join(dict.fromkeys(site for site, _ in self.keys))
        layers = len({layer for _, layer in self.keys})
        return f"Contrast({sites} of {layers} layers, {len(self.toward)} texts toward and {len(self.away)} away)"

    @property
    def gradient(self) -> Float[Tensor, " d"]:
        """Nats per token that the contrast gains per unit of shift, all places end to end."""
        toward, away = self._influences
        return toward.mean(0) - away.mean(0)

    def buys(self, shift: Float[Tensor, " d"]) -> float:
        """What a shift adds to the contrast to first order, in nats per token."""
        return float(self.gradient @ shift.double())

    def at(self, keys: Sequence[Key]) -> Contrast:
        """The contrast at some of the places.

        Raises:
            EntangleError: A place that it does not know.
        """
        if tuple(keys) == self.keys:
            return self
        unknown = [key for key in keys if key not in self.keys]
        if unknown:
            raise EntangleError(
                f"the contrast does not know {unknown[0][0]} of layer {unknown[0][1]}: fit it with the metric's sites "
                "and layers"
            )
        parts = dict(zip(self.keys, slices(self.sizes), strict=True))
        columns = torch.cat([torch.arange(parts[key].start, parts[key].stop) for key in keys])
        return replace(
            self,
            keys=tuple(keys),
            sizes=tuple(self.sizes[self.keys.index(key)] for key in keys),
            toward=self.toward[:, columns],
            away=self.away[:, columns],
        )

    def on(self, toward: Sequence[int] | Tensor, away: Sequence[int] | Tensor) -> Contrast:
        """The contrast of some of the texts, by number."""
        one, other = torch.as_tensor(toward), torch.as_tensor(away)
        return replace(
            self,
            toward=self.toward[one],
            away=self.away[other],
            toward_tokens=self.toward_tokens[one],
            away_tokens=self.away_tokens[other],
            digests=(),
        )

    def halves(self, seed: int = 0) -> tuple[Contrast, Contrast]:
        """Two contrasts of half the texts each."""
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(side), generator=generator) for side in (self.toward, self.away)]
        middle = [len(order) // 2 for order in orders]
        return (
            self.on(*(order[:half] for order, half in zip(orders, middle, strict=True))),
            self.on(*(order[half:] for order, half in zip(orders, middle, strict=True))),
        )

    @property
    def _influences(self) -> tuple[Float[Tensor, "text d"], Float[Tensor, "other d"]]:
        """Gradients whose plain mean over texts is the mean per token."""
        return tuple(  # type: ignore[return-value]
            gradients.double() * (len(tokens) / tokens.double().sum())
            for gradients, tokens in ((self.toward, self.toward_tokens), (self.away, self.away_tokens))
        )
