"""What is trained after pretraining, on pairs: SFT on the preferred side, or DPO, through trl."""

from __future__ import annotations

import copy
import math
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.composition.recipe.pairs import Pair
from entangle.errors import EntangleError
from entangle.models.rows import bos_id, frame
from entangle.progress import progress_bar
from entangle.storage.names import check_name

METHODS = ("sft", "dpo")
FRAME = 2  # the tokens that begin and end a text


@dataclass(frozen=True)
class PostTraining:
    """How finished models are trained further.

    Attributes:
        name: What the report calls it.
        method: "sft": next-token training on the preferred texts; "dpo": the preferred text made likelier than the
            other, against the model as it was (Rafailov et al. 2023, eq. 7).
        shares: The models to start from; none for all of the recipe.
        seeds: likewise.
        steps: Optimiser steps.
        batch_size: Pairs per step.
        learning_rate: At the first step; it falls linearly to zero.
        beta: Of DPO, how closely the model is held to what it was.
        max_length: Pairs with a longer side, in tokens, are left out.

    Example:
        >>> settings = en.composition.PostTraining("mild", method="dpo", steps=10, batch_size=4)
        >>> len(settings.drawn([("kind", "daft")] * 100, seed=0))  # pairs that ten steps see
        40
    """

    name: str
    method: str
    shares: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    steps: int = 150
    batch_size: int = 16
    learning_rate: float = 2e-4
    beta: float = 0.1
    max_length: int = 128

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise EntangleError(f"method of posttraining {self.name!r} is 'sft' or 'dpo', not {self.method!r}")
        check_name(self.name, "a posttraining")
        for values in (self.shares, self.seeds):
            if len(set(values)) < len(values):
                raise EntangleError(f"shares and seeds of posttraining {self.name!r} must differ, not {list(values)}")
        for name in ("steps", "batch_size", "learning_rate", "beta", "max_length"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise EntangleError(f"{name} of posttraining {self.name!r} must be positive, not {value}")

    def drawn(self, pairs: Sequence[Pair], seed: int) -> list[Pair]:
        """The pairs that the steps have room for, each once, in an order that the seed decides."""
        order = np.random.default_rng(seed).permutation(len(pairs))
        return [pairs[i] for i in order[: self.steps * self.batch_size]]


def posttrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    settings: PostTraining,
    *,
    seed: int = 0,
    progress: bool = True,
    description: str = "posttrain",
) -> list[float]:
    """Train a model on pairs in place, in fp32, through trl's SFTTrainer or DPOTrainer.

    Every text stands between the tokens that begin and end one, and is predicted with its end. AdamW without weight
    decay, gradients clipped at 1, the learning rate falling linearly to zero. Random numbers of the process are left as
    they were.

    Args:
        model: A causal language model, on the device to train on.
        tokenizer: Its tokenizer.
        pairs: (preferred, not preferred).
        settings: Method, budget and optimiser.
        seed: Decides the order of the pairs.
        progress: Show a progress bar.
        description: What it calls this.

    Returns:
        The loss at every step.

    Raises:
        EntangleError: No pairs, ones that are too long for the model, no trl, a tokenizer without the tokens that begin
            and end a text, or a loss that is no longer finite.

    Example:
        >>> settings = en.composition.PostTraining("mild", method="sft")
        >>> try:
        ...     en.composition.posttrain(model, tokenizer, [], settings, progress=False)
        ... except en.EntangleError as error:
        ...     print(error)
        posttraining needs pairs; got none
    """
    chosen = settings.drawn(pairs, seed)
    if not chosen:
        raise EntangleError("posttraining needs pairs; got none")
    trainers = _trl()
    check_fits(model, tokenizer, settings)
    prompt = begin(tokenizer)
    kind, config = trainers[settings.method]
    columns: dict[str, list[str]] = {"prompt": [prompt] * len(chosen)}
    if settings.method == "sft":
        columns["completion"] = [preferred for preferred, _ in chosen]
    else:
        columns["chosen"], columns["rejected"] = map(list, zip(*chosen, strict=True))
    own: dict[str, Any] = {}
    against: dict[str, Any] = {}
    if settings.method == "dpo":
        own, against = {"beta": settings.beta}, {"ref_model": copy.deepcopy(model).eval().requires_grad_(False)}
    with _as_it_was(model), tempfile.TemporaryDirectory() as scratch:
        from datasets import Dataset

        arguments = config(
            output_dir=scratch,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            max_length=settings.max_length + FRAME,
            weight_decay=0.0,
            bf16=False,
            gradient_checkpointing=False,
            seed=seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,
            **own,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # else it would copy the model to every GPU in sight
        trainer = kind(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer,
            **against,
        )
        _show_progress(trainer, description if progress else "")
        trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    if not all(map(math.isfinite, losses)):
        raise EntangleError(
            f"the loss of {settings.name!r} is no longer finite: lower the learning rate ({settings.learning_rate})"
        )
    return losses


def begin(tokenizer: PreTrainedTokenizerBase) -> str:
    """What to write before a text so that its ids begin with one beginning-of-text token.

    Raises:
        EntangleError: Where the tokenizer has no token to begin or to end a text with.
    """
    if tokenizer.eos_token is None:
        raise EntangleError("posttraining ends every text with eos_token, which this tokenizer lacks: set it")
    if frame(tokenizer).opening:
        return ""
    return str(tokenizer.decode([bos_id(tokenizer)]))


def check_fits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: PostTraining) -> None:
    """Refuse texts longer than the model's context."""
    from entangle.models.rows import context_length

    room = context_length(model, tokenizer) - FRAME
    if settings.max_length > room:
        raise EntangleError(
            f"max_length of posttraining {settings.name!r} is {settings.max_length}, but the model has room for "
            f"{room}: lower it"
        )


def check_trl() -> None:
    """Refuse where trl is missing, without the seconds that importing it takes."""
    from importlib.util import find_spec

    if find_spec("trl") is None:
        raise EntangleError(
            "SFT and DPO are trained through trl, which is not installed: pip install 'entangle[posttrain]'"
        )


def _trl() -> dict[str, tuple[Any, Any]]:
    check_trl()
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    return {"sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig)}


@contextmanager
def _as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Leave all but the weights as found: the random numbers, the configuration and the forward pass that trl
    replaces, and datasets' progress bars."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    kept = {name: copy.deepcopy(getattr(model, name)) for name in ("config", "generation_config")}
    forward, shown = model.__dict__.get("forward"), not are_progress_bars_disabled()
    try:
        disable_progress_bars()
        with torch.random.fork_rng(), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # trl's defaults have names that transformers renames
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
        model.__dict__.pop("forward", None)
        if forward is not None:
            model.forward = forward
        for name, value in kept.items():
            getattr(model, name).__dict__.update(value.__dict__)
        if shown:
            enable_progress_bars()
        model.eval()


def _show_progress(trainer: Any, description: str) -> None:
    """One bar in the place of the trainer's printed numbers."""
    from transformers import PrinterCallback, TrainerCallback

    class Bar(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar = progress_bar(total=state.max_steps, desc=description, unit="step", leave=False)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" in logs:
                self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()

    trainer.remove_callback(PrinterCallback)
    if description:
        trainer.add_callback(Bar())
