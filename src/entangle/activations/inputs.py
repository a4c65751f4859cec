"""What a model is run on: texts or tokenised tensors, as examples without padding that can be batched anew."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from entangle.activations.batching import context_length, encode, pad, pad_id, takes
from entangle.errors import EntangleError


@dataclass(frozen=True)
class Examples:
    """Token ids of each example, its padding removed, and any other tensors the model takes.

    Attributes:
        ids: the tokens of each example.
        pad_id: the id that fills the rest of a batch.
        per_token: other integer tensors with one number a token (such as `token_type_ids`), cut like `ids`.
        first: column of each example's first token in the tensors it came from; 0 for texts.
    """

    ids: list[list[int]]
    pad_id: int
    per_token: dict[str, list[list[int]]] = field(default_factory=dict)
    first: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each example."""
        return [len(row) for row in self.ids]

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
        return {name: tensor.to(device) for name, tensor in batch.items()}


def examples_from(
    texts: Sequence[str] | Mapping[str, Any],
    tokenizer: Any,
    model: nn.Module,
    *,
    max_length: int | None = None,
    prepend_bos: bool = False,
) -> Examples:
    """Strings, or a mapping of tokenised tensors with `input_ids` and perhaps `attention_mask`, as examples.

    Raises:
        EntangleError: no text, an empty text, one longer than the context, or a mask with a gap.
    """
    if isinstance(texts, str):
        raise EntangleError("texts must be a list of strings, but one string arrived: pass [text]")
    if isinstance(texts, Mapping):
        if prepend_bos:
            raise EntangleError(
                "prepend_bos works on strings, but tokenised tensors arrived: add the token to input_ids"
            )
        return _from_tensors(texts, tokenizer, model, max_length)
    if tokenizer is None:
        raise EntangleError("texts need a tokenizer, but None arrived: pass it, or pass tokenised tensors")
    if len(texts) == 0:
        raise EntangleError("collecting needs at least one text, but none arrived")
    context = context_length(model)
    ids = encode(tokenizer, texts, max_length=max_length, prepend_bos=prepend_bos, context=context)
    return Examples(ids, pad_id(tokenizer), first=[0] * len(ids))


def _from_tensors(texts: Mapping[str, Any], tokenizer: Any, model: nn.Module, max_length: int | None) -> Examples:
    if "input_ids" not in texts:
        raise EntangleError(f"tokenised tensors need input_ids, but the keys are {', '.join(map(str, texts))}")
    tensors = {name: torch.as_tensor(value).cpu() for name, value in texts.items()}
    ids = tensors.pop("input_ids")
    mask = tensors.pop("attention_mask", torch.ones_like(ids)).bool()
    if ids.ndim != 2 or mask.shape != ids.shape:
        shapes = f"{tuple(ids.shape)} and {tuple(mask.shape)}"
        raise EntangleError(f"input_ids and attention_mask must both be [example pos], but are {shapes}")
    for name, tensor in tensors.items():
        if tensor.shape != ids.shape or tensor.is_floating_point():
            shape = tuple(tensor.shape)
            raise EntangleError(
                f"{name} must hold one integer a token like input_ids {tuple(ids.shape)}, but is {shape}"
            )
    rows, first = [], []
    per_token: dict[str, list[list[int]]] = {name: [] for name in tensors}
    for i, keep in enumerate(mask):
        where = keep.nonzero().flatten().tolist()
        if not where:
            raise EntangleError(f"example {i} has no unmasked token: remove it")
        if where[-1] - where[0] + 1 != len(where):
            raise EntangleError(
                f"the attention_mask of example {i} has a gap: only padding before or after the text can be masked"
            )
        where = where[:max_length]
        rows.append(ids[i, where].tolist())
        first.append(where[0])
        for name, tensor in tensors.items():
            per_token[name].append(tensor[i, where].tolist())
    context = context_length(model)
    for i, row in enumerate(rows):
        if context is not None and len(row) > context:
            raise EntangleError(
                f"example {i} has {len(row)} tokens but the model's context is {context}: pass max_length={context}"
            )
    return Examples(rows, pad_id(tokenizer), per_token, first)
