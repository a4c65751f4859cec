"""What a later place makes of a shift at an earlier one, to first order: its linear readers, pulled back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from entangle.data import texts_of
from entangle.errors import EntangleError
from entangle.models import (
    Atlas,
    Place,
    batch_of,
    context_length,
    encode,
    evaluating,
    hooked,
    own_tokenizer,
    states_and_head,
    token_batches,
    underlying,
)


def pulled_back(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    directions: Float[Tensor, "k d_later"],
    *,
    later: int,
    layer: int,
    later_site: str = "resid_post",
    site: str = "resid_post",
    tokens: Literal["last", "all"] = "last",
    max_length: int | None = None,
    batch_tokens: int = 2048,
) -> Float[Tensor, "k d"]:
    """Gradients of linear scores at a later place by a constant shift of all tokens at an earlier one.

    A probe that reads a later layer moves by `shift @ pulled_back(...)[i]`, to first order. Given to `Hold` as what is
    to stay still, it holds what the model makes of the edit there, and not only what the edit adds here.

    Args:
        model: A model that can be differentiated.
        tokenizer: Its tokenizer.
        texts: Texts to average over, other than those of a report.
        directions: Readers at the later place: one `[d_later]` or several.
        later: The layer that they read.
        layer: The layer that is shifted.
        later_site: The site that they read.
        site: The site that is shifted.
        tokens: Whose scores are averaged: each text's last token, or all.
        max_length: Keep at most this many tokens of a text.
        batch_tokens: Tokens in one batch, padding included.

    Returns:
        One gradient for each reader, averaged over texts.

    Raises:
        EntangleError: No texts, readers of another width, a place before the shift, or a model without gradients.

    Example:
        >>> readers = en.learning.pulled_back(model, tokenizer, clean[:8], directions.vectors, later=1, layer=0)
        >>> readers.shape
        torch.Size([3, 32])
        >>> same = en.learning.pulled_back(model, tokenizer, clean[:8], directions.vectors, later=1, layer=1)
        >>> torch.allclose(same, directions.vectors, atol=1e-5)  # what is added here is read here as it is
        True
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    atlas = Atlas(model)
    start, end = atlas.place(site, layer), atlas.place(later_site, later)
    readers = torch.as_tensor(directions).detach().float().cpu()
    readers = readers[None] if readers.ndim == 1 else readers
    if readers.ndim != 2 or readers.shape[1] != end.size or not torch.isfinite(readers).all():
        raise EntangleError(
            f"{later_site} of layer {later} has {end.size} numbers per token, but the directions are "
            f"{list(readers.shape)}, or not finite: give directions of that place"
        )
    texts = texts_of(texts)
    if tokens not in ("last", "all") or not texts:
        raise EntangleError(f'pulling back needs texts and tokens="last" or "all"; got {len(texts)} and {tokens!r}')
    limit = context_length(model, tokenizer) if max_length is None else max_length
    rows = encode(tokenizer, texts, max_length=limit)
    total = torch.zeros(len(readers), start.size)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        for numbers in token_batches([len(row) for row in rows], batch_tokens):
            total += _gradients(model, tokenizer, [rows[i] for i in numbers], start, end, readers, tokens)
    return total / len(rows)


def _gradients(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    start: Place,
    end: Place,
    readers: Float[Tensor, "k d_later"],
    tokens: str,
) -> Float[Tensor, "k d"]:
    """Summed over the rows."""
    inputs = batch_of(model, tokenizer, rows)
    shift = torch.zeros(start.size, device=inputs["input_ids"].device, requires_grad=True)
    seen: list[Tensor] = []

    def add(x: Tensor) -> Tensor:
        return x + shift.to(x)

    def look(x: Tensor) -> None:
        seen.append(x)

    places: list[tuple[Place, Callable[[Tensor], Tensor | None]]] = [(start, add), (end, look)]
    with hooked(places):
        states_and_head(model, inputs)
    if len(seen) != 1 or not seen[0].requires_grad:
        raise EntangleError(_unrelated(start, end))
    mask = inputs["attention_mask"].to(seen[0].device)
    if tokens == "last":
        position = torch.arange(mask.shape[1], device=mask.device)
        weights = (position == (mask * position).amax(1, keepdim=True)).float()
    else:
        weights = mask / mask.sum(1, keepdim=True)
    pooled = (seen[0].float() * weights[..., None]).sum((0, 1))
    results = []
    for number, reader in enumerate(readers):
        more = number < len(readers) - 1
        (gradient,) = torch.autograd.grad(pooled @ reader.to(pooled), shift, retain_graph=more, allow_unused=True)
        if gradient is None:
            raise EntangleError(_unrelated(start, end))
        results.append(gradient.float().cpu())
    return torch.stack(results)


def _unrelated(start: Place, end: Place) -> str:
    return (
        f"nothing at {end.site} of layer {end.layer} depends on {start.site} of layer {start.layer}: read a later "
        "place, once a pass, in a model that can be differentiated"
    )
