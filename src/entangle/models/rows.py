"""Texts to rows of token ids to padded batches: nothing cut or closed silently, nothing padded without positions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from entangle.data import in_order, refuse_half_characters
from entangle.errors import EntangleError
from entangle.models.tokens import (
    UNLIMITED,
    Frame,
    as_it_was,
    bos_id,
    check_ids,
    context_length,
    first_position,
    frame,
    pad_id,
    special_ids,
)
from entangle.models.trace import evaluating

__all__ = [
    "CPU_TOKENS",
    "UNLIMITED",
    "Rows",
    "accepts",
    "at_once",
    "batch_of",
    "bos_id",
    "carries_state",
    "check_ids",
    "check_texts",
    "context_length",
    "encode",
    "encode_rows",
    "frame",
    "pad",
    "pad_id",
    "positions",
    "run_rows",
    "special_ids",
    "takes",
    "token_batches",
]

CPU_TOKENS = 1024  # a CPU takes up to three times as long over batches of 8192, whose tensors leave its caches


@dataclass(frozen=True)
class Rows:
    """Texts as token ids, and how many at either end of each are no part of its text.

    Attributes:
        ids: The tokens of each text.
        added: How many before and after the text the tokenizer's template, or `prepend_bos`, put there.
    """

    ids: list[list[int]]
    added: list[tuple[int, int]]


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    model: nn.Module | None = None,
    max_length: int | None = None,
    prepend_bos: bool = False,
    add_special_tokens: bool = True,
    closed: bool = True,
    what: str = "text",
) -> list[list[int]]:
    """Token ids of each text, cut, closed and begun by the tokenizer itself; see `encode_rows`.

    Example:
        >>> rows = en.models.encode(tokenizer, ["a useless turnip", "gem"], prepend_bos=True)
        >>> [tokenizer.decode(row) for row in rows]
        ['<|endoftext|>a useless turnip', '<|endoftext|>gem']
        >>> en.models.encode(tokenizer, [""])
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: text 0 is empty: remove it, so that every example has a token to ...
    """
    return encode_rows(
        tokenizer,
        texts,
        model=model,
        max_length=max_length,
        prepend_bos=prepend_bos,
        add_special_tokens=add_special_tokens,
        closed=closed,
        what=what,
    ).ids


def encode_rows(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    model: nn.Module | None = None,
    max_length: int | None = None,
    prepend_bos: bool = False,
    add_special_tokens: bool = True,
    closed: bool = True,
    what: str = "text",
) -> Rows:
    """Token ids of each text as the tokenizer's own truncation and template give them, with one beginning at most.

    A text that begins with the token that the template would put first was written by a template (a chat template most
    often) and is taken as it stands: nothing is put around it. A text that ends with the closing token does not get
    another.

    Args:
        tokenizer: A HuggingFace tokenizer.
        texts: Any number of strings, none of them empty.
        model: What they are for: its context and its vocabulary are kept to.
        max_length: Keep at most this many tokens of a text, special tokens included, from the side that
            `tokenizer.truncation_side` keeps (its beginning, by default). `None` refuses a text that is longer than the
            tokenizer's `model_max_length` or the model's context instead of cutting it.
        prepend_bos: Begin every text with the beginning-of-sequence token where neither text nor tokenizer does.
        add_special_tokens: The tokenizer's own; a chat template has written them already.
        closed: End texts as the template does. A prompt that is to be continued must not be closed.
        what: Names the texts in errors.

    Raises:
        EntangleError: An empty text, one that is no string or not Unicode, longer than the context, with ids that the
            model does not have, or begun twice; no room beside the special tokens; or no beginning-of-sequence token.

    Example:
        >>> rows = en.models.encode_rows(tokenizer, ["gem"], prepend_bos=True)
        >>> rows.ids[0][0] == tokenizer.bos_token_id, rows.added
        (True, [(1, 0)])
    """
    texts = in_order(texts, what)
    check_texts(texts, what)
    if not texts:
        return Rows([], [])
    around = frame(tokenizer) if add_special_tokens else Frame()
    begin = bos_id(tokenizer) if prepend_bos else None
    prepended = begin is not None and around.opening[:1] != (begin,)
    opening = (begin,) if begin is not None and prepended else around.opening
    limit = None if max_length is None else max_length - prepended
    _check_room(max_length, len(around.opening) + len(around.closing) + prepended)
    rows = _tokenised(tokenizer, texts, limit, add_special_tokens)
    added = [(len(around.opening), len(around.closing))] * len(rows)
    if not add_special_tokens and (first := getattr(tokenizer, "bos_token_id", None)) is not None:
        for i, row in enumerate(rows):  # a chat template may write a beginning, and so may what was said in it
            _check_begun_once(row, (int(first),), f"{what} {i}")
    # What a template wrote already is read anew, by itself.
    start = 0 if prepended else len(around.opening)
    begun = [i for i, row in enumerate(rows) if opening and tuple(row[start : start + len(opening)]) == opening]
    if begun:
        again = _tokenised(tokenizer, [texts[i] for i in begun], max_length, False)
        for i, row in zip(begun, again, strict=True):
            _check_begun_once(row, opening, f"{what} {i}")
            if tuple(row[: len(opening)]) == opening:
                rows[i], added[i] = row, (0, 0)
            else:  # cut on the left, just before a beginning that was written further on
                rows[i], added[i] = rows[i][start:], (0, added[i][1])
    if prepended and begin is not None:
        for i in set(range(len(rows))) - set(begun):
            rows[i], added[i] = [begin, *rows[i]], (added[i][0] + 1, added[i][1])
    for i, (row, (before, after)) in enumerate(zip(rows, added, strict=True)):
        if after and (not closed or tuple(row[-2 * after :]) == around.closing * 2):
            rows[i], added[i] = row[:-after], (before, 0)
    _check_lengths(rows, model, tokenizer, max_length, what)
    check_ids(rows, model, what)
    return Rows(rows, added)


def check_texts(texts: Sequence[Any], what: str = "text") -> None:
    """Refuse what is no text: other types, blank strings, and halves of characters.

    Raises:
        EntangleError: It names the first.

    Example:
        >>> en.models.check_texts(["a text", ""])
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: text 1 is empty: remove it, so that every example has a token to ...
    """
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            hint = ""
            if isinstance(text, list | tuple) and text and isinstance(text[0], dict):
                hint = ": write conversations with tokenizer.apply_chat_template(..., tokenize=False)"
            raise EntangleError(f"{what}s must be strings, but {what} {i} is a {type(text).__name__}{hint}")
        if not text.strip():
            raise EntangleError(f"{what} {i} is empty: remove it, so that every example has a token to look at")
        refuse_half_characters(text, f"{what} {i}")


def _tokenised(tokenizer: Any, texts: Sequence[str], limit: int | None, special: bool) -> list[list[int]]:
    cut = {} if limit is None else {"truncation": True, "max_length": limit}
    with as_it_was(tokenizer):
        rows = tokenizer(list(texts), add_special_tokens=special, padding=False, verbose=False, **cut)["input_ids"]
    return [list(row) for row in rows]


def _check_room(max_length: int | None, special: int) -> None:
    if max_length is not None and max_length < 1:
        raise EntangleError(f"max_length must be at least 1, but is {max_length}")
    if max_length is not None and max_length <= special:
        raise EntangleError(
            f"max_length={max_length} leaves no room for text beside the {special} special tokens around it: raise it"
        )


def _check_begun_once(row: Sequence[int], opening: tuple[int, ...], name: str) -> None:
    if tuple(row[: 2 * len(opening)]) == opening * 2:
        raise EntangleError(
            f"{name} begins twice with the beginning-of-sequence token (ids {list(row[: 2 * len(opening)])}): remove "
            "one, or give the conversation to the chat template once"
        )


def _check_lengths(
    rows: Sequence[Sequence[int]], model: nn.Module | None, tokenizer: Any, max_length: int | None, what: str
) -> None:
    holds = context_length(model, tokenizer if max_length is None else None)
    for i, row in enumerate(rows):
        if not row:
            raise EntangleError(f"{what} {i} has no token: remove it, so that every example has a token to look at")
        if len(row) > holds:
            raise EntangleError(
                f"{what} {i} has {len(row)} tokens but the context holds {holds}: pass max_length={holds} "
                "(--max-length) to keep so many of them, or split it"
            )


def token_batches(lengths: Sequence[int], batch_tokens: int, *, same_length: bool = False) -> list[list[int]]:
    """Indices of texts in batches of similar length, each at most `batch_tokens` with its padding (or one longer text).

    The longest come first, so that a batch that does not fit in memory fails at once. `same_length` puts only texts of
    one length together, so that nothing is padded.

    Example:
        >>> en.models.token_batches([3, 9, 4, 8], batch_tokens=18)
        [[1, 3], [2, 0]]
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
    """Tokens a batch on this device: `batch_tokens`, and at most `CPU_TOKENS` on a CPU.

    Example:
        >>> en.models.at_once(8192, torch.device("cpu")), en.models.at_once(8192, torch.device("cuda"))
        (1024, 8192)
    """
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

    Example:
        >>> en.models.pad([[5, 6, 7], [8]], pad_id=0, side="left")
        {'input_ids': tensor([[5, 6, 7],
                [0, 0, 8]]), 'attention_mask': tensor([[1, 1, 1],
                [0, 0, 1]]), 'position_ids': tensor([[0, 1, 2],
                [0, 0, 0]])}
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


