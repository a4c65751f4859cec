"""What a vector is learned for: three published objectives, each on its own terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

BETA = 0.1
TOP_K = 8
L1 = 0.005


class Objective(ABC):
    """One vector `[d]` for each layer, and the loss that it is learned for.

    Attributes:
        vectors: The parameters, in units of `scales`.
        scales: The spread of a typical coordinate at each layer, so that one step length fits all models.
        real: Which tokens of the batch that runs now are no padding.
        sign: The sign that it runs under now, one of `signs`.
        pairs: Whether it needs the side to steer away from, text for text.
        decay: Decoupled weight decay, the regulariser of those that have no other.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    signs: ClassVar[Sequence[float]] = (1.0,)
    pairs: ClassVar[bool] = True
    decay: ClassVar[float] = 0.01

    def __init__(self, sizes: Sequence[int], scales: Sequence[float], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.scales = list(scales)
        self.vectors = [self.start(size, generator).requires_grad_() for size in sizes]
        self.real: Bool[Tensor, "row pos"] | None = None
        self.sign = 1.0

    def start(self, size: int, generator: torch.Generator) -> Float[Tensor, " d"]:
        """What a vector begins as."""
        return torch.zeros(size)

    def shift(self, number: int, x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
        """What is added to the activations of layer `number` while it is learned."""
        return self.sign * self.constant(number).to(x).expand_as(x)

    def constant(self, number: int) -> Float[Tensor, " d"]:
        """The vector of layer `number`, in the activations' units."""
        return self.vectors[number] * self.scales[number]

    @abstractmethod
    def loss(
        self,
        toward: Float[Tensor, " pair"],
        away: Float[Tensor, " pair"],
        tokens: Float[Tensor, " pair"],
    ) -> Float[Tensor, " pair"]:
        """The loss of each pair, or of each text to steer toward, from what log-likelihoods gain by the shift.

        Args:
            toward: What each text to steer toward gains, in nats, summed over its predictions.
            away: The same of the other side; empty where `pairs` is False.
            tokens: Predictions of each text to steer toward.
        """

    def penalty(self) -> Float[Tensor, ""]:
        """The regulariser of what was just read, besides `decay`."""
        return torch.zeros(())


class SSV(Objective):
    """Supervised steering vector: the likelihood of the texts to steer toward, and nothing else."""

    name, paper = "ssv", "Wu et al. 2025, arXiv 2501.17148, the baseline SSV of AxBench"
    pairs = False

    def loss(self, toward: Tensor, away: Tensor, tokens: Tensor) -> Tensor:
        """Minus what each token gains."""
        return -toward / tokens


class BiPO(Objective):
    """Bi-directional preference optimisation: +v is to prefer the one text of a pair, -v the other."""

    name, paper = "bipo", "Cao et al. 2024, arXiv 2406.00045"
    signs = (1.0, -1.0)

    def loss(self, toward: Tensor, away: Tensor, tokens: Tensor) -> Tensor:
        """-log sigmoid(d beta (gain of toward - gain of away)) with d the sign of the vector."""
        return -F.logsigmoid(self.sign * BETA * (toward - away))


class ReFTr1(Objective):
    """Rank-1 representation finetuning: a unit direction that detects and, as far as it fires, is added."""

    name, paper = "reft-r1", "Wu et al. 2025, arXiv 2501.17148"
    decay = 0.0
    pairs = False

    def __init__(self, sizes: Sequence[int], scales: Sequence[float], seed: int) -> None:
        super().__init__(sizes, scales, seed)
        self._rest: list[Tensor] = []
        self._levels: list[list[float]] = [[] for _ in sizes]

    def start(self, size: int, generator: torch.Generator) -> Tensor:
        """A random direction."""
        return F.normalize(torch.randn(size, generator=generator), dim=0)

    def shift(self, number: int, x: Tensor) -> Tensor:
        """The mean of the largest latents of each text, along the direction."""
        direction = F.normalize(self.vectors[number], dim=0).to(x)
        latents = (x @ direction).relu()
        if self.real is not None:
            latents = latents * self.real
        k = min(TOP_K, latents.shape[1])
        top, where = latents.topk(k, dim=1)
        level = top.mean(1)
        rest = latents.scatter(1, where, 0.0)
        self._rest.append(rest.mean() / self.scales[number])
        self._levels[number] = (self._levels[number] + level.detach().tolist())[-256:]
        return (level[:, None, None] * direction).expand_as(x)

    def constant(self, number: int) -> Tensor:
        """The direction at its mean level over the last texts that it was learned on."""
        levels = self._levels[number]
        level = sum(levels) / len(levels) if levels else self.scales[number]
        return F.normalize(self.vectors[number], dim=0) * level

    def loss(self, toward: Tensor, away: Tensor, tokens: Tensor) -> Tensor:
        """Minus what each token gains."""
        return -toward / tokens

    def penalty(self) -> Tensor:
        """The mean of all latents but the largest, so that the direction fires where it should alone."""
        rest, self._rest = self._rest, []
        return L1 * torch.stack(rest).sum() if rest else torch.zeros(())


OBJECTIVES: dict[str, type[Objective]] = {each.name: each for each in (SSV, BiPO, ReFTr1)}
