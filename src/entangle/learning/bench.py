"""The model with constants at some places: what texts gain by them, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.learning.texts import Batch, Row, parts
from entangle.models import Place, hooked


class Bench:
    """The model with shifts at its places, and what they cost on neutral texts that nothing is trained on."""

    def __init__(self, model: Any, tokenizer: Any, places: Sequence[Place], budget: float, rows: Sequence[Row]) -> None:
        self.model, self.tokenizer, self.places, self.budget, self.rows = model, tokenizer, places, budget, rows
        seen: dict[int, Tensor] = {}

        def look(number: int) -> Callable[[Tensor], None]:
            def fn(x: Tensor) -> None:
                seen[number] = x.detach()

            return fn

        batch = self.batch(rows[: next(iter(len(part) for part in parts(model, rows)))])
        with torch.no_grad(), hooked((place, look(number)) for number, place in enumerate(places)):
            batch.logits(model)
        rows_seen = [seen[number][batch.real].float() for number in range(len(places))]
        self.means = [each.mean(0) for each in rows_seen]
        self.spreads = [each.std(0) for each in rows_seen]
        # A typical coordinate's: a few massive ones would make every other step too long.
        self.scales = [float(each.median()) for each in self.spreads]
        if not all(scale > 0 for scale in self.scales):
            raise EntangleError("the activations at this place never change, so nothing can be learned there")

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Rows as the model's arguments."""
        return Batch.of(self.model, self.tokenizer, rows)

    def likelihoods(self, rows: Sequence[Row], vectors: Sequence[Tensor] = ()) -> Float[Tensor, " row"]:
        """Of each row in nats, with the vectors at work or plain."""
        with torch.no_grad(), hooked(self.moving(vectors)):
            results = [
                self.batch([rows[i] for i in part]).log_likelihood(self.model) for part in parts(self.model, rows)
            ]
        return torch.cat(results)

    def price(self, vectors: Sequence[Tensor]) -> float:
        """KL(plain || with the vectors at work), in nats per token."""
        total, tokens = 0.0, 0
        with torch.no_grad():
            for part in parts(self.model, self.rows, 2):
                batch = self.batch([self.rows[i] for i in part])
                plain = batch.logits(self.model)
                with hooked(self.moving(vectors)):
                    shifted = batch.logits(self.model)
                total += float(kl_per_token(plain, shifted).sum())
                tokens += len(batch.targets)
        return total / tokens

    def at_budget(self, vectors: Sequence[Tensor]) -> tuple[list[Tensor], float]:
        """The vectors, all as much longer or shorter as makes them cost the budget; and what they cost as they were.

        KL grows with the square of the length, and sooner or later otherwise: what is left after a few steps stays
        below the budget.
        """
        first = price = self.price(vectors)
        vectors = [*vectors]
        for _ in range(5):
            if price == 0 or 0.95 <= price / self.budget <= 1.02:
                break
            factor = (self.budget / price) ** 0.5 if math.isfinite(price) else 0.0
            vectors = [vector * min(max(factor, 0.25), 4.0) for vector in vectors]
            price = self.price(vectors)
        while price > 1.02 * self.budget:
            vectors = [vector * 0.9 for vector in vectors]
            price = self.price(vectors)
        return vectors, first

    def gain(self, vectors: Sequence[Tensor], sides: Sequence[Sequence[Row]]) -> float:
        """What the one side's tokens gain less what the other's do, on average."""
        gains = []
        for rows in sides:
            moved = (self.likelihoods(rows, vectors) - self.likelihoods(rows)).sum()
            gains.append(float(moved) / sum(row.n_counted for row in rows))
        return gains[0] - gains[1]

    def moving(self, vectors: Sequence[Tensor]) -> list[tuple[Place, Callable[[Tensor], Tensor]]]:
        """What vectors do at the places: `[d]` is added; `[2 d]` is a scale and a shift of each coordinate."""

        def adding(number: int, vector: Tensor) -> Callable[[Tensor], Tensor]:
            if vector.ndim == 1:
                return lambda x: x + vector.to(x)
            return lambda x: x + ((x - self.means[number].to(x)) * vector[0].to(x) + vector[1].to(x))

        return [(self.places[number], adding(number, vector)) for number, vector in enumerate(vectors)]


def kl_per_token(plain: Float[Tensor, "token vocab"], shifted: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    """KL(plain || shifted), which can be differentiated."""
    p, q = plain.float().log_softmax(-1), shifted.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
