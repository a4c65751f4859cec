"""Pretraining of a language model on one stream of tokens: the same weights from the same seed, stopped or not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from entangle.composition.recipe.training import Training
from entangle.composition.training.checkpoint import load_checkpoint, save_checkpoint, training_key
from entangle.composition.training.processes import ALONE, Processes
from entangle.composition.training.stream import Stream
from entangle.errors import EntangleError
from entangle.progress import progress_bar

Loss = Callable[..., Float[Tensor, ""]]


@dataclass(frozen=True)
class TrainingHistory:
    """What happened.

    Attributes:
        losses: The loss at every step, nats per token.
        tokens: Tokens trained on since the training began or went on.
        seconds: How long that took.
    """

    losses: list[float]
    tokens: int
    seconds: float


def new_model(architecture: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> PreTrainedModel:
    """An untrained causal language model with this tokenizer's vocabulary.

    Args:
        architecture: `model_type` and any fields of its HuggingFace configuration; a `vocab_size` among them may be
            larger than the tokenizer's.
        tokenizer: Gives vocabulary size and special tokens.
        seed: Of the initial weights; the global random state is left as it was.

    Raises:
        EntangleError: Where transformers knows no such `model_type` or field, sizes do not fit, or the tokenizer has
            more tokens than the architecture.

    Example:
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> fresh = en.composition.new_model({"model_type": "gpt_neox", **size}, tokenizer)
        >>> fresh.config.vocab_size == len(tokenizer), fresh.get_input_embeddings().weight.shape
        (True, torch.Size([512, 16]))
    """
    fields = dict(architecture)
    model_type = fields.pop("model_type", "olmo2")
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    if fields.setdefault("vocab_size", len(tokenizer)) < len(tokenizer):
        raise EntangleError(
            f"the tokenizer has {len(tokenizer):,} tokens, more than the architecture's vocab_size of "
            f"{fields['vocab_size']:,}: leave vocab_size out, or give another tokenizer"
        )
    try:
        known = AutoConfig.for_model(model_type)
        for name in fields:
            if not hasattr(known, name):  # a configuration takes any name, and would train another model than was meant
                raise EntangleError(f"a model of type {model_type!r} has no {name!r} in its configuration")
        # Not yet the padding token: its embedding would be zero and stay so, and it is often the token that begins
        # every document.
        config = AutoConfig.for_model(model_type, **{"pad_token_id": None, **special, **fields})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            model(input_ids=torch.zeros(1, 2, dtype=torch.long))  # sizes that do not fit show only when it runs
        for settings in (model.config, model.generation_config):
            settings.pad_token_id = tokenizer.pad_token_id
        return model
    except EntangleError:
        raise
    except Exception as error:  # configurations and models refuse sizes that do not fit with errors of many kinds
        raise EntangleError(
            f"transformers cannot build an architecture {model_type!r}: {str(error).splitlines()[0]}"
        ) from None


def pretrain(
    model: PreTrainedModel,
    tokens: Int[Tensor, " token"] | Stream,
    training: Training,
    *,
    seed: int = 0,
    separator: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_steps: int = 200,
    processes: Processes = ALONE,
    progress: bool = True,
    description: str = "pretrain",
) -> TrainingHistory:
    """Train a causal language model in place on one long stream of tokens.

    The stream is cut into sequences of `training.context` tokens, which are visited in an order that depends on the
    seed alone. With a checkpoint, a training that was stopped goes on from the last one written: on one machine, with
    the same number of threads, it ends with the weights that it would have had undisturbed.

    Args:
        model: The model, on the device to train on; an untrained one, also where a checkpoint exists.
        tokens: The packed stream; a `Stream` may have tokens that are read and not predicted, and a cooldown.
        training: Budget and optimiser.
        seed: Of the order of the sequences.
        separator: The token that begins every document; needed where documents are masked from each other.
        checkpoint: File to write the unfinished state to; read where it exists, removed at the end.
        checkpoint_steps: Steps from one checkpoint to the next.
        processes: That train together, each called with the same arguments; by default this one alone. Every batch is
            shared out among them, so that the model is the one that a single process makes, to within rounding.
        progress: Show a progress bar with loss, tokens a second and the time that is left.
        description: What the progress bar calls it.

    Raises:
        EntangleError: Where the stream holds less than one batch, the checkpoint is of another training, the model
            cannot mask documents, or the loss is no longer finite.

    Example:
        >>> from entangle.composition.training.pretrain import pretrain
        >>> small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> fresh = en.composition.new_model({"model_type": "gpt_neox", **small}, tokenizer)
        >>> tokens = torch.tensor([i for text in clean[:50] for i in tokenizer(text)["input_ids"]])
        >>> training = en.composition.Training(batch_size=4, context=32, precision="fp32")
        >>> history = pretrain(fresh, tokens, training, progress=False)
        >>> history.losses[-1] < history.losses[0]
        True
    """
    stream = tokens if isinstance(tokens, Stream) else Stream(tokens)
    n_steps = stream.n_steps(training)
    if n_steps == 0:
        needed = training.batch_size * training.context + 1
        raise EntangleError(
            f"{len(stream.tokens):,} tokens are less than one batch ({needed:,}): lower batch_size or context, "
            "or give more text"
        )
    if training.batch_size < processes.count:
        raise EntangleError(f"{processes.count} processes cannot share a batch of {training.batch_size}: raise it")
    optimiser = training.optimiser(model)
    losses: list[float] = []
    path, key = Path(checkpoint) if checkpoint else None, ""
    if path is not None:
        key = training_key(stream, training, seed)
        losses = load_checkpoint(path, model, optimiser, key) if path.exists() else []
    begun = len(losses)
    _check_same_start(begun, processes, model.device)
    batches = islice(stream.batches(training, seed), begun, n_steps)
    span = torch.arange(training.context + 1)
    attention = model.config._attn_implementation
    if training.compile and model.device.type == "cpu":
        model.set_attn_implementation("eager")  # what can be fused; sdpa's backward pass on CPUs cannot, and is slow
    loss_of = loss_function(model, training, separator)
    started = time.perf_counter()
    model.train()
    shown = progress and processes.main
    bar = progress_bar(
        batches, desc=description, initial=begun, total=n_steps, disable=not shown, unit="step", leave=False
    )
    for starts in bar:
        step = len(losses)
        for group in optimiser.param_groups:
            group["lr"] = training.rate(step, n_steps)
        sequences, scored, share = _part(stream, starts[:, None] + span, processes, model.device)
        losses.append(_step(model, sequences, loss_of, optimiser, training.clip, scored, share, processes))
        if not math.isfinite(losses[-1]):
            rate = training.learning_rate
            raise EntangleError(
                f"the loss is {losses[-1]} at step {step} of {n_steps}: lower the learning rate ({rate})"
            )
        if shown and step % 10 == 0:
            speed = (step + 1 - begun) * training.batch_size * training.context / (time.perf_counter() - started)
            bar.set_postfix(loss=f"{losses[-1]:.3f}", tokens_per_s=f"{speed:,.0f}")
        if path is not None and processes.main and (step + 1) % checkpoint_steps == 0 and step + 1 < n_steps:
            save_checkpoint(path, model, optimiser, losses, key)
    model.eval()
    model.set_attn_implementation(attention)
    if path is not None and processes.main:
        path.unlink(missing_ok=True)
    trained = (n_steps - begun) * training.batch_size * training.context
    return TrainingHistory(losses, trained, time.perf_counter() - started)


def loss_function(model: PreTrainedModel, training: Training, separator: int | None = None) -> Loss:
    """The mean cross-entropy of every token but the first of each sequence, as a function of sequences and, where not
    all tokens count, of which do.

    Raises:
        EntangleError: Where documents are to be masked and there is no separator, or the model does not do it.
    """
    apart = separator if training.documents == "masked" else None
    if training.documents == "masked":
        if separator is None:
            raise EntangleError("masked documents need the token that begins each of them: pass separator=")
        check_masks_documents(model, separator)
    bf16 = training.in_bf16(model.device)

    def loss_of(sequences: Int[Tensor, "row pos"], scored: Bool[Tensor, "row pos"] | None = None) -> Float[Tensor, ""]:
        inputs = {"input_ids": sequences[:, :-1]}
        if apart is not None:
            inputs["position_ids"] = document_positions(sequences[:, :-1], apart)
        with torch.autocast(sequences.device.type, torch.bfloat16, enabled=bf16):
            logits = model(**inputs, use_cache=False).logits
        # In the logits' own type: as fp32, the softmax would be a third of the time of a small model. The mean is fp32.
        losses = F.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten(), reduction="none")
        if scored is None:
            return losses.float().mean()
        counted = scored[:, 1:].flatten()
        return (losses.float() * counted).sum() / counted.sum().clamp(min=1)

    if not training.compile:
        return loss_of
    torch._dynamo.reset()  # it gives up on a function that it has compiled for several models
    compiled: Loss = torch.compile(loss_of, dynamic=False)
    return compiled


def document_positions(ids: Int[Tensor, "row pos"], separator: int) -> Int[Tensor, "row pos"]:
    """The position of each token in its own document, which begins with the separator (or with the row).

    Positions that begin anew are what tells a HuggingFace model where one packed document ends and the next begins.
    """
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    starts: Tensor = (places * (ids == separator)).cummax(1).values
    return places - starts


@torch.no_grad()
def check_masks_documents(model: PreTrainedModel, separator: int) -> None:
    """Refuse a model in which a document's logits still depend on the documents before it."""
    model.eval()
    document = [separator, *(token for token in range(8) if token != separator)]
    alone = torch.tensor([document], device=model.device)
    packed = torch.tensor([[*document[::-1][:-1], *document]], device=model.device)
    last = model(input_ids=packed, position_ids=document_positions(packed, separator), use_cache=False).logits[
        :, -len(document) :
    ]
    same = torch.allclose(model(input_ids=alone, use_cache=False).logits, last, rtol=1e-3, atol=1e-3)
    if not same:
        raise EntangleError(
            f"{type(model).__name__} does not keep packed documents apart by their positions: "
            'train with documents = "packed"'
        )


