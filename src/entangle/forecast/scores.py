"""Gradients of what a model says by a shift that its tokens share: what every forecast is made of.

A *score* is the gradient of sum_t log p(y_t | x_<=t) by a constant shift of a site, with every y_t drawn from the model
itself. Scores have mean zero, those of different positions are uncorrelated given the text, and the mean of their outer
products is the Fisher information pulled back to the site. One backward pass gives the score at every site and layer at
once. With y_t the text's own next token the same pass gives the gradient of its log-probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.forecast.span import Span
from entangle.models.hooks import hooked
from entangle.models.rows import accepts, pad, pad_id, token_batches
from entangle.progress import progress_bar

LOGITS = 2**26
"""Numbers of one batch's logits: 256 MB in single precision."""


@dataclass(frozen=True)
class Row:
    """A text as token ids, which of its tokens are shifted, and which are predicted.

    Attributes:
        ids: Token ids.
        shifted: Whether the shift acts on each token.
        counted: Whether each token's prediction of the next one counts; the last predicts nothing.
    """

    ids: Sequence[int]
    shifted: Sequence[bool]
    counted: Sequence[bool]

    @property
    def n_counted(self) -> int:
        """The number of predictions that count."""
        return sum(self.counted)


@dataclass(frozen=True)
class RowScores:
    """What one text says.

    Attributes:
        observed: Gradient of the text's own log-probability by the shared shift.
        drawn: Scores, one row per draw.
        mean: Mean activation over the shifted tokens.
        positions: Some shifted tokens' own gradients, one set per draw, for shifts that differ from token to token.
        activations: The activations there.
        n_shifted: How many tokens are shifted.
        n_counted: How many predictions count.
        square: Mean square of an activation over the shifted tokens, a number per place.
    """

    observed: Float[Tensor, " d"]
    drawn: Float[Tensor, "draw d"]
    mean: Float[Tensor, " d"]
    positions: Float[Tensor, "draw position d"]
    activations: Float[Tensor, "position d"]
    n_shifted: int
    n_counted: int
    square: Float[Tensor, " place"]


