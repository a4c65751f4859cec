"""How far the price of a shift departs from the quadratic, place by place: read at two strengths as a metric is fitted.

Along a direction u the price is 1/2 a^2 u'F u for small a. Read at a small strength and at ten times that, on the same
texts, it would be a hundred times as large if it were quadratic; the ratio says how far it is not. The directions are
differences of two texts' mean activations: what directions of concepts are like.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from entangle.forecast.scores import Row
from entangle.forecast.span import Span
from entangle.metrics import kl_of
from entangle.models import LOGITS, Place, hooked, run_rows

FURTHEST = 0.4
"""Nats per token at which prices are read: no forecast is said to hold beyond."""
NEAR = 10.0
"""By how much the smaller of the two strengths is smaller."""
TOKENS = 512


@torch.no_grad()
def departures(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    span: Span,
    means: Float[Tensor, "text d"],
    scores: Float[Tensor, "text draw d"],
    counted: Float[Tensor, " text"],
    *,
    directions: int,
    seed: int,
) -> tuple[Float[Tensor, "place direction"], Float[Tensor, "place direction"]]:
    """What is paid over what the quadratic says, and the quadratic's price there, in nats per token.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        rows: The texts; some of them are read, 512 tokens in all, or fewer where the vocabulary is large.
        span: The places.
        means: Mean activation of each text.
        scores: Scores of each text, which say how strong a shift is to be.
        counted: Predicted tokens of each text.
        directions: How many directions are read per place.
        seed: Seed of the texts and of the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    reading = _Reading(model, tokenizer, _some(rows, min(TOKENS, LOGITS // vocabulary), generator))
    ratios, prices = (torch.ones(len(span.places), directions, dtype=torch.float64) for _ in range(2))
    for number, (place, part) in enumerate(zip(span.places, span.slices, strict=True)):
        for direction in range(directions):
            one, other = torch.randperm(len(means), generator=generator)[:2].tolist()
            u = (means[one, part] - means[other, part]).double()
            along = scores[..., part].double() @ u
            unit = float(along.square().mean(1).sum() / counted.double().sum()) / 2
            if not unit > 0:  # no shift along it changes anything: nothing to depart from
                continue
            strength = (FURTHEST / unit) ** 0.5
            near, far = (reading.price(place, u * each) for each in (strength / NEAR, strength))
            prices[number, direction] = near * NEAR**2
            ratios[number, direction] = far / prices[number, direction] if near > 0 else float("inf")
    return ratios, prices


class _Reading:
    """Some texts as the plain model reads them, which shifted models are held against."""

    def __init__(self, model: nn.Module, tokenizer: Any, rows: Sequence[Row]) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._ids = [list(row.ids) for row in rows]
        width = max(map(len, self._ids))
        self._shifted, self._counted = (
            torch.tensor([[*flags, *[False] * (width - len(flags))] for flags in each])
            for each in ([row.shifted for row in rows], [row.counted for row in rows])
        )
        self._plain = self._logits()

    def price(self, place: Place, shift: Float[Tensor, " size"]) -> float:
        """KL(plain || shifted) per counted token."""

        def moved(x: Tensor) -> Tensor:
            where = self._shifted.to(x.device)[..., None]
            return x + where * shift.to(x.device, x.dtype)

        with hooked([(place, moved)]):
            return float(kl_of(self._plain, self._logits()).mean())

    def _logits(self) -> Float[Tensor, "counted vocab"]:
        logits = run_rows(self._model, self._tokenizer, self._ids).logits
        return logits[self._counted.to(logits.device)]  # type: ignore[no-any-return]


def _some(rows: Sequence[Row], tokens: int, generator: torch.Generator) -> list[Row]:
    """Texts in random order until so many tokens are there, the last one cut; one at least."""
    chosen: list[Row] = []
    left = tokens
    for i in torch.randperm(len(rows), generator=generator).tolist():
        row = rows[i]
        length = min(len(row.ids), left)
        cut = Row(row.ids[:length], row.shifted[:length], [*row.counted[: length - 1], False])
        if length >= 2 and cut.n_counted and any(cut.shifted):
            chosen.append(cut)
            left -= length
        if left < 2:
            break
    return chosen or [rows[0]]
