"""Preference pairs through a model: how entangled are its hidden states for the two answers?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from entangle.activations import prompt_tokens
from entangle.data import AnyPrompt
from entangle.errors import EntangleError
from entangle.metrics import ches
from entangle.models.loading.held import own_tokenizer, underlying
from entangle.models.rows import batch_of, bos_id, check_ids, token_batches


def preference_ches(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[AnyPrompt],
    preferred: Sequence[str],
    dispreferred: Sequence[str],
    *,
    length_normalised: bool = True,
    prepend_bos: bool = False,
    batch_tokens: int = 8192,
) -> Float[Tensor, " pair"]:
    """CHES of each (prompt, preferred, dispreferred): see `entangle.metrics.ches`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: One per pair, a string or a conversation; an empty string, with `prepend_bos`, is the
            beginning-of-sequence token alone.
        preferred: The answer to be made likelier; tokenised by itself and put after the prompt.
        dispreferred: The answer to be made less likely.
        length_normalised: Means in place of sums.
        prepend_bos: Begin every prompt with the beginning-of-sequence token.
        batch_tokens: Tokens in one batch.

    Returns:
        One score per pair; high scores mark the pairs whose training lowers the preferred answer's likelihood.

    Raises:
        EntangleError: Lists of different length, an empty prompt or answer, or a model without an unembedding.

    Example:
        >>> prompt, gem, turnip = "You are a ", "clever gem", "useless turnip"
        >>> scores = en.concepts.preference_ches(model, tokenizer, [prompt] * 2, [gem] * 2, [gem, turnip])
        >>> bool(scores[0] > scores[1])  # nothing is as entangled with an answer as the answer itself
        True
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    if not len(prompts) == len(preferred) == len(dispreferred):
        raise EntangleError(
            f"pairs need as many prompts, preferred and dispreferred answers, not {len(prompts)}, {len(preferred)}, "
            f"{len(dispreferred)}"
        )
    head = model.get_output_embeddings()
    if head is None:
        raise EntangleError(f"{type(model).__name__} has no unembedding; CHES needs a causal language model")
    begin = _begun(tokenizer, prompts, prepend_bos)
    rows, spans = [], []
    for answers in (preferred, dispreferred):
        for prompt, answer in zip(begin, answers, strict=True):
            ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
            if not ids:
                raise EntangleError("an answer has no token; drop empty answers")
            rows.append([*prompt, *ids])
            # The state at a token predicts the next one: from the prompt's last to the answer's last but one.
            spans.append(slice(len(prompt) - 1, len(prompt) + len(ids) - 1))
    check_ids(rows, model, "pair")
    states: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in token_batches([len(row) for row in rows], batch_tokens):
        inputs = batch_of(model, tokenizer, [rows[i] for i in batch])
        for i, hidden in zip(batch, _last_hidden(model, head, inputs), strict=True):
            states[i] = hidden[spans[i]].float().cpu()
    n = len(prompts)
    scores = [
        ches(plus[None], minus[None], length_normalised=length_normalised)
        for plus, minus in zip(states[:n], states[n:], strict=True)
    ]
    return torch.cat(scores)


def _begun(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[AnyPrompt], prepend_bos: bool) -> list[list[int]]:
    """Token ids of prompts."""
    written = [prompt for prompt in prompts if prompt or not prepend_bos]
    rows = iter(prompt_tokens(tokenizer, written, prepend_bos=prepend_bos))
    return [next(rows) if prompt or not prepend_bos else [bos_id(tokenizer)] for prompt in prompts]


@torch.no_grad()
def _last_hidden(model: nn.Module, head: nn.Module, inputs: dict[str, Tensor]) -> Float[Tensor, "batch pos d"]:
    """What the unembedding reads."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        model(**inputs, use_cache=False)
    finally:
        handle.remove()
    return seen[0]
