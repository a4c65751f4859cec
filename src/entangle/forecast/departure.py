"""How far the price of a shift departs from the quadratic, place by place: read at two strengths as a metric is fitted.

Along a direction u the price is 1/2 a^2 u'F u for small a. Read at a small strength and at ten times that, on the same
texts, it would be a hundred times as large if it were quadratic; the ratio says how far it is not. As a metric is
fitted the directions are differences of two texts' mean activations, what directions of concepts are like; with the
model at hand, an edit is read along itself, which no other direction can stand for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.forecast.reading import Move, Reading, some_rows
from entangle.forecast.scores import Row
from entangle.forecast.span import Span, displacement
from entangle.interventions.forms import AffineForm
from entangle.models import LOGITS, Place

FURTHEST = 0.4
"""Nats per token at which prices are read: no forecast is said to hold beyond."""
NEAR = 10.0
"""By how much the smaller of the two strengths is smaller."""
NEAR_IN_HALF, TOLD, ROUNDED = (0.1, 0.2, 0.5), 0.5, 1e-3
"""Shares to read in half precision, the first that costs enough; how far what is left of a departure is believed; nats
per token below which what is read there is mostly rounding."""
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
    reading = Reading(model, tokenizer, some_rows(rows, min(TOKENS, LOGITS // vocabulary), generator))
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
            near, far = (_price(reading, place, u * each) for each in (strength / NEAR, strength))
            prices[number, direction] = near * NEAR**2
            ratios[number, direction] = far / prices[number, direction] if near > 0 else float("inf")
    return ratios, prices


def _price(reading: Reading, place: Place, shift: Float[Tensor, " size"]) -> float:
    """Nats per counted token."""
    return float(reading.nats({place: lambda x: shift.to(x.device, x.dtype)}).sum() / reading.counted.sum())


class Departure(NamedTuple):
    """How an edit's own price departs from the quadratic at one strength.

    Attributes:
        ratio: What is paid over what the quadratic says.
        error: Standard error of its logarithm over texts; infinite for one text.
    """

    ratio: float
    error: float


def departure_along(
    model: nn.Module, tokenizer: Any, rows: Sequence[Row], maps: Mapping[Place, AffineForm]
) -> Departure:
    """Read an edit itself at its strength and at a tenth of it, on some texts.

    The tenth is read both ways, whose mean has no term of the third order: the quadratic is told from far off. In half
    precision a tenth may be lost in rounding, which costs nats of its own: then up to half is read, and a departure
    that grows with the square of the strength is told from what is left of it. An edit that costs no more than rounding
    is small, and its price the quadratic.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        rows: The texts.
        maps: What the edit does at each place.
    """
    reading = Reading(model, tokenizer, rows)

    def nats(share: float) -> Float[Tensor, " text"]:
        def part_of(form: AffineForm) -> Move:
            return lambda x: share * displacement(form, x.float())

        return reading.nats({place: part_of(form) for place, form in maps.items()})

    exact = reading.dtype in (torch.float32, torch.float64)
    far, counted = nats(1.0), float(reading.counted.sum())
    for share in (1 / NEAR,) if exact else NEAR_IN_HALF:
        little = (nats(share) + nats(-share)) / 2
        near = little / share**2
        if float(little.sum()) / counted > ROUNDED:
            break
    if not float(far.sum()) / counted > (0 if exact else ROUNDED):
        return Departure(1.0, 0.0)
    if not float(near.sum()) > 0:
        raise EntangleError(
            f"the edit costs {float(far.sum()) / counted:.3g} nats per token and nothing at {share:g} of "
            "its strength, so no quadratic foretells it: measure its price"
        )
    ratio = float(far.sum() / near.sum())
    without = (far.sum() - far) / (near.sum() - near)  # the jackknife's
    n = len(far)
    error = math.sqrt((n - 1) / n * float((without.log() - without.log().mean()).square().sum())) if n > 1 else math.inf
    if share > 1 / NEAR and ratio * share**2 < TOLD:  # 1 + c over 1 + c share^2
        error /= 1 - ratio * share**2
        ratio *= (1 - share**2) / (1 - ratio * share**2)
    return Departure(ratio, error if math.isfinite(error) else math.inf)
