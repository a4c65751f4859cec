"""Texts as rows of tokens with the predictions that count, and what a model says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.models import LOGITS, accepts, context_length, encode, pad, pad_id, states_and_head


@dataclass(frozen=True)
class Row:
    """One text.

    Attributes:
        ids: Its tokens, those of its prompt first.
        begins: The number of tokens that are given and not predicted: the prompt's, one at least.
    """

    ids: tuple[int, ...]
    begins: int

    @property
    def n_counted(self) -> int:
        """How many predictions count."""
        return len(self.ids) - self.begins


def rows_of(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], prompts: Sequence[str] | None, max_length: int
) -> list[Row]:
    """Texts as rows, cut to `max_length` tokens.

    Raises:
        EntangleError: A text that leaves nothing to predict, a prompt too few, or texts longer than the context.
    """
    limit = min(max_length, context_length(model, tokenizer))
    if prompts is None:
        rows = [Row(tuple(ids), 1) for ids in encode(tokenizer, texts, max_length=limit)]
    else:
        if len(prompts) != len(texts):
            raise EntangleError(f"each text needs its prompt; got {len(texts)} texts and {len(prompts)} prompts")
        heads = encode(tokenizer, prompts, closed=False)
        tails = encode(tokenizer, texts, add_special_tokens=False)
        rows = [Row((*a, *b)[:limit], len(a)) for a, b in zip(heads, tails, strict=True)]
    for number, row in enumerate(rows):
        if row.n_counted < 1:
            raise EntangleError(f"text {number} leaves no token to predict: drop it, or raise max_length={max_length}")
    return rows


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows, padded on the right.

    Attributes:
        inputs: The model's arguments.
        real: Which tokens are no padding.
        counted: Which positions predict a token that counts.
        targets: The tokens that they predict, row after row.
        owner: The row of each.
    """

    inputs: dict[str, Tensor]
    real: Bool[Tensor, "row pos"]
    counted: Bool[Tensor, "row pos"]
    targets: Int[Tensor, " token"]
    owner: Int[Tensor, " token"]

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, rows: Sequence[Row]) -> Batch:
        """Pad them for a model."""
        device = next(p.device for p in model.parameters() if not p.is_meta)
        inputs = pad([row.ids for row in rows], pad_id(tokenizer, model), device=device)
        real, ids = inputs["attention_mask"].bool(), inputs["input_ids"]
        if not accepts(model, "position_ids"):
            del inputs["position_ids"]
        position = torch.arange(ids.shape[1], device=device)
        begins, ends = (
            torch.tensor(each, device=device)[:, None]
            for each in ([row.begins for row in rows], [len(row.ids) for row in rows])
        )
        counted = (position >= begins - 1) & (position < ends - 1)
        return cls(inputs, real, counted, ids.roll(-1, 1)[counted], counted.nonzero()[:, 0])

    def logits(self, model: nn.Module) -> Float[Tensor, "token vocab"]:
        """Of the predictions that count; with gradients where they are on."""
        states, head = states_and_head(model, self.inputs)
        logits: Tensor = head(states[self.counted])
        return logits

    def log_likelihood(self, model: nn.Module) -> Float[Tensor, " row"]:
        """Of each row: the sum over its predictions, in nats."""
        chosen = self.logits(model).float().log_softmax(-1).gather(1, self.targets[:, None])[:, 0]
        return torch.zeros(len(self.counted), device=chosen.device).index_add(0, self.owner, chosen)


def parts(model: Any, rows: Sequence[Row], per_text: int = 1) -> Iterator[list[int]]:
    """The rows' numbers in parts whose logits fit in memory at once, one row or more each.

    Args:
        model: Whose vocabulary it is.
        rows: The rows.
        per_text: Times that a row's logits are held.
    """
    vocabulary = model.config.get_text_config().vocab_size
    part: list[int] = []
    for number in range(len(rows)):
        width = max(len(rows[i].ids) for i in [*part, number])
        if part and width * (len(part) + 1) * vocabulary * per_text > LOGITS:
            yield part
            part = []
        part.append(number)
    if part:
        yield part
