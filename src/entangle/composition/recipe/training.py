"""How a model is trained: budget, optimiser, schedule, precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from entangle.errors import EntangleError

CHOICES = {
    "schedule": ("cosine", "wsd"),
    "precision": ("bf16", "fp32", "auto"),
    "documents": ("packed", "masked"),
}
FINAL = 0.1  # of the peak learning rate, at the end of either schedule


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        epochs: Passes over the tokens.
        batch_size: Sequences per step.
        context: Tokens a sequence.
        learning_rate: At the peak; it ends at a tenth of it.
        schedule: "cosine", or "wsd" (warm-up, stable, decay: Hu et al. 2024), which stays at the peak until `decay`.
        warmup: Share of the steps with a rising learning rate.
        decay: Share of the steps at the end in which a "wsd" falls, linearly.
        weight_decay: Of matrices; vectors have none.
        clip: Largest gradient norm.
        precision: "bf16" (autocast; weights stay fp32), "fp32", or "auto": bf16 where the hardware computes in it.
        documents: "packed": a sequence is read from its beginning, whatever documents it holds; "masked": a token
            attends to its own document only, whose positions begin at 0.
        compile: Let `torch.compile` fuse the forward and backward pass: faster after a minute, on a CPU with a C++
            compiler.

    Example:
        >>> training = en.composition.Training(batch_size=8, context=64, learning_rate=1e-3)
        >>> training.n_steps(100_000)
        195
        >>> training.rate(step=5, n_steps=100)  # after warm-up, at the peak
        0.001
    """

    epochs: float = 1.0
    batch_size: int = 16
    context: int = 128
    learning_rate: float = 4e-3
    schedule: str = "cosine"
    warmup: float = 0.05
    decay: float = 0.2
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: str = "bf16"
    documents: str = "packed"
    compile: bool = False

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                words = ", ".join(map(repr, known[:-1])) + f" or {known[-1]!r}"
                raise EntangleError(f"{name} of a training is {words}, not {value!r}")
        for name in ("epochs", "batch_size", "context", "learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise EntangleError(f"{name} of a training must be positive and finite, not {getattr(self, name)}")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise EntangleError(f"{name} of a training is a share of its steps, not {getattr(self, name)}")

    def n_steps(self, n_tokens: int) -> int:
        """Steps that a stream of so many tokens makes; 0 where it holds less than a batch."""
        return int(self.epochs * ((n_tokens - 1) // self.context) / self.batch_size)

    def rate(self, step: int, n_steps: int) -> float:
        """The learning rate at a step: linear warm-up, then the schedule, down to a tenth of the peak."""
        n_warmup = max(1, round(self.warmup * n_steps))
        if step < n_warmup:
            return self.learning_rate * (step + 1) / n_warmup
        if self.schedule == "wsd":
            n_decay = max(1, round(self.decay * n_steps))
            left = min(1.0, (n_steps - step) / n_decay)
        else:
            left = 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))
        return self.learning_rate * (FINAL + (1 - FINAL) * left)

    def in_bf16(self, device: torch.device) -> bool:
        """Whether matrices are multiplied in bf16 on a device."""
        if self.precision == "auto":
            return computes_in_bf16(device)
        return self.precision == "bf16"

    def optimiser(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """AdamW, weight decay on matrices alone."""
        parameters = list(model.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.95), fused=True)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices itself, rather than by way of fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False
