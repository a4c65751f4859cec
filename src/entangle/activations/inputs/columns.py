"""Tokenised batches, images and sounds as columns: one list an argument of the model, one entry an example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from entangle.errors import EntangleError

Columns = dict[str, list[Tensor]]


def columns_of(inputs: Mapping[str, Any] | Iterable[Any]) -> Columns:
    """Each argument's rows, from one mapping of tensors or an iterable of them (a DataLoader, a `datasets.Dataset`).

    Args:
        inputs: A mapping whose values have examples along the first axis (tensors, arrays, or lists of lists of
            different lengths); or an iterable of such batches, of single examples, or of bare rows of token ids.
            `labels` are left out: they change no activation.

    Raises:
        EntangleError: Values that are no numbers, or columns that do not go together.
    """
    if isinstance(inputs, Mapping):
        columns = {str(name): _rows(name, value) for name, value in inputs.items() if name != "labels"}
        counts = {name: len(rows) for name, rows in columns.items()}
        if len(set(counts.values())) > 1:
            raise EntangleError(f"every input must have as many rows as there are examples, but they have {counts}")
        return columns
    columns = {}
    for i, item in enumerate(inputs):
        batch = columns_of(_as_batch(item, i))
        if i and batch.keys() != columns.keys():
            raise EntangleError(f"item {i} has {', '.join(batch)}, but those before it {', '.join(columns)}")
        for name, rows in batch.items():
            columns.setdefault(name, []).extend(rows)
    return columns


def unpadded(value: str, rows: list[Tensor], masks: list[Tensor]) -> list[slice]:
    """Which part of the first axis of each row is not padding.

    Raises:
        EntangleError: A mask of another length, that masks everything, or has a gap.
    """
    parts = []
    for i, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        if mask.shape != row.shape[:1]:
            shapes = f"{tuple(mask.shape)} and {tuple(row.shape)}"
            raise EntangleError(f"the attention_mask and {value} of example {i} must have one length, but are {shapes}")
        where = mask.bool().nonzero().flatten()
        if not len(where):
            raise EntangleError(f"example {i} has no unmasked token: remove it")
        start, end = int(where[0]), int(where[-1]) + 1
        if end - start != len(where):
            raise EntangleError(
                f"the attention_mask of example {i} has a gap: only padding before or after the text can be masked"
            )
        parts.append(slice(start, end))
    return parts


def _as_batch(item: Any, i: int) -> Mapping[str, Any]:
    """One item of an iterable as a batch: as it is, or of one example."""
    if not isinstance(item, Mapping):
        row = _tensor("input_ids", item)
        return {"input_ids": row if row.ndim == 2 else row[None]}
    if "role" in item:
        raise EntangleError("texts must be a list of conversations, but one conversation arrived: pass [conversation]")
    ids = item.get("input_ids", next(iter(item.values()), None))
    if isinstance(ids, str) or ids is None:
        raise EntangleError(
            f"item {i} holds no tokens but {', '.join(map(repr, item))}: pass the column of texts, dataset['text'], or "
            "tokenise it first"
        )
    if "input_ids" in item and _ndim(ids) == 1:
        return {name: [value] for name, value in item.items()}
    return item


def _ndim(value: Any) -> int:
    if isinstance(value, list | tuple):
        return 1 + (_ndim(value[0]) if len(value) else 0)
    return int(getattr(value, "ndim", 0))


def _rows(name: str, value: Any) -> list[Tensor]:
    if isinstance(value, list | tuple):
        return [_tensor(name, row) for row in value]
    tensor = _tensor(name, value)
    if not tensor.ndim:
        raise EntangleError(f"{name} must have examples along its first axis, but is one number: leave it out")
    return list(tensor.unbind())


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise EntangleError(f"{name} must be numbers, but is {value!r:.60}: leave it out, or tokenise it") from error
