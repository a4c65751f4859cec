"""Which tokens of each example to keep: a selection is a list of (example, position), or the mean of each example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from entangle.activations.inputs import Examples
from entangle.errors import EntangleError

Span = tuple[int, int]
Tokens = (
    Literal["last", "first", "mean", "all"]
    | int
    | Bool[Tensor, "example pos"]
    | Sequence[Span]
    | Sequence[Sequence[Span]]
)
WORDS: dict[str, Callable[[int], Iterable[int]]] = {
    "last": lambda n: [n - 1],
    "first": lambda n: [0],
    "all": range,
}
MEAN = -1  # the position given for a mean over an example's tokens


@dataclass(frozen=True)
class Selection:
    """Rows of the result, in order of example and position.

    Attributes:
        rows: example and position (counted from the example's own first token; `-1` for a mean) of each row of the
            result.
        starts: the first row of each example, and the number of rows at the end.
    """

    rows: Int[Tensor, "row 2"]
    starts: list[int]

    def pick(self, x: Tensor, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The selected tokens of a batch.

        Args:
            x: `[batch pos size]`, right-padded, of the examples `indices`.

        Returns:
            The rows' numbers `[picked]` and their activations `[picked size]`, on the device of `x`.
        """
        numbers = torch.cat([torch.arange(self.starts[i], self.starts[i + 1]) for i in indices])
        counts = torch.tensor([self.starts[i + 1] - self.starts[i] for i in indices])
        in_batch = torch.repeat_interleave(torch.arange(len(indices)), counts)
        positions = self.rows[numbers, 1]
        return numbers, x[in_batch.to(x.device), positions.to(x.device)]


@dataclass(frozen=True)
class MeanSelection(Selection):
    """One row an example: the mean over all of its tokens."""

    lengths: list[int]

    def pick(self, x: Tensor, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The mean of each example of a batch; see `Selection.pick`."""
        lengths = torch.tensor([self.lengths[i] for i in indices], device=x.device)
        mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        total = torch.where(mask[..., None], x, 0).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
        return torch.tensor(indices), (total / lengths[:, None]).to(x.dtype)


def select(tokens: Tokens, examples: Examples, *, texts: Any = None, tokenizer: Any = None) -> Selection:
    """The rows that `tokens` asks for.

    Args:
        tokens: `"last"`, `"first"`, `"mean"`, `"all"`; an integer position in every example (negative from its end); a
            bool mask `[example pos]` in the columns of the tensors given, or of each text's own tokens; or one
            character span `(start, end)`, or a list of spans, for each text: every token that overlaps it.
        examples: what will be run.
        texts: the strings, for spans.
        tokenizer: a fast tokenizer, for spans.

    Raises:
        EntangleError: a selection that no rule above covers, or one that leaves an example without a token.
    """
    lengths = examples.lengths
    if isinstance(tokens, str):
        if tokens == "mean":
            rows = torch.tensor([(i, MEAN) for i in range(len(lengths))])
            return MeanSelection(rows, list(range(len(lengths) + 1)), lengths)
        if tokens not in WORDS:
            raise EntangleError(
                f"tokens={tokens!r} is unknown: use 'last', 'first', 'mean', 'all', an integer, a mask or spans"
            )
        return _selection([list(WORDS[tokens](n)) for n in lengths])
    if isinstance(tokens, int) and not isinstance(tokens, bool):
        for i, n in enumerate(lengths):
            if not -n <= tokens < n:
                raise EntangleError(
                    f"tokens={tokens} was asked for, but text {i} has {n} tokens: select another, or remove the text"
                )
        return _selection([[tokens % n] for n in lengths])
    if isinstance(tokens, Tensor):
        return _selection(_from_mask(tokens, examples))
    if isinstance(tokens, Sequence):
        return _selection(_from_spans(tokens, examples, texts, tokenizer))
    raise EntangleError(f"tokens must be a word, an integer, a bool mask or spans, but is a {type(tokens).__name__}")


def _selection(positions: list[list[int]]) -> Selection:
    rows = torch.tensor([(i, p) for i, chosen in enumerate(positions) for p in chosen], dtype=torch.long).reshape(-1, 2)
    counts = torch.tensor([0, *(len(chosen) for chosen in positions)])
    return Selection(rows, counts.cumsum(0).tolist())


def _from_mask(mask: Tensor, examples: Examples) -> list[list[int]]:
    if mask.dtype != torch.bool or mask.ndim != 2 or mask.shape[0] != len(examples):
        what = f"{mask.dtype} {tuple(mask.shape)}"
        raise EntangleError(f"a token mask must be bool [example pos] for {len(examples)} examples, but is {what}")
    positions = []
    for i, (row, n, first) in enumerate(zip(mask, examples.lengths, examples.first, strict=True)):
        chosen = [int(column) - first for column in row.nonzero().flatten()]
        if not chosen:
            raise EntangleError(
                f"the token mask selects no token of example {i}: select at least one, or remove the example"
            )
        if chosen[0] < 0 or chosen[-1] >= n:
            raise EntangleError(
                f"the token mask selects padding of example {i}, which has {n} tokens from column {first}"
            )
        positions.append(chosen)
    return positions


def _from_spans(spans: Sequence[Any], examples: Examples, texts: Any, tokenizer: Any) -> list[list[int]]:
    if not (isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts)):
        raise EntangleError("character spans need texts as strings, but tokenised tensors arrived: pass a token mask")
    if not getattr(tokenizer, "is_fast", False):
        raise EntangleError("character spans need a fast tokenizer, which knows its tokens' offsets: pass a token mask")
    if len(spans) != len(examples):
        raise EntangleError(
            f"one span, or list of spans, a text is needed, but {len(spans)} arrived for {len(examples)} texts"
        )
    encoded = tokenizer(list(texts), return_offsets_mapping=True, verbose=False)
    positions = []
    for i, (entry, ids) in enumerate(zip(spans, examples.ids, strict=True)):
        offset = encoded["offset_mapping"][i]
        pairs = [entry] if len(entry) == 2 and isinstance(entry[0], int) else entry
        if any(not 0 <= start < end <= len(texts[i]) for start, end in pairs):
            raise EntangleError(
                f"the spans of text {i} must lie within its {len(texts[i])} characters, but are {list(pairs)}"
            )
        added = int(ids[:1] != encoded["input_ids"][i][:1])  # a beginning-of-sequence token that was prepended
        tokens = enumerate(offset[: len(ids) - added], start=added)
        chosen = [p for p, (a, b) in tokens if any(a < end and start < b for start, end in pairs)]
        if not chosen:
            raise EntangleError(f"the spans of text {i} touch none of its {len(ids)} tokens: {list(pairs)}")
        positions.append(chosen)
    return positions
