"""A stream of tokens to train on, and which sequences of it a training visits when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from entangle.composition.recipe.training import Training
from entangle.composition.training.corpus import Mixture


@dataclass(frozen=True, eq=False)
class Stream:
    """Documents one after the other, and in which order a training reads them.

    Attributes:
        tokens: All of them.
        scored: Which of them the model learns to predict; all without it.
        cooldown: The token at which a last part begins, which is trained on after all the rest; none without it.
    """

    tokens: Int[Tensor, " token"]
    scored: Bool[Tensor, " token"] | None = None
    cooldown: int | None = None

    @classmethod
    def of(cls, mixture: Mixture) -> Self:
        """A mixture as it is."""
        return cls(torch.from_numpy(mixture.documents.tokens))

    def counts(self) -> dict[str, int]:
        """`metadata_tokens`, which are read and not predicted, and `cooldown_tokens`, where there are such."""
        metadata = {} if self.scored is None else {"metadata_tokens": int((~self.scored).sum())}
        return metadata if self.cooldown is None else {**metadata, "cooldown_tokens": len(self.tokens) - self.cooldown}

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Where each part begins and ends; no sequence lies in two."""
        ends = [0, len(self.tokens)] if self.cooldown is None else [0, self.cooldown, len(self.tokens)]
        return list(pairwise(ends))

    def n_steps(self, training: Training) -> int:
        """Steps of all parts; 0 where one of them holds less than a batch."""
        steps = [training.n_steps(stop - start) for start, stop in self.parts]
        return sum(steps) if all(steps) else 0

    def batches(self, training: Training, seed: int) -> Iterator[Int[Tensor, " row"]]:
        """The first token of every sequence of each step: the parts in order, in each a fresh permutation an epoch,
        batches running over its end."""
        generator = torch.Generator().manual_seed(seed)
        for start, stop in self.parts:
            n_sequences = (stop - start - 1) // training.context
            left = torch.empty(0, dtype=torch.long)
            for _ in range(training.n_steps(stop - start)):
                while len(left) < training.batch_size:
                    left = torch.cat([left, torch.randperm(n_sequences, generator=generator)])
                yield start + left[: training.batch_size] * training.context
                left = left[training.batch_size :]
