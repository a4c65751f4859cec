"""Next-token logits that are mixed of several readings of one text: by other models, or after other words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from entangle.errors import EntangleError
from entangle.evaluation.language.subject import Change, Subject
from entangle.models.loading.held import is_bridged
from entangle.models.rows import accepts, batch_of, carries_state, context_length
from entangle.models.trace import evaluating

Mix: TypeAlias = Callable[..., Float[Tensor, "*batch vocab"]]
"""Logits of the plain reading, then of each other one -> logits."""


@dataclass(frozen=True)
class Reader:
    """Who else reads the text.

    Attributes:
        model: Another model; None for the plain one.
        prefix: What is put before every prompt and document for it; in conversations, where `Subject.prefix` goes.
    """

    model: PreTrainedModel | None = None
    prefix: str = ""

    def beside(self, plain: Subject) -> Subject:
        """This reader of the plain subject's texts."""
        model = plain.model if self.model is None else self.model
        return Subject(model, plain.tokenizer, prefix=self.prefix, placing=plain.placing)


@dataclass(frozen=True)
class Mixed:
    """A change of next-token logits by those of other readers.

    Attributes:
        readers: The others.
        mix: What is made of the plain logits and theirs.
    """

    readers: tuple[Reader, ...]
    mix: Mix

    def change(self, subject: Subject, rows: Sequence[Sequence[int]], starts: Sequence[int] | int) -> Change:
        """For given text."""
        readings = []
        for reader in self.readers:
            other = reader.beside(subject)
            placed, shift = other.put_before([list(row) for row in rows])
            readings.append(other.predictions(placed, _moved(starts, shift, len(rows))))
        return lambda logits, part: self.mix(logits, *(reading.logits(part) for reading in readings))

    def processor(self, subject: Subject, prompts: Sequence[Sequence[int]]) -> LogitsProcessor:
        """For generation."""
        others = []
        for reader in self.readers:
            other = reader.beside(subject)
            others.append(NextLogits(other, other.put_before([list(row) for row in prompts])[0]))
        return _MixProcessor(self.mix, others)


def _moved(starts: Sequence[int] | int, shift: Sequence[int] | int, n_rows: int) -> Sequence[int] | int:
    """Positions of rows, each moved."""
    if isinstance(starts, int) and isinstance(shift, int):
        return starts + shift
    every, by = ([each] * n_rows if isinstance(each, int) else each for each in (starts, shift))
    return [start + moved for start, moved in zip(every, by, strict=True)]


class _MixProcessor(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, mix: Mix, others: Sequence[NextLogits]) -> None:
        self.mix, self.others = mix, others

    def __call__(
        self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        return self.mix(scores, *(other(input_ids[:, -1:]) for other in self.others))


class NextLogits:
    """A second reading of a batch that is being generated: the same new tokens after other prompts, or by another
    model.

    Keeps a cache of keys and values where the model gives one; reads everything anew where it does not, or where it
    carries a state instead.
    """

    def __init__(self, subject: Subject, rows: Sequence[Sequence[int]]) -> None:
        self.model = subject.model
        batch = batch_of(subject.model, subject.tokenizer, rows, side="left")
        self.ids, self.mask = batch["input_ids"], batch["attention_mask"]
        self.positions = batch.get("position_ids")
        self.cache: Any = None
        self.name = "cache" if accepts(self.model, "cache") else "past_key_values"  # as of transformers 5.24, or before
        self.context = context_length(subject.model, subject.tokenizer)
        self.longest = max(map(len, rows))
        self.keeps = not (carries_state(self.model) or is_bridged(self.model))
        self.started = False

    @torch.no_grad()
    def __call__(self, new: Int[Tensor, "row 1"]) -> Float[Tensor, "row vocab"]:
        """Logits of the token after `new`; the first call takes the prompts as they are.

        Raises:
            EntangleError: No room is left in the context.
        """
        if self.started:
            self.longest += 1
            if self.longest > self.context:  # at positions that it never saw it may go on without a word
                raise EntangleError(
                    "a second reading (after an anti-prompt, or by another model) and what is generated are longer "
                    f"than its context of {self.context} tokens: shorten the prompts or the anti-prompt, or lower "
                    "max_new_tokens"
                )
            self.ids = torch.cat([self.ids, new], 1)
            self.mask = torch.cat([self.mask, torch.ones_like(new)], 1)
            if self.positions is not None:
                self.positions = torch.cat([self.positions, self.positions[:, -1:] + 1], 1)
        self.started = True
        unread = slice(-1, None) if self.cache is not None else slice(None)
        inputs = {"input_ids": self.ids[:, unread], "attention_mask": self.mask, "use_cache": self.keeps}
        if self.positions is not None:
            inputs["position_ids"] = self.positions[:, unread]
        if self.cache is not None:
            inputs[self.name] = self.cache
        with evaluating(self.model):
            output = self.model(**inputs)
        self.cache = getattr(output, self.name, None) if self.keeps else None
        logits: Tensor = output.logits[:, -1]
        return logits