def batch_of(
    model: nn.Module, tokenizer: Any, rows: Sequence[Sequence[int]], *, side: Literal["left", "right"] = "right"
) -> dict[str, Tensor]:
    """Rows as this model's arguments, on its device, padded with an id that it has.

    Padded on the right, every model numbers positions as it was trained to; padded on the left they are given, from the
    number that the model begins with (RoBERTa does not begin at 0).

    Example:
        >>> batch = en.models.batch_of(model, tokenizer, [[5, 6, 7], [8, 9]], side="left")
        >>> batch["input_ids"], batch["position_ids"]
        (tensor([[5, 6, 7],
                [0, 8, 9]]), tensor([[0, 1, 2],
                [0, 0, 1]]))
    """
    device = next((p.device for p in model.parameters() if not p.is_meta), None)
    batch = pad(rows, pad_id(tokenizer, model), side=side, device=device)
    if side == "right" or not accepts(model, "position_ids"):
        del batch["position_ids"]
    else:
        batch["position_ids"] += first_position(model)
    return batch


def run_rows(model: nn.Module, tokenizer: Any, rows: Sequence[Sequence[int]], **arguments: Any) -> Any:
    """What the model returns for rows of token ids, padded on the right; hooks that are on it act here too.

    Without dropout, whatever mode the model is in.

    Example:
        >>> en.models.run_rows(model, tokenizer, [[5, 6, 7], [8, 9]]).logits.shape
        torch.Size([2, 3, 512])
    """
    with evaluating(model):
        return model(**batch_of(model, tokenizer, rows), use_cache=False, **arguments)


def carries_state(model: nn.Module) -> bool:
    """Whether the model reads a text into a state (Mamba, RWKV): padding before the text then leaves its trace there,
    masked or not, and a state is not to be shared between readings.

    Example:
        >>> en.models.carries_state(model)
        False
    """
    return bool(getattr(model, "_is_stateful", False))


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's forward takes an argument of this name.

    Example:
        >>> en.models.accepts(model, "attention_mask"), en.models.accepts(model, "pixel_values")
        (True, False)
    """
    forward = getattr(model, "forward", model)
    return name in inspect.signature(forward).parameters


def takes(model: nn.Module, name: str) -> bool:
    """Whether the model makes use of an argument of this name: its own, or one it hands on (as PEFT's wrappers do).

    Example:
        >>> en.models.takes(model, "input_ids"), en.models.takes(model, "pixel_values")
        (True, False)
    """
    if accepts(model, name):
        return True
    inner = getattr(model, "get_base_model", None)
    return inner is not None and inner() is not model and takes(inner(), name)
