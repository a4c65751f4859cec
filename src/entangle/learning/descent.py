"""The descent: a step down the loss of some pairs and the price of some neutral texts, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.learning.bench import Bench, kl_per_token
from entangle.learning.objectives import Objective
from entangle.learning.texts import Row, parts
from entangle.models import Place, hooked
from entangle.progress import progress_bar

EVERY, PATIENCE = 10, 4
STIFFNESS, FURTHEST = 0.05, 5.0
"""Growth of the budget's weight in a step, for each budget that is paid too much; and so many at most."""
BETTER = 1e-3
"""By how much the loss on the selection texts must fall to count, as a share of what it fell so far."""


class Run:
    """One descent: the objective, its texts and its optimiser."""

    def __init__(
        self,
        bench: Bench,
        kind: type[Objective],
        sides: Sequence[Sequence[Row]],
        neutral: Sequence[Row],
        batch: int,
        rate: float,
        seed: int,
    ) -> None:
        self.bench, self.sides, self.neutral, self.size = bench, sides, neutral, batch
        self.objective = kind([place.size for place in bench.places], bench.scales, seed)
        self.plain = [bench.likelihoods(rows) for rows in sides]
        self.optimiser = torch.optim.AdamW(self.objective.vectors, lr=rate, weight_decay=kind.decay)
        self.weight = 0.0
        self._judged: list[Tensor] = []  # what the plain model says of the selection texts
        self._generator = torch.Generator().manual_seed(seed + 1)

    def step(self) -> None:
        """One step down the loss of some pairs and the price of some neutral texts."""
        chosen, some = self._drawn(len(self.sides[0])), self._drawn(len(self.neutral))
        gradients = [torch.zeros_like(vector) for vector in self.objective.vectors]
        with hooked(self._shifting()):
            for sign in self.objective.signs:
                self.objective.sign = sign
                for loss in self._losses(chosen):
                    self._add(gradients, loss / len(self.objective.signs))
        self.objective.sign = 1.0
        over = -1.0
        for part in parts(self.bench.model, [self.neutral[i] for i in some], 3):
            batch = self.bench.batch([self.neutral[some[i]] for i in part])
            with torch.no_grad():
                plain = batch.logits(self.bench.model)
            self.objective.real = batch.real
            with hooked(self._shifting()), torch.set_grad_enabled(self.weight > 0):
                price = kl_per_token(plain, batch.logits(self.bench.model)).mean() * (len(part) / len(some))
            self.objective.penalty()  # of neutral texts it asks nothing
            over += float(price.detach()) / self.bench.budget
            if self.weight > 0:
                self._add(gradients, self.weight * price / self.bench.budget)
        self.weight = max(0.0, self.weight + STIFFNESS * min(over, FURTHEST))
        for vector, gradient in zip(self.objective.vectors, gradients, strict=True):
            vector.grad = gradient
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise EntangleError("the gradient is not finite on these texts: load the model in a wider dtype")
        self.optimiser.step()

    def judge(self, vectors: Sequence[Tensor], sides: Sequence[Sequence[Row]]) -> float:
        """The objective of constants on the selection texts, always the same ones."""
        total = 0.0
        if not self._judged:
            self._judged = [self.bench.likelihoods(rows).cpu() for rows in sides]
        tokens = torch.tensor([row.n_counted for row in sides[0]], dtype=torch.float32)
        for sign in self.objective.signs:
            self.objective.sign = sign
            signed = [sign * vector for vector in vectors]
            toward, away = (
                self.bench.likelihoods(rows, signed).cpu() - plain
                for rows, plain in zip(sides, self._judged, strict=True)
            )
            total += float(self.objective.loss(toward, away, tokens).mean()) / len(self.objective.signs)
        self.objective.sign = 1.0
        return total

    def vectors(self) -> list[Tensor]:
        """What would be kept now, in the activations' units."""
        return [self.objective.constant(number).detach().clone() for number in range(len(self.bench.places))]

    def _drawn(self, n: int) -> list[int]:
        return torch.randperm(n, generator=self._generator)[: self.size].tolist()

    def _shifting(self) -> list[tuple[Place, Callable[[Tensor], Tensor]]]:
        def shifting(number: int) -> Callable[[Tensor], Tensor]:
            return lambda x: x + self.objective.shift(number, x)

        return [(place, shifting(number)) for number, place in enumerate(self.bench.places)]

    def _losses(self, chosen: Sequence[int]) -> Iterator[Tensor]:
        toward = [self.sides[0][i] for i in chosen]
        for part in parts(self.bench.model, toward, 6):
            numbers = [chosen[i] for i in part]
            one = self._gains(0, numbers)
            other = self._gains(1, numbers) if self.objective.pairs else one[:0]
            tokens = torch.tensor([self.sides[0][i].n_counted for i in numbers], device=one.device)
            share = len(part) / len(chosen)
            yield self.objective.loss(one, other, tokens).mean() * share + self.objective.penalty() * share

    def _gains(self, side: int, numbers: Sequence[int]) -> Float[Tensor, " row"]:
        batch = self.bench.batch([self.sides[side][i] for i in numbers])
        self.objective.real = batch.real
        return batch.log_likelihood(self.bench.model) - self.plain[side][numbers]

    def _add(self, gradients: Sequence[Tensor], loss: Tensor) -> None:
        if not loss.requires_grad:
            raise EntangleError(
                f"learning needs gradients, but {type(self.bench.model).__name__} gives none (quantised, exported, or "
                "made under torch.inference_mode): load it anew in float32 or bfloat16"
            )
        slopes = torch.autograd.grad(loss, self.objective.vectors, allow_unused=True)
        for total, gradient in zip(gradients, slopes, strict=True):
            if gradient is not None:
                total.add_(gradient.to(total))


