"""Examples a model is run on: no padding of their own, so that any of them can be batched together anew."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from entangle.activations.inputs.chat import Conversations
from entangle.models.rows import pad, takes, token_batches


@dataclass(frozen=True)
class Examples:
    """Token ids of each example, its padding removed, and any other tensors the model takes.

    Attributes:
        ids: The tokens of each example.
        pad_id: The id that fills the rest of a batch.
        per_token: Other integer tensors with one number per token (such as `token_type_ids`), cut like `ids`.
        first: Column of each example's first token in the tensors it came from; 0 for texts.
        beside: Tensors that each example has whole, such as the image that goes with a text.
        source: What the tokens were read from, where that is text: strings, or conversations and their template.
        added: How many tokens before and after each text its tokenizer's template, or `prepend_bos`, put there.
        special: Ids that stand for no text wherever they are (see `entangle.models.tokens.special_ids`).

    Example:
        >>> examples = en.activations.Examples([[5, 6, 7], [8, 9]], pad_id=0)
        >>> examples.lengths, examples.batch([0, 1], model, torch.device("cpu"))["attention_mask"]
        ([3, 2], tensor([[1, 1, 1],
                [1, 1, 0]]))
    """

    ids: list[list[int]]
    pad_id: int
    per_token: dict[str, list[list[int]]] = field(default_factory=dict)
    first: list[int] = field(default_factory=list)
    beside: dict[str, list[Tensor]] = field(default_factory=dict)
    source: list[str] | Conversations | None = None
    added: list[tuple[int, int]] = field(default_factory=list)
    special: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property  # asked for again at every shard
    def lengths(self) -> list[int]:
        """Number of positions of each example."""
        return [len(row) for row in self.ids]

    def text_positions(self, i: int, start: int, end: int) -> Sequence[int]:
        """Positions of an example from `start` to `end` that are no special token."""
        before, after = self.added[i] if self.added else (0, 0)
        row = self.ids[i]
        inner = range(max(start, before), min(end, self.lengths[i] - after))
        if self.special.isdisjoint(row[inner.start : inner.stop]):
            return inner
        return [p for p in inner if row[p] not in self.special]

    @property
    def digest(self) -> str | None:
        """SHA-256 of what the model is run on besides `ids`; `None` where there is nothing."""
        parts = [name.encode() + _bytes(x) for name, tensors in sorted(self._all_beside().items()) for x in tensors]
        return hashlib.sha256(b"".join(parts)).hexdigest() if parts else None

    def _all_beside(self) -> dict[str, list[Tensor]]:
        return {name: [torch.tensor(row) for row in rows] for name, rows in self.per_token.items()} | self.beside

    def batches(self, only: Sequence[int], batch_tokens: int, model: nn.Module) -> list[list[int]]:
        """The examples `only` in batches of similar length; of one length where the model could not tell padding."""
        lengths = self.lengths
        same = not takes(model, "attention_mask")
        batches = token_batches([lengths[i] for i in only], batch_tokens, same_length=same)
        return [[only[i] for i in batch] for batch in batches]

    def batch(self, indices: Sequence[int], model: nn.Module, device: torch.device) -> dict[str, Tensor]:
        """Some examples as the model's arguments, padded on the right.

        On the right no padding stands before a token, so every model counts positions as it would for the example
        alone, and no causal model sees the padding; position ids are therefore left to the model, whose numbering may
        be its own (RoBERTa's starts at 2).
        """
        padded = pad([self.ids[i] for i in indices], self.pad_id)
        batch = {name: padded[name] for name in ("input_ids", "attention_mask") if takes(model, name)}
        if "input_ids" not in batch:  # a plain module has a name of its own for it
            batch[next(iter(inspect.signature(model.forward).parameters))] = padded["input_ids"]
        for name, rows in self.per_token.items():
            batch[name] = pad([rows[i] for i in indices], 0)["input_ids"]
        batch |= self._whole(indices, model)
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def _whole(self, indices: Sequence[int], model: nn.Module) -> dict[str, Tensor]:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        stacked = {name: torch.stack([rows[i] for i in indices]) for name, rows in self.beside.items()}
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in stacked.items()}


@dataclass(frozen=True)
class DecoderExamples(Examples):
    """Examples for the decoder of an encoder-decoder: `ids` are the decoder's, and what the encoder reads goes along.

    Attributes:
        encoder: What the encoder reads, where that is tokens or an image or sound alone (then it is `beside`).
    """

    encoder: Examples | None = None

    def _all_beside(self) -> dict[str, list[Tensor]]:
        if self.encoder is None:
            return self.beside
        return {"input_ids": [torch.tensor(row) for row in self.encoder.ids]} | self.encoder._all_beside()

    def batch(self, indices: Sequence[int], model: nn.Module, device: torch.device) -> dict[str, Tensor]:
        """See `Examples.batch`; the encoder's tokens are padded on the right too, and masked."""
        padded = pad([self.ids[i] for i in indices], self.pad_id)
        batch = {"decoder_input_ids": padded["input_ids"], "decoder_attention_mask": padded["attention_mask"]}
        batch = {name: tensor for name, tensor in batch.items() if takes(model, name)} | self._whole(indices, model)
        if self.encoder is not None:
            batch |= self.encoder.batch(indices, model, device)
        return {name: tensor.to(device) for name, tensor in batch.items()}


@dataclass(frozen=True)
class SignalExamples(Examples):
    """Images, videos or sounds: no tokens, and positions that only the model can count (patches, frames).

    Attributes:
        positions: How many positions the model makes of each example.

    Example:
        >>> pixels = [torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]
        >>> images = en.activations.SignalExamples([[], []], 0, beside={"pixel_values": pixels}, positions=[5, 5])
        >>> images.lengths, images.batch([0, 1], model, torch.device("cpu"))["pixel_values"].shape
        ([5, 5], torch.Size([2, 3, 8, 8]))
    """

    positions: list[int] = field(default_factory=list)

    @cached_property
    def lengths(self) -> list[int]:
        """Number of positions of each example."""
        return self.positions

    def batches(self, only: Sequence[int], batch_tokens: int, model: nn.Module) -> list[list[int]]:
        """Batches of examples of one shape: nothing is padded, since what padding does to a signal is not known."""
        shapes: dict[tuple[object, ...], list[int]] = {}
        for i in only:
            shapes.setdefault(tuple(rows[i].shape for rows in self.beside.values()), []).append(i)
        batches: list[list[int]] = []
        for same in shapes.values():
            batched = token_batches([self.positions[i] for i in same], batch_tokens)
            batches += [[same[i] for i in batch] for batch in batched]
        return batches

    def batch(self, indices: Sequence[int], model: nn.Module, device: torch.device) -> dict[str, Tensor]:
        """Some examples of one shape as the model's arguments."""
        return {name: tensor.to(device) for name, tensor in self._whole(indices, model).items()}


def _bytes(x: Tensor) -> bytes:
    numbers = x.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{x.dtype}{tuple(x.shape)}".encode() + hashlib.sha256(numbers).digest()
