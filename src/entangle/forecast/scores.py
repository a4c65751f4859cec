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
from entangle.forecast.slopes import mixed, state_slopes
from entangle.forecast.span import Span
from entangle.models.hooks import hooked
from entangle.models.readout import LOGITS, batch_budget, states_and_head
from entangle.models.rows import accepts, pad, pad_id, token_batches
from entangle.progress import progress_bar


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

    @staticmethod
    def stacked(rows: Sequence[Row]) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos 2"]]:
        """Ids, padded with -1, and flags of rows as tensors, to be kept on disk."""
        width = max((len(row.ids) for row in rows), default=0)
        ids = torch.full((len(rows), width), -1)
        flags = torch.zeros(len(rows), width, 2, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = torch.tensor(row.ids)
            flags[number, : len(row.ids)] = torch.tensor([row.shifted, row.counted]).T
        return ids, flags

    @classmethod
    def unstacked(cls, ids: Int[Tensor, "row pos"], flags: Bool[Tensor, "row pos 2"]) -> list[Row]:
        """The rows that `stacked` made tensors of."""
        rows = []
        for numbers, both in zip(ids, flags, strict=True):
            length = int((numbers >= 0).sum())
            shifted, counted = both[:length].T.tolist()
            rows.append(cls(numbers[:length].tolist(), shifted, counted))
        return rows


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
        logits: Numbers of logits computed at once, at most; their gradients are as many.
        progress: Show a progress bar.
        what: Name of the bar.

    Yields:
        The text's number and its scores.

    Raises:
        EntangleError: The model cannot be differentiated.
    """
    budget = batch_budget(model, batch_tokens, span.device, logits)
    batches = token_batches([len(row.ids) for row in rows], budget)
    with torch.inference_mode(False), torch.enable_grad():
        for batch in progress_bar(batches, desc=what, unit="batch", disable=not progress):
            drawn_by = [(seed, i) for i in batch]
            chosen = [rows[i] for i in batch]
            yield from zip(
                batch,
                _batch_scores(model, tokenizer, chosen, span, draws, positions, drawn_by, logits),
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
    logits: int,
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
        states, head = states_and_head(model, inputs)
    if not states.requires_grad:
        raise EntangleError(closed)
    order = [shifts[number] for number in range(len(span.places))]

    counted[:, -1] = False
    slopes = state_slopes(
        head, states[counted], inputs["input_ids"].roll(-1, 1)[counted], counted, draws, seeds, logits
    )
    keep = [_kept(row, positions, seed) for row, seed in zip(rows, seeds, strict=True)]

    def gradients(slope: Float[Tensor, "token k"], last: bool) -> Sequence[Tensor]:
        """Back from the hidden states of the tokens that count to the places, each of its own width."""
        upward = torch.zeros_like(states)
        upward[counted] = slope.to(states.dtype)
        return torch.autograd.grad(states, order, upward, retain_graph=not last)

    def shared(parts: Sequence[Tensor]) -> Float[Tensor, "row d"]:
        """What a shift that all shifted tokens share has of them; a place at a time, which are wide together."""
        return torch.cat([(part.float() * shifted[..., None]).sum(1) for part in parts], -1)

    own = shared(gradients(slopes[0], draws == 0))
    drawn: list[Tensor] = []
    local: list[list[Tensor]] = [[] for _ in rows]
    for draw in range(draws):
        parts = gradients(slopes[1 + draw], draw == draws - 1)
        drawn.append(shared(parts))
        for number, where in enumerate(keep):
            local[number].append(_at(parts, number, where))
    places = [seen[number] for number in range(len(span.places))]
    results = []
    for number, row in enumerate(rows):
        inside = [place[number, shifted[number]].float() for place in places]
        results.append(
            RowScores(
                observed=own[number].cpu(),
                drawn=torch.stack([each[number] for each in drawn]).cpu()
                if draws
                else own.new_zeros(0, span.size).cpu(),
                mean=torch.cat([x.mean(0) for x in inside]).cpu(),
                positions=torch.stack(local[number]) if draws else torch.zeros(0, len(keep[number]), span.size),
                activations=_at(places, number, keep[number]),
                n_shifted=int(shifted[number].sum()),
                n_counted=row.n_counted,
                square=torch.stack([x.square().mean() for x in inside]).cpu(),
            )
        )
    return results


def _at(places: Sequence[Float[Tensor, "row pos size"]], row: int, where: Tensor) -> Float[Tensor, "position d"]:
    """Some positions of a row, all places side by side."""
    return torch.cat([place[row, where].float() for place in places], -1).cpu()


def _kept(row: Row, positions: int, seed: tuple[int, int]) -> Int[Tensor, " position"]:
    """Some shifted tokens of a text, with repetition where it has fewer."""
    where = torch.tensor([i for i, flag in enumerate(row.shifted) if flag])
    generator = torch.Generator().manual_seed(mixed(*seed, 1))
    return where[torch.randint(len(where), (positions,), generator=generator)]
