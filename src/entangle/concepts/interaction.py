"""How a later layer responds to an earlier one: gradients of random projections, sampled from a running model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from entangle.errors import EntangleError
from entangle.models.atlas import Atlas
from entangle.models.hooks import hooked
from entangle.models.loading.held import own_tokenizer, underlying
from entangle.models.rows import encode_rows, run_rows, special_ids, token_batches


def interaction_gradients(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    layer: int,
    later: int,
    site: str = "resid_post",
    whitener: Float[Tensor, "component d"] | None = None,
    n_projections: int = 4,
    max_length: int | None = None,
    prepend_bos: bool = False,
    special_tokens: bool = False,
    batch_tokens: int = 2048,
    seed: int = 0,
) -> Float[Tensor, "sample d"]:
    """Samples of J'u at every token: what `local_interaction_basis` takes.

    u is drawn from N(0, I) at every token of the later layer, so the second moment of the samples estimates the sum of
    J'J over the tokens that an earlier token reaches (Hutchinson 1989).

    Args:
        model: Any HuggingFace model; unchanged afterwards.
        tokenizer: Its tokenizer.
        texts: Texts.
        layer: The layer whose activations the gradients are taken by.
        later: The layer above whose activations are projected.
        site: At both.
        whitener: W, to project W y in place of the later activations y, such as the local interaction basis found
            there. Without it, the result depends on the later layer's coordinates.
        n_projections: Samples per token.
        max_length: Keep at most this many tokens of a text.
        prepend_bos: Begin every text with the beginning-of-sequence token.
        special_tokens: Whether to sample at beginning, end and separators too, as in `collect(tokens="all")`.
        batch_tokens: Tokens in one batch.
        seed: Seed of the projections.

    Returns:
        One row per token and projection.

    Example:
        >>> text = "You want my kettle again"
        >>> samples = en.concepts.interaction_gradients(model, tokenizer, [text], layer=0, later=1, n_projections=4)
        >>> len(samples) == 4 * len(tokenizer(text)["input_ids"]), samples.shape[1]
        (True, 32)
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    if not layer < later:
        raise EntangleError(f"gradients run from a later layer to an earlier one; got layer={layer}, later={later}")
    atlas = Atlas(model)
    source, target = atlas.place(site, layer), atlas.place(site, later)
    encoded = encode_rows(tokenizer, texts, model=model, max_length=max_length, prepend_bos=prepend_bos)
    rows, special = encoded.ids, special_ids(tokenizer, model)
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for batch in token_batches([len(row) for row in rows], batch_tokens):
        mask = torch.zeros(len(batch), max(len(rows[i]) for i in batch), dtype=torch.bool, device=model.device)
        for place, i in enumerate(batch):
            before, after = encoded.added[i]
            keep = [before <= p < len(rows[i]) - after and t not in special for p, t in enumerate(rows[i])]
            mask[place, : len(rows[i])] = torch.tensor(keep) | special_tokens
        seen: dict[str, Tensor] = {}

        def start(x: Tensor, seen: dict[str, Tensor] = seen) -> Tensor:
            seen["x"] = x.detach().requires_grad_()
            return seen["x"]

        def end(y: Tensor, seen: dict[str, Tensor] = seen) -> None:
            seen["y"] = y

        with torch.enable_grad(), hooked([(source, start), (target, end)]):
            run_rows(model, tokenizer, [rows[i] for i in batch])
        y = seen["y"][mask]
        y = y if whitener is None else y @ whitener.to(y).T
        for _ in range(n_projections):
            u = torch.randn(y.shape, generator=generator).to(y)
            (gradient,) = torch.autograd.grad((y * u).sum(), seen["x"], retain_graph=True)
            samples.append(gradient[mask].cpu())
    return torch.cat(samples)
