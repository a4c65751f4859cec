"""Pretraining of a small language model: AdamW, warm-up and cosine, mixed precision, the same weights from the same
seed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from entangle.composition.checkpoint import load_checkpoint, save_checkpoint, training_key
from entangle.errors import EntangleError


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        epochs: passes over the tokens.
        batch_size: sequences a step.
        context: tokens a sequence.
        learning_rate: at the peak; the cosine ends at a tenth of it.
        warmup: share of the steps with a rising learning rate.
        weight_decay: of matrices; vectors have none.
        clip: largest gradient norm.
        precision: "bf16" (autocast; weights stay fp32) or "fp32".
    """

    epochs: float = 1.0
    batch_size: int = 16
    context: int = 128
    learning_rate: float = 4e-3
    warmup: float = 0.05
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: str = "bf16"

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "fp32"):
            raise EntangleError(f"precision is 'bf16' or 'fp32', not {self.precision!r}")
        for name in ("epochs", "batch_size", "context", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise EntangleError(f"{name} of a training must be positive, not {getattr(self, name)}")

    def rate(self, step: int, n_steps: int) -> float:
        """The learning rate at a step: linear warm-up, then a cosine to a tenth of the peak."""
        n_warmup = max(1, round(self.warmup * n_steps))
        if step < n_warmup:
            return self.learning_rate * (step + 1) / n_warmup
        progress = (step - n_warmup) / max(1, n_steps - n_warmup)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class TrainingHistory:
    """What happened.

    Attributes:
        losses: The loss at every step, nats a token.
        tokens: Tokens trained on since the training began or went on.
        seconds: How long that took.
    """

    losses: list[float]
    tokens: int
    seconds: float


def new_model(architecture: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> PreTrainedModel:
    """An untrained causal language model with this tokenizer's vocabulary.

    Args:
        architecture: `model_type` and any fields of its HuggingFace configuration.
        tokenizer: gives vocabulary size and special tokens.
        seed: of the initial weights; the global random state is left as it was.

    Raises:
        EntangleError: where transformers knows no such `model_type`.
    """
    fields = dict(architecture)
    model_type = fields.pop("model_type", "olmo2")
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    try:
        known = AutoConfig.for_model(model_type)
        for name in fields:
            if name == "vocab_size":
                raise EntangleError("vocab_size comes from the tokenizer: leave it out of the architecture")
            if not hasattr(known, name):  # a configuration takes any name, and would train another model than was meant
                raise EntangleError(f"an {model_type} has no {name!r} in its configuration")
        config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **special, **fields)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
            model(input_ids=torch.zeros(1, 2, dtype=torch.long))  # sizes that do not fit show only when it runs
            return model
    except EntangleError:
        raise
    except Exception as error:  # configurations and models refuse sizes that do not fit with errors of many kinds
        raise EntangleError(
            f"transformers cannot build an architecture {model_type!r}: {str(error).splitlines()[0]}"
        ) from None


def pretrain(
    model: PreTrainedModel,
    tokens: Int[Tensor, " token"],
    training: Training,
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_steps: int = 200,
    progress: bool = True,
    description: str = "pretrain",
) -> TrainingHistory:
    """Train a causal language model in place on one long stream of tokens.

    The stream is cut into sequences of `training.context` tokens, which are visited in an order that depends on the
    seed
    alone. With a checkpoint, a training that was stopped goes on from the last one written: on one machine, with the
    same
    number of threads, it ends with the weights that it would have had undisturbed.

    Args:
        model: The model, on the device to train on; an untrained one, also where a checkpoint exists.
        tokens: The packed stream.
        training: Budget and optimiser.
        seed: Of the order of the sequences.
        checkpoint: File to write the unfinished state to; read where it exists, removed at the end.
        checkpoint_steps: Steps from one checkpoint to the next.
        progress: Show a progress bar with loss and tokens a second.
        description: What the progress bar calls it.

    Raises:
        EntangleError: Where the stream holds less than one batch, the checkpoint is of another training, or the loss is
            no longer finite.
    """
    n_sequences = (len(tokens) - 1) // training.context
    n_steps = int(training.epochs * n_sequences / training.batch_size)
    if n_steps == 0:
        needed = training.batch_size * training.context + 1
        raise EntangleError(
            f"{len(tokens):,} tokens are less than one batch ({needed:,}): lower batch_size or context, "
            "or give more text"
        )
    optimiser = _optimiser(model, training)
    losses: list[float] = []
    path, key = Path(checkpoint) if checkpoint else None, ""
    if path is not None:
        key = training_key(tokens, training, seed)
        losses = load_checkpoint(path, model, optimiser, key) if path.exists() else []
    begun = len(losses)
    batches = islice(_batches(n_sequences, training.batch_size, seed), begun, n_steps)
    span = torch.arange(training.context + 1)
    attention = model.config._attn_implementation
    if model.device.type == "cpu":
        model.set_attn_implementation(
            "eager"
        )  # on CPUs, the backward pass of sdpa is the slowest part of a small model
    started = time.perf_counter()
    model.train()
    bar = tqdm(batches, desc=description, initial=begun, total=n_steps, disable=not progress, unit="step", leave=False)
    for sequences in bar:
        step = len(losses)
        for group in optimiser.param_groups:
            group["lr"] = training.rate(step, n_steps)
        batch = tokens[sequences[:, None] * training.context + span].to(model.device, torch.long)
        losses.append(_step(model, batch, optimiser, training))
        if not math.isfinite(losses[-1]):
            rate = training.learning_rate
            raise EntangleError(
                f"the loss is {losses[-1]} at step {step} of {n_steps}: lower the learning rate ({rate})"
            )
        if progress and step % 10 == 0:
            speed = (step + 1 - begun) * training.batch_size * training.context / (time.perf_counter() - started)
            bar.set_postfix(loss=f"{losses[-1]:.3f}", tokens_per_s=f"{speed:,.0f}")
        if path is not None and (step + 1) % checkpoint_steps == 0 and step + 1 < n_steps:
            save_checkpoint(path, model, optimiser, losses, key)
    model.eval()
    model.set_attn_implementation(attention)
    if path is not None:
        path.unlink(missing_ok=True)
    trained = (n_steps - begun) * training.batch_size * training.context
    return TrainingHistory(losses, trained, time.perf_counter() - started)


def _step(model: PreTrainedModel, sequences: Tensor, optimiser: torch.optim.Optimizer, training: Training) -> float:
    with torch.autocast(sequences.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
        logits = model(input_ids=sequences[:, :-1], use_cache=False).logits
    # In the logits' own type: as fp32, the softmax would be a third of the time of a small model. The mean is fp32.
    losses = F.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten(), reduction="none")
    loss = losses.float().mean()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
    optimiser.step()
    return loss.item()


def _optimiser(model: PreTrainedModel, training: Training) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.95), fused=True)


def _batches(n_sequences: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of sequence numbers: a fresh permutation each epoch, batches running over its end."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < batch_size:
            left = torch.cat([left, torch.randperm(n_sequences, generator=generator)])
        yield left[:batch_size]
        left = left[batch_size:]
