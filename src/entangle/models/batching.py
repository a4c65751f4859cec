"""Texts to token ids to padded batches: nothing truncated silently, nothing padded without positions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from entangle.data import texts_of
from entangle.errors import EntangleError

UNLIMITED = 1_000_000  # tokenizers without a limit say 1e30
CPU_TOKENS = 1024  # a CPU takes up to three times as long over batches of 8192, whose tensors leave its caches


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    prepend_bos: bool = False,
    context: int | None = None,
    add_special_tokens: bool = True,
) -> list[list[int]]:
    """Token ids of each text, with the tokenizer's own special tokens.

    Args:
        tokenizer: a HuggingFace tokenizer.
        texts: any number of strings, none of them empty.
        max_length: keep at most this many tokens of a text (its first ones). `None` refuses a text longer than the
            tokenizer's `model_max_length` instead of cutting it.
        context: the positions the model has, where fewer than the tokenizer says (see `context_length`).
        prepend_bos: begin every text with the beginning-of-sequence token where the tokenizer did not.
        add_special_tokens: the tokenizer's own; a chat template has written them already.

    Raises:
        EntangleError: an empty text, a text longer than the context, or no beginning-of-sequence token; it names the
            text.
    """
    texts = texts_of(texts)
    for i, text in enumerate(texts):
        if not text.strip():
            raise EntangleError(f"text {i} is empty: remove it, so that every example has a token to look at")
    if not texts:
        return []
    bos = bos_id(tokenizer) if prepend_bos else None
    limit = max_length if max_length is not None else min(_context(tokenizer), context or UNLIMITED)
    if limit < 1:
        raise EntangleError(f"max_length must be at least 1, but is {limit}")
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    if bos is not None:
        rows = [row if row[:1] == [bos] else [bos, *row] for row in rows]
    for i, row in enumerate(rows):
        if not row:
            raise EntangleError(f"text {i} has no token: remove it, so that every example has a token to look at")
        if len(row) > limit:
            if max_length is None:
                raise EntangleError(
                    f"text {i} has {len(row)} tokens but the context holds {limit}: pass max_length={limit} to keep "
                    f"its first {limit}, or split it"
                )
            rows[i] = row[:limit]
    return rows


def bos_id(tokenizer: Any) -> int:
    """The token that begins a sequence: `bos`, else `cls`, else `eos` (GPT-2 and OLMo begin documents with it)."""
    for name in ("bos_token_id", "cls_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    raise EntangleError(
        "prepend_bos needs a tokenizer with a bos, cls or eos token, and this one has none: set tokenizer.bos_token"
    )


def pad_id(tokenizer: Any) -> int:
    """The id to pad with: the tokenizer's own, else its end of sequence, else 0; any will do, since pads are masked."""
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    return 0


def token_batches(lengths: Sequence[int], batch_tokens: int, *, same_length: bool = False) -> list[list[int]]:
    """Indices of texts in batches of similar length, each at most `batch_tokens` with its padding (or one longer text).

    The longest come first, so that a batch that does not fit in memory fails at once. `same_length` puts only texts of
    one length together, so that nothing is padded.
    """
    if batch_tokens < 1:
        raise EntangleError(f"batch_tokens must be at least 1, but is {batch_tokens}")
    batches: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = batches and (len(batches[-1]) + 1) * width <= batch_tokens
        if fits and (lengths[i] == width or not same_length):
            batches[-1].append(i)
        else:
            batches.append([i])
            width = lengths[i]
    return batches


def at_once(batch_tokens: int, device: torch.device) -> int:
    """Tokens a batch on this device: `batch_tokens`, and at most `CPU_TOKENS` on a CPU."""
    return min(batch_tokens, CPU_TOKENS) if device.type == "cpu" else batch_tokens


def pad(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    *,
    side: Literal["left", "right"] = "right",
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """Rows of token ids as one batch: `input_ids`, `attention_mask` and `position_ids`, each `[batch pos]`.

    Positions count from 0 at each row's first token, whichever side is padded: models with absolute positions depend on
    it.
    """
    if side not in ("left", "right"):
        raise EntangleError(f"side must be 'left' or 'right', but is {side!r}")
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where] = torch.as_tensor(row, dtype=torch.long)
        mask[i, where] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids `[batch pos]` that count the unmasked tokens of each row from 0."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def context_length(model: nn.Module) -> int | None:
    """The number of positions the model's configuration allows, where it says so."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's forward takes an argument of this name."""
    forward = getattr(model, "forward", model)
    return name in inspect.signature(forward).parameters


def takes(model: nn.Module, name: str) -> bool:
    """Whether the model makes use of an argument of this name: its own, or one it hands on (as PEFT's wrappers do)."""
    if accepts(model, name):
        return True
    inner = getattr(model, "get_base_model", None)
    return inner is not None and inner() is not model and takes(inner(), name)


def _context(tokenizer: Any) -> int:
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < UNLIMITED else UNLIMITED