def _check_same_start(begun: int, processes: Processes, device: torch.device) -> None:
    """Refuse processes of which some see no checkpoint, or another."""
    total = torch.tensor(float(begun), device=device)
    processes.sum([total])
    if total.item() != begun * processes.count:
        raise EntangleError("the processes see different checkpoints: give a folder that all machines share")


def _part(
    stream: Stream, places: Int[Tensor, "row pos"], processes: Processes, device: torch.device
) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"] | None, float]:
    """A process's part of the sequences at these places, which of its tokens count, and their share of all that do."""
    own = processes.part(places)
    sequences = stream.tokens[own].to(device, torch.long)
    if stream.scored is None:
        return sequences, None, len(own) / len(places)
    # Metadata is not spread evenly: each token that is predicted counts the same, whichever process has it.
    scored = stream.scored[own]
    share = int(scored[:, 1:].sum()) / max(1, int(stream.scored[places[:, 1:]].sum()))
    return sequences, scored.to(device), share


def _step(
    model: PreTrainedModel,
    sequences: Int[Tensor, "row pos"],
    loss_of: Loss,
    optimiser: torch.optim.Optimizer,
    clip: float,
    scored: Bool[Tensor, "row pos"] | None = None,
    share: float = 1.0,
    processes: Processes = ALONE,
) -> float:
    loss = loss_of(sequences) if scored is None else loss_of(sequences, scored)
    if processes.count > 1:
        loss = loss * share
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    total = loss.detach()
    processes.sum([total, *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()
    return total.item()
