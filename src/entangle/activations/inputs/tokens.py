"""Which tokens of each example to keep: a selection is a list of (example, position), or the mean of each example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from entangle.activations.inputs.chat import Conversations, Span, Turn, generated_span, turn_span
from entangle.activations.inputs.examples import Examples
from entangle.errors import EntangleError
from entangle.models.tokens import as_it_was

Tokens = (
    Literal["last", "first", "mean", "all"]
    | int
    | Bool[Tensor, "example pos"]
    | Sequence[Span]
    | Sequence[Sequence[Span]]
    | Turn
)
WORDS: dict[str, Callable[[int], Iterable[int]]] = {
    "last": lambda n: [n - 1],
    "first": lambda n: [0],
}
POOLED = ("mean", "all")  # words that take every token of a text: of its special tokens, only if asked to
MEAN = -1  # the position given for a mean over an example's tokens


@dataclass(frozen=True)
class Selection:
    """Rows of the result, in order of example and position.

    Attributes:
        rows: Example and position (counted from the example's own first token; `-1` for a mean) of each row of the
            result.
        starts: The first row of each example, and the number of rows at the end.
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
    """One row per example: the mean over some of its tokens.

    Attributes:
        parts: The positions averaged in each example.
    """

    parts: list[Sequence[int]]

    def pick(self, x: Tensor, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The mean of each example of a batch; see `Selection.pick`."""
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        for row, i in enumerate(indices):
            mask[row, torch.as_tensor(self.parts[i])] = True
        mask = mask.to(x.device)
        total = torch.where(mask[..., None], x, 0).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
        return torch.tensor(indices), (total / mask.sum(1, keepdim=True)).to(x.dtype)


def select(tokens: Tokens, examples: Examples, *, tokenizer: Any = None, special_tokens: bool = False) -> Selection:
    """The rows that `tokens` asks for.

    Args:
        tokens: `"last"`, `"first"`, `"mean"`, `"all"`; an integer position in every example (negative from its end); a
            bool mask `[example pos]` in the columns of the tensors given, or of each text's own tokens; one character
            span `(start, end)`, or a list of spans, for each text: every token that overlaps it; or a `Turn` of each
            conversation.
        examples: What will be run.
        tokenizer: A fast tokenizer, for spans and turns.
        special_tokens: Whether `"mean"` and `"all"` take in what stands for no text: what the tokenizer's template and
            `prepend_bos` added, and beginning, end, separator and padding wherever they are written. All else is taken
            literally: masks, spans, turns, integers, `"last"` and `"first"`.

    Raises:
        EntangleError: A selection that no rule above covers, or one that leaves an example without a token.

    Example:
        >>> examples = en.activations.read_inputs(en.Atlas(model), texts[:2], tokenizer)
        >>> en.activations.select(-1, examples).rows, en.activations.select("mean", examples).rows
        (tensor([[ 0, 19],
                [ 1, 11]]), tensor([[ 0, -1],
                [ 1, -1]]))
    """
    if isinstance(tokens, str | int) and not isinstance(tokens, bool):
        extents = [(0, n) for n in examples.lengths]
        if tokens in POOLED and not special_tokens:
            return _pooled(tokens, [examples.text_positions(i, *part) for i, part in enumerate(extents)])
        return _within(extents, tokens, "text")
    if isinstance(tokens, Turn):
        return _within(turn_positions(tokens, examples, tokenizer), tokens.tokens, f"{tokens} of conversation")
    if isinstance(tokens, Tensor):
        return _selection(_from_mask(tokens, examples))
    if isinstance(tokens, Sequence):
        return _selection(_from_spans(tokens, examples, tokenizer))
    raise EntangleError(
        f"tokens must be a word, an integer, a bool mask, spans or a Turn, but is a {type(tokens).__name__}"
    )


def special_note(tokens: Any, special_tokens: bool, examples: Examples) -> dict[str, Any]:
    """What a selection did with special tokens: `"left out"` and which, `"kept"`, or `"as selected"`."""
    if not isinstance(tokens, str) or tokens not in POOLED:
        return {"special_tokens": "as selected"}
    if special_tokens:
        return {"special_tokens": "kept"}
    return {"special_tokens": "left out", "special_ids": sorted(examples.special)}


def _within(parts: list[Span], tokens: str | int, what: str) -> Selection:
    """A word or an integer within a part of each example, its positions `[start, end)`."""
    if tokens in POOLED:
        return _pooled(tokens, [range(start, end) for start, end in parts])
    if isinstance(tokens, str):
        if tokens not in WORDS:
            raise EntangleError(
                f"tokens={tokens!r} is unknown: use 'last', 'first', 'mean', 'all', an integer, a mask, spans or a Turn"
            )
        return _selection([[start + p for p in WORDS[tokens](end - start)] for start, end in parts])
    for i, (start, end) in enumerate(parts):
        if not start - end <= tokens < end - start:
            raise EntangleError(
                f"tokens={tokens} was asked for, but {what} {i} has {end - start} tokens: select another, or remove it"
            )
    return _selection([[start + tokens % (end - start)] for start, end in parts])


def _pooled(tokens: str | int, parts: list[Sequence[int]]) -> Selection:
    """Every one of these positions, or the mean over each example's."""
    for i, part in enumerate(parts):
        if not len(part):
            raise EntangleError(
                f"example {i} holds nothing but special tokens, which tokens={tokens!r} leaves out: remove it, or keep "
                "them with special_tokens=True"
            )
    if tokens == "all":
        return _selection(parts)
    return MeanSelection(torch.tensor([(i, MEAN) for i in range(len(parts))]), list(range(len(parts) + 1)), parts)


def _selection(positions: Sequence[Sequence[int]]) -> Selection:
    rows = torch.tensor([(i, p) for i, chosen in enumerate(positions) for p in chosen], dtype=torch.long).reshape(-1, 2)
    counts = torch.tensor([0, *(len(chosen) for chosen in positions)])
    return Selection(rows, counts.cumsum(0).tolist())


def _from_mask(mask: Tensor, examples: Examples) -> list[list[int]]:
    if mask.dtype != torch.bool or mask.ndim != 2 or mask.shape[0] != len(examples):
        what = f"{mask.dtype} {tuple(mask.shape)}"
        raise EntangleError(f"a token mask must be bool [example pos] for {len(examples)} examples, but is {what}")
    positions = []
    for i, (row, n, first) in enumerate(zip(mask, examples.lengths, examples.first, strict=True)):
        columns = [int(column) - first for column in row.nonzero().flatten()]
        if not columns:
            raise EntangleError(
                f"the token mask selects no token of example {i}: select at least one, or remove the example"
            )
        if columns[0] < 0 or columns[-1] >= n:
            raise EntangleError(
                f"the token mask selects padding of example {i}, which has {n} tokens from column {first}"
            )
        positions.append(columns)
    return positions


def _from_spans(spans: Sequence[Any], examples: Examples, tokenizer: Any) -> list[list[int]]:
    if not isinstance(examples.source, list):
        raise EntangleError("character spans need texts as strings: pass a token mask, or a Turn of conversations")
    if len(spans) != len(examples):
        raise EntangleError(
            f"one span, or list of spans, a text is needed, but {len(spans)} arrived for {len(examples)} texts"
        )
    texts = examples.source
    offsets, _ = _offsets(texts, examples, tokenizer)
    positions = []
    for i, entry in enumerate(spans):
        pairs = [entry] if len(entry) == 2 and isinstance(entry[0], int) else entry
        if any(not 0 <= start < end <= len(texts[i]) for start, end in pairs):
            raise EntangleError(
                f"the spans of text {i} must lie within its {len(texts[i])} characters, but are {list(pairs)}"
            )
        overlapping = [p for p, (a, b) in offsets[i] if any(a < end and start < b for start, end in pairs)]
        if not overlapping:
            raise EntangleError(f"the spans of text {i} touch none of its {len(examples.ids[i])} tokens: {list(pairs)}")
        positions.append(overlapping)
    return positions


def turn_positions(turn: Turn, examples: Examples, tokenizer: Any) -> list[Span]:
    """The positions of a turn in each conversation, `[start, end)`.

    Args:
        turn: The turn; which of its tokens is not asked here.
        examples: Conversations, as `read_inputs` gives them.
        tokenizer: The fast tokenizer that read them.

    Raises:
        EntangleError: No conversations, no such turn, or one that cannot be found among the tokens.

    Example:
        >>> chat = {"chat_template": "{% for m in messages %}{{ m.role + ': ' + m.content + ' ' }}{% endfor %}"}
        >>> asked = [{"role": "user", "content": "a gem"}]
        >>> read = en.activations.read_inputs(en.Atlas(model), [asked], tokenizer, chat_template_kwargs=chat)
        >>> en.activations.turn_positions(en.Turn(), read, tokenizer)
        [(4, 6)]
    """
    source = examples.source
    if not isinstance(source, Conversations):
        raise EntangleError("a Turn needs conversations, lists of messages with a role: pass these, or a token mask")
    offsets, moved = _offsets(source.texts, examples, tokenizer)
    parts = []
    for i, tokens in enumerate(offsets):
        if turn.part == "generated":
            start, end = (p + moved[i] for p in generated_span(turn, source, i, tokenizer))
            within = start >= 0 and end <= len(examples.ids[i])
        else:
            a, b = turn_span(turn, source, i, tokenizer)
            overlapping = [p for p, (start, end) in tokens if start < b and a < end]
            covered = [span for _, span in tokens]
            within = bool(overlapping) and min(covered)[0] <= a and max(end for _, end in covered) >= b
            start, end = (overlapping[0], overlapping[-1] + 1) if overlapping else (0, 0)
        if not within:
            raise EntangleError(
                f"{turn} of conversation {i} lies beyond its {len(examples.ids[i])} tokens: raise max_length"
            )
        parts.append((start, end))
    return parts


def _offsets(texts: list[str], examples: Examples, tokenizer: Any) -> tuple[list[list[tuple[int, Span]]], list[int]]:
    """Position and characters of each token of a text, and by how much a position exceeds that in the text alone.

    The text alone is without special tokens around it and not truncated; a row is what truncation kept of it.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise EntangleError("finding characters needs a fast tokenizer, which knows its offsets: pass a token mask")
    with as_it_was(tokenizer):
        alone = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    left = getattr(tokenizer, "truncation_side", "right") == "left"
    places, moved = [], []
    for i, (ids, offsets) in enumerate(zip(alone["input_ids"], alone["offset_mapping"], strict=True)):
        before, after = examples.added[i]
        inner = examples.ids[i][before : len(examples.ids[i]) - after]
        cut = len(ids) - len(inner) if left else 0
        if list(ids[cut : cut + len(inner)]) != inner:
            raise EntangleError(
                f"the tokenizer reads text {i} differently with special tokens around it, so characters cannot be "
                "matched to tokens: pass a token mask"
            )
        places.append(list(enumerate(map(tuple, offsets[cut : cut + len(inner)]), start=before)))
        moved.append(before - cut)
    return places, moved
