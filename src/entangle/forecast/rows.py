"""Texts as rows of tokens, with which of them are shifted and which are counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from entangle.activations import prompt_tokens
from entangle.data import AnyPrompt
from entangle.errors import EntangleError
from entangle.forecast.scores import Row
from entangle.models.rows import context_length, encode
from entangle.storage.digest import digest

Scope = Literal["all", "prompt", "generated"]


def rows_of(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    prompts: Sequence[AnyPrompt] | None,
    tokens: Scope,
    max_length: int | None,
) -> tuple[list[Row], list[str]]:
    """Rows of texts, and a digest of each.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        texts: Texts, or continuations of prompts.
        prompts: One for each text, where they are continuations: strings, or conversations that they answer.
        tokens: Which tokens are shifted.
        max_length: Keep at most this many tokens of a text; of a continuation, of itself and its prompt.

    Raises:
        EntangleError: A text that predicts nothing, a prompt too few, or a scope that needs prompts.
    """
    if tokens not in ("all", "prompt", "generated"):
        raise EntangleError(f'tokens must be "all", "prompt" or "generated"; got {tokens!r}')
    context = context_length(model, tokenizer)
    limit = context if max_length is None else max_length
    if not 2 <= limit <= context:
        raise EntangleError(f"max_length must be between 2 and the context of {context} tokens; got {max_length}")
    if prompts is None:
        if tokens != "all":
            raise EntangleError(f"tokens={tokens!r} needs to know what is prompt: pass prompts=, one for each text")
        encoded = encode(tokenizer, texts, max_length=limit)
        rows = [Row(ids, [True] * len(ids), [*[True] * (len(ids) - 1), False]) for ids in encoded]
    else:
        if len(prompts) != len(texts):
            raise EntangleError(f"each text needs its prompt; got {len(texts)} texts and {len(prompts)} prompts")
        pairs = zip(prompt_tokens(tokenizer, prompts), encode(tokenizer, texts, add_special_tokens=False), strict=True)
        rows = [_continued(prompt, text, tokens, limit) for prompt, text in pairs]
    for number, row in enumerate(rows):
        if row.n_counted < 1 or not any(row.shifted):
            raise EntangleError(f"text {number} leaves no token to predict or to shift: drop it, or raise max_length")
    names = [digest([*row.ids]) for row in rows]
    return rows, names


def _continued(prompt: Sequence[int], text: Sequence[int], tokens: Scope, limit: int) -> Row:
    ids = [*prompt, *text][:limit]
    inside = [i >= len(prompt) for i in range(len(ids))]
    shifted = (
        inside if tokens == "generated" else [not flag for flag in inside] if tokens == "prompt" else [True] * len(ids)
    )
    return Row(ids, shifted, [*inside[1:], False])
