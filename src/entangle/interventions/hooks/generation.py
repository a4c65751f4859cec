"""What one call of `generate` is about to compute, as it says itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from entangle.interventions.hooks.states import states


@dataclass(frozen=True, eq=False)
class Announcement:
    """The inputs of the pass that `generate` runs next.

    Attributes:
        columns: Of the text so far, or of the tokens given anew, as the model's own `prepare_inputs_for_generation`
            was handed them.
        size: Tokens a row that the pass computes.
        mask: Of the text so far; `None` where there is none.
    """

    columns: int
    size: int
    mask: Tensor | None


@dataclass(eq=False)
class Generation:
    """What was given to `generate`, and what it says of each pass.

    Attributes:
        speaker: The model whose `generate` it is.
        columns: Of the padded prompts.
        cached: Columns in a cache that it was given.
        held: Those of them of which the prompts' ids say nothing.
        embedded: Columns given as embeddings, which the ids of later passes do not hold.
        others: Whether other texts with masks of their own, such as negative prompts, run beside them.
        ids: Of the prompts, where they were given.
        texts: How many prompts there are; `None` where neither ids nor embeddings were given.
        spoke: Whether it has announced a pass yet.
        virtual: Columns before the text, in the cache or computed; `None` before the first pass.
        first: Tokens a row in the first pass without a cache, where no pass is announced.
        text: Columns of the text so far.
    """

    speaker: nn.Module
    columns: int
    cached: int
    held: int
    embedded: int
    others: bool
    ids: Tensor | None
    texts: int | None = None
    spoke: bool = False
    virtual: int | None = None
    first: int | None = None
    text: int = 0
    _next: Announcement | None = field(default=None, repr=False)

    @classmethod
    def of(cls, speaker: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], outer: Generation | None) -> Self:
        """From the arguments of `generate`, called within another `generate` or not."""
        ids = next((x for x in (*args[:1], *map(kwargs.get, ("inputs", "input_ids", "input"))) if _is_ids(x)), None)
        embeds = kwargs.get("inputs_embeds")
        width = embeds.shape[1] if isinstance(embeds, Tensor) else 1 if ids is None else ids.shape[1]
        mask = kwargs.get("attention_mask")
        cached = max((state.length or 0 for state in states(kwargs)), default=0)
        # The ids of a text whose beginning is cached are all of them, or the new ones: then the mask is longer.
        held = cached if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == width + cached else 0
        columns = width + held
        if outer is not None and ids is not None and outer.ids is not None and _continues(ids, outer.ids):
            columns = outer.columns  # the model drafts for itself
        embedded = width if isinstance(embeds, Tensor) and (ids is None or not ids.shape[1]) else 0
        others = any(name.endswith("_attention_mask") for name in kwargs)
        texts = len(embeds) if isinstance(embeds, Tensor) else None if ids is None else len(ids)
        return cls(speaker, columns, cached, held, embedded, others, ids, texts)

    def hear(self, inputs: Any, input_ids: Any = None, *_: Any, **kwargs: Any) -> None:
        """Note what the speaker's `prepare_inputs_for_generation` made of the text so far, and of what else it got."""
        size = _size(inputs)
        if isinstance(input_ids, Tensor) and size is not None:
            mask = kwargs.get("attention_mask")
            two = isinstance(mask, Tensor) and mask.ndim == 2
            self._next = Announcement(input_ids.shape[1], size, mask if two else None)
            self.spoke = True

    def take(self, size: int) -> Announcement | None:
        """The announcement of a pass of that size, if it is the one that was announced."""
        if self._next is None or self._next.size != size:
            return None
        announcement, self._next = self._next, None
        return announcement

    def end(self, announcement: Announcement, before: int | None, *, counted: bool) -> int | None:
        """The columns of the text after a pass that was announced.

        Args:
            announcement: The announcement.
            before: Columns in the cache before the pass; `None` where nobody knows.
            counted: Whether the cache says so itself; else they were counted, and the text may have been rewound.

        Returns:
            The columns; `None` where the sources disagree.
        """
        n_columns = announcement.columns + self.embedded + self.held
        if before is None:
            start = n_columns - announcement.size
            return n_columns if start <= 0 or not self.text or start == self.text else None
        if self.virtual is None:
            self.virtual = 0 if self.cached else before + announcement.size - n_columns
        end = before + announcement.size - self.virtual
        if self.virtual < 0:
            return None
        if not counted and not self.virtual and end > n_columns > announcement.size:
            return n_columns
        if end in (n_columns, announcement.columns):
            return end
        return (
            end if announcement.columns == announcement.size and end <= self.columns else None
        )  # a chunk of the prompt


def _is_ids(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and not value.is_floating_point()


def _continues(ids: Tensor, text: Tensor) -> bool:
    return (
        ids.shape[0] == text.shape[0] and ids.shape[1] >= text.shape[1] and torch.equal(ids[:, : text.shape[1]], text)
    )


def _size(inputs: Any) -> int | None:
    if not isinstance(inputs, Mapping):
        return None
    tensors = (inputs.get(name) for name in ("input_ids", "inputs_embeds"))
    sizes = [x.shape[1] for x in tensors if isinstance(x, Tensor)]
    return max(sizes, default=None)