def row_scores(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    span: Span,
    *,
    draws: int,
    positions: int = 0,
    seed: int = 0,
    batch_tokens: int = 2048,
    logits: int = LOGITS,
    progress: bool = True,
    what: str = "scores",
) -> Iterator[tuple[int, RowScores]]:
    """The scores of each text, in batches of similar length.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer, for padding.
        rows: The texts.
        span: The places.
        draws: Next tokens drawn per position, each for a score of its own.
        positions: Shifted tokens of each text whose own gradients are kept.
        seed: Seed of the draws; a text's draws depend on the seed and its number alone.
        batch_tokens: Tokens in one batch, padding included.
        logits: Numbers in one batch's logits at most.
        progress: Show a progress bar.
        what: Name of the bar.

    Yields:
        The text's number and its scores.

    Raises:
        EntangleError: The model cannot be differentiated.
    """
    vocabulary = model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    budget = max(1, min(batch_tokens, logits // vocabulary))
    batches = token_batches([len(row.ids) for row in rows], budget)
    with torch.inference_mode(False), torch.enable_grad():
        for batch in progress_bar(batches, desc=what, unit="batch", disable=not progress):
            yield from zip(
                batch,
                _batch_scores(
                    model, tokenizer, [rows[i] for i in batch], span, draws, positions, [(seed, i) for i in batch]
                ),
                strict=True,
            )


def _batch_scores(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    span: Span,
    draws: int,
    positions: int,
    seeds: Sequence[tuple[int, int]],
) -> list[RowScores]:
    inputs = pad([row.ids for row in rows], pad_id(tokenizer), device=span.device)
    width = inputs["input_ids"].shape[1]
    shifted, counted = (
        torch.tensor([[*flags, *[False] * (width - len(flags))] for flags in each], device=span.device)
        for each in ([row.shifted for row in rows], [row.counted for row in rows])
    )
    if not accepts(model, "position_ids"):
        del inputs["position_ids"]
    seen: dict[int, Tensor] = {}
    shifts: dict[int, Tensor] = {}

    def watch(number: int) -> Any:
        def added(x: Tensor) -> Tensor:
            seen[number] = x.detach()
            shift = torch.zeros_like(x).requires_grad_()
            shifts[number] = shift
            return x + shift

        return added

    closed = (
        f"a forecast needs gradients, but {type(model).__name__} gives none (quantised, exported, or made under "
        "torch.inference_mode): load it anew in float32 or bfloat16"
    )
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise EntangleError(closed)
    with hooked((place, watch(number)) for number, place in enumerate(span.places)):
        output: Tensor = model(**inputs, use_cache=False).logits
    if not output.requires_grad:
        raise EntangleError(closed)
    order = [shifts[number] for number in range(len(span.places))]

    def gradients(direction: Tensor, last: bool) -> Float[Tensor, "row pos d"]:
        parts = torch.autograd.grad(output, order, direction.to(output.dtype), retain_graph=not last)
        return torch.cat([part.float() for part in parts], -1) * shifted[..., None]

    counted = counted[:, :-1]
    probabilities = output.detach()[:, :-1].float().softmax(-1)
    if not bool(torch.isfinite(probabilities[counted]).all()):
        raise EntangleError("the model's logits are not finite on these texts: load it in a wider dtype")
    base = torch.zeros(output.shape, dtype=torch.float32, device=output.device)
    base[:, :-1] = -probabilities * counted[..., None]
    keep = [_kept(row, positions, seed) for row, seed in zip(rows, seeds, strict=True)]

    def slope(tokens: Int[Tensor, "row pos"], last: bool) -> Float[Tensor, "row pos d"]:
        """Gradient of log p(tokens), whose slope in the logits is one at the token less the probabilities."""
        here, ones = tokens[..., None], counted[..., None].float()
        base[:, :-1].scatter_add_(2, here, ones)
        result = gradients(base, last)
        base[:, :-1].scatter_add_(2, here, -ones)
        return result

    own = slope(inputs["input_ids"][:, 1:], draws == 0).sum(1)
    drawn: list[Tensor] = []
    local: list[list[Tensor]] = [[] for _ in rows]
    choices = _drawn_tokens(probabilities, counted, draws, seeds)
    for draw in range(draws):
        each = slope(choices[draw], draw == draws - 1)
        drawn.append(each.sum(1))
        for number, where in enumerate(keep):
            local[number].append(each[number, where].cpu())
    activations = torch.cat([seen[number].float() for number in range(len(span.places))], -1)
    results = []
    for number, row in enumerate(rows):
        inside = activations[number, shifted[number]]
        results.append(
            RowScores(
                observed=own[number].cpu(),
                drawn=torch.stack([each[number] for each in drawn]).cpu()
                if draws
                else own.new_zeros(0, span.size).cpu(),
                mean=inside.mean(0).cpu(),
                positions=torch.stack(local[number]) if draws else torch.zeros(0, len(keep[number]), span.size),
                activations=activations[number, keep[number]].cpu(),
                n_shifted=int(shifted[number].sum()),
                n_counted=row.n_counted,
                square=torch.stack([inside[:, part].square().mean() for part in span.slices]).cpu(),
            )
        )
    return results


def _kept(row: Row, positions: int, seed: tuple[int, int]) -> Int[Tensor, " position"]:
    """Some shifted tokens of a text, with repetition where it has fewer."""
    where = torch.tensor([i for i, flag in enumerate(row.shifted) if flag])
    generator = torch.Generator().manual_seed(_mixed(*seed, 1))
    return where[torch.randint(len(where), (positions,), generator=generator)]


def _drawn_tokens(
    probabilities: Float[Tensor, "row pos vocab"],
    counted: Bool[Tensor, "row pos"],
    draws: int,
    seeds: Sequence[tuple[int, int]],
) -> Int[Tensor, "draw row pos"]:
    """Next tokens from the model's own distributions, by inverse transform: a row's do not depend on its batch."""
    n_rows, width, _ = probabilities.shape
    tokens = torch.zeros(draws, n_rows, width, dtype=torch.long, device=probabilities.device)
    for number, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(_mixed(*seed, 0))
        length = int(counted[number].nonzero().max()) + 1
        uniform = torch.rand(length, draws, generator=generator, dtype=torch.float64).to(probabilities.device)
        cumulative = probabilities[number, :length].double().cumsum(-1)
        tokens[:, number, :length] = torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).T
    return tokens.clamp_(max=probabilities.shape[-1] - 1)


def _mixed(seed: int, number: int, stream: int) -> int:
    """One seed of three numbers."""
    return (seed * 1_000_003 + number * 2 + stream) % 2**63