class Descends(Protocol):
    """Something that learns vectors step by step."""

    weight: float

    def step(self) -> None:
        """Take one step."""

    def vectors(self) -> list[Tensor]:
        """What would be kept now; zero is no edit at all."""

    def judge(self, vectors: Sequence[Tensor], sides: Sequence[Sequence[Row]]) -> float:
        """The loss of vectors on other texts."""


def descend(
    run: Descends,
    settle: Callable[[Sequence[Tensor]], tuple[list[Tensor], float]],
    judged: Sequence[Sequence[Row]],
    steps: int,
    name: str,
    progress: bool,
) -> tuple[list[Tensor], list[dict[str, float]], bool]:
    """The best vectors by the selection texts, what was seen, and whether it had come to rest.

    Args:
        run: What learns.
        settle: Brings vectors to the length at which they are judged, and says what they cost before.
        judged: The selection texts of either side.
        steps: Steps at most.
        name: Of the bar.
        progress: Show it.
    """
    best = [torch.zeros_like(vector) for vector in run.vectors()]
    start = least = run.judge(best, judged)
    history, idle = [{"step": 0.0, "loss": start, "kl": 0.0, "weight": 0.0}], 0
    for number in progress_bar(range(1, steps + 1), desc=name, unit="step", disable=not progress):
        run.step()
        if number % EVERY:
            continue
        vectors, price = settle(run.vectors())
        loss = run.judge(vectors, judged)
        history.append({"step": float(number), "loss": loss, "kl": price, "weight": run.weight})
        if loss < least - BETTER * max(start - least, 0.0) and math.isfinite(loss):
            best, least, idle = vectors, loss, 0
        else:
            idle += 1
        if idle >= PATIENCE:
            return best, history, True
    return best, history, False


def rested(converged: bool, best: Sequence[Tensor], history: Sequence[dict[str, float]], what: str) -> None:
    """Raise an `EntangleError` where nothing was found, or what was found had not come to rest.

    Raises:
        EntangleError: It says which.
    """
    if not converged:
        raise EntangleError(
            f"{what} did not converge in {history[-1]['step']:.0f} steps (loss on the selection texts still falling, "
            f"{history[-1]['loss']:.4g}): give more steps=, or take it as it is with must_converge=False"
        )
    if not any(bool(vector.any()) for vector in best):
        raise EntangleError(
            f"{what} found nothing that does better on the selection texts than no edit: give more texts, another "
            "layer or a larger budget"
        )
