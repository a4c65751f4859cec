"""Some texts as the plain model reads them, which a model shifted at some places is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from entangle.forecast.scores import Row
from entangle.metrics import kl_of
from entangle.models import LOGITS, Place, batch_of, evaluating, hooked
from entangle.models.readout import logit_chunks, states_and_head

Move = Callable[[Float[Tensor, "row pos size"]], Float[Tensor, "row pos size"]]
"""How far activations of a place are moved."""


class Reading:
    """Rows read together, hidden states kept, logits a few positions at a time.

    Args:
        model: The model.
        tokenizer: Its tokenizer, for padding.
        rows: The texts.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, rows: Sequence[Row]) -> None:
        self._model = model
        self._batch = batch_of(model, tokenizer, [list(row.ids) for row in rows])
        width = max(len(row.ids) for row in rows)
        self._shifted, self._counted = (
            torch.tensor([[*flags, *[False] * (width - len(flags))] for flags in each])
            for each in ([row.shifted for row in rows], [row.counted for row in rows])
        )
        self.counted = self._counted.sum(1)
        self._plain, self._head = self._read()

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self._plain.dtype

    @torch.no_grad()
    def nats(self, moves: Mapping[Place, Move]) -> Float[Tensor, " text"]:
        """KL(plain || moved) of each text, summed over its counted tokens.

        Args:
            moves: What is added to the activations of each place, of the tokens that are shifted.
        """

        def moved(move: Move) -> Move:
            def fn(x: Tensor) -> Tensor:
                return x + (self._shifted.to(x.device)[..., None] * move(x)).to(x.dtype)

            return fn

        with hooked([(place, moved(move)) for place, move in moves.items()]):
            states, head = self._read()
        vocabulary = self._model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
        parts = [
            kl_of(self._head(self._plain[part]), head(states[part]))
            for part in logit_chunks(len(states), vocabulary, LOGITS)
        ]
        sums: Tensor = torch.zeros(len(self.counted), dtype=torch.float64)
        return sums.index_add_(0, self._counted.nonzero()[:, 0], torch.cat(parts).cpu())

    @torch.no_grad()
    def _read(self) -> tuple[Float[Tensor, "counted d"], Callable[[Tensor], Tensor]]:
        with evaluating(self._model):
            states, head = states_and_head(self._model, self._batch)
        return states[self._counted.to(states.device)], head


def some_rows(rows: Sequence[Row], tokens: int, generator: torch.Generator) -> list[Row]:
    """Texts in random order until so many tokens are there, the last one cut; one at least."""
    chosen: list[Row] = []
    left = tokens
    for i in torch.randperm(len(rows), generator=generator).tolist():
        row = rows[i]
        length = min(len(row.ids), left)
        cut = Row(row.ids[:length], row.shifted[:length], [*row.counted[: length - 1], False])
        if length >= 2 and cut.n_counted and any(cut.shifted):
            chosen.append(cut)
            left -= length
        if left < 2:
            break
    return chosen or [rows[0]]
