"""What is measured: a model with whatever is put around it, and the ways of putting it there.

A *method* makes a subject of a model, for as long as a `with` block lasts. An edit is a method; so are a prompt, a
different checkpoint, or a change of the logits (`entangle.evaluation.methods`). Everything measured, whether
sampled text or cross-entropy, is measured on a subject, so that every method is measured alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from entangle.activations import before_conversation
from entangle.data import AnyPrompt
from entangle.errors import EntangleError
from entangle.interventions import Edit
from entangle.models.readout import as_it_is, logit_chunks, states_and_head
from entangle.models.rows import batch_of, context_length, encode, frame
from entangle.models.tokens import bos_id
from entangle.models.trace import evaluating


class NotFiniteError(EntangleError):
    """A model whose logits are not finite: an edit too strong, or a dtype too narrow.

    Example:
        >>> issubclass(en.evaluation.NotFiniteError, en.EntangleError)
        True
    """


def check_finite(logits: Float[Tensor, "*batch vocab"]) -> None:
    """Raise `NotFiniteError` unless every position has a likeliest token; -inf (a forbidden token) is fine."""
    if not bool(torch.isfinite(logits.amax(-1)).all()):
        raise NotFiniteError("the model's logits are not finite; a weaker edit or a wider dtype may keep them so")


Change: TypeAlias = Callable[[Float[Tensor, "token vocab"], slice], Float[Tensor, "token vocab"]]
Placed: TypeAlias = tuple[list[list[int]], Sequence[int] | int]
"""Rows of token ids with a prefix, and by how many positions it moves what is measured: all of them, or each."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says after every token of rows, kept as hidden states; their logits are made when asked for.

    Attributes:
        states: Of each predicted token, row after row.
        head: Makes logits of them.
        targets: The tokens that came.
        counts: Predicted tokens of each row.
        vocabulary: Logits of one token.
        change: What is done to the logits.
    """

    states: Float[Tensor, "token d"]
    head: Callable[[Float[Tensor, "token d"]], Float[Tensor, "token vocab"]]
    targets: Int[Tensor, " token"]
    counts: list[int]
    vocabulary: int
    change: Change | None = None

    def parts(self, logits: int) -> Iterator[slice]:
        """Slices of the tokens whose logits are at most so many numbers, one token or more each."""
        return logit_chunks(len(self.states), self.vocabulary, logits)

    def logits(self, part: slice) -> Float[Tensor, "token vocab"]:
        """The logits of some tokens."""
        logits = self.head(self.states[part])
        return logits if self.change is None else self.change(logits, part)

    @property
    def nbytes(self) -> int:
        """The size of what is kept."""
        return self.states.nbytes


@runtime_checkable
class Decoding(Protocol):
    """A change of next-token logits that is no change of the model."""

    def processor(self, subject: Subject, prompts: Sequence[Sequence[int]]) -> LogitsProcessor:
        """For generation: a processor for a batch of prompts, given as rows of token ids, padded on the left."""
        ...

    def change(self, subject: Subject, rows: Sequence[Sequence[int]], starts: Sequence[int] | int) -> Change:
        """For given text: what changes the logits of some predicted tokens of rows, after position `start` of each."""
        ...


@dataclass(frozen=True)
class Subject:
    """A model as it is measured.

    Args:
        model: A causal language model, with any hooks already on it.
        tokenizer: Its tokenizer.
        prefix: Text put before every prompt and document; it is neither scored nor counted. In a conversation it is
            the system turn, or what the system turn begins with; where the template takes none, the first turn does.
        decoding: A change of its next-token logits.
        placing: For rows that are conversations: rows and a prefix -> the rows with the prefix in its turn, and by how
            many positions that moves what is measured. Other readers of the same rows have it, too.

    Example:
        >>> subject = en.evaluation.Subject(model, tokenizer, prefix="Be kind. ")
        >>> subject.before_prompts(["You said"])
        ['Be kind. You said']
        >>> predictions = subject.predictions([[1, 2, 3], [1, 2]])
        >>> predictions.logits(slice(0, 2)).shape  # [token, vocabulary], of as many tokens as are asked for
        torch.Size([2, 512])
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prefix: str = ""
    decoding: Decoding | None = None
    placing: Callable[[Sequence[list[int]], str], Placed] | None = None

    def before_prompts(
        self, prompts: Sequence[AnyPrompt], chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> list[AnyPrompt]:
        """Prompts after the prefix; a beginning of sequence that a template wrote stays the beginning."""
        if not self.prefix:
            return list(prompts)
        return [self._before(prompt, chat_template_kwargs) for prompt in prompts]

    def _before(self, prompt: AnyPrompt, chat_template_kwargs: Mapping[str, Any] | None) -> AnyPrompt:
        if not isinstance(prompt, str):
            return before_conversation(self.tokenizer, prompt, self.prefix, chat_template_kwargs)
        bos = self.tokenizer.bos_token
        if bos and prompt.startswith(bos):
            return f"{bos}{self.prefix}{prompt.removeprefix(bos)}"
        return self.prefix + prompt

    def put_before(self, rows: Sequence[list[int]]) -> Placed:
        """Documents after the prefix, or conversations with it in its turn, and by how many positions that moves them.

        What the tokenizer's template or a beginning of sequence puts before a document is put before the prefix
        instead. The mark that a chat template begins a turn with is no beginning: the prefix goes before it.

        Raises:
            EntangleError: A prefix that, with a document, is longer than the context.
        """
        if not self.prefix:
            return list(rows), 0
        if self.placing is not None:
            placed, starts = self.placing(rows, self.prefix)
            self._check_room(placed, rows)
            return placed, starts
        opening, begin = list(frame(self.tokenizer).opening), _beginning(self.tokenizer)
        (prefix,) = encode(self.tokenizer, [self.prefix], add_special_tokens=False)
        if opening and all(row[: len(opening)] == opening for row in rows):
            begun = [opening] * len(rows)
        else:
            begun = [[begin] if row[0] == begin else [] for row in rows]
            if (opening or prefix[:1] == [begin]) and not all(begun):  # else rows would move by different lengths
                begun = [[] for _ in rows]
        joined = []
        for row, own in zip(rows, begun, strict=True):
            first = own or opening
            bare = prefix[len(first) :] if first and prefix[: len(first)] == first else prefix
            joined.append([*first, *bare, *row[len(own) :]])
        self._check_room(joined, rows)
        return joined, len(joined[0]) - len(rows[0])

    def _check_room(self, placed: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> None:
        """Refuse documents that with what is put before them are longer than the context."""
        context = context_length(self.model, self.tokenizer)
        longest = max(range(len(placed)), key=lambda i: len(placed[i]))
        if len(placed[longest]) > context:
            raise EntangleError(
                f"the prefix and a document make {len(placed[longest])} tokens, but the context holds {context}; "
                f"pass max_length={context - (len(placed[longest]) - len(rows[longest]))} or less"
            )

    def predictions(self, rows: Sequence[Sequence[int]], starts: Sequence[int] | int = 0) -> Predictions:
        """What comes after each token of rows from position `start` on, but after the last; adds no prefix.

        Args:
            rows: Rows of token ids, read together.
            starts: A position for all rows, or one for each. Below 0, as where an instruction is shorter than what it
                stands in place of, the first prediction stands for those that the row does not have.
        """
        first = [starts] * len(rows) if isinstance(starts, int) else list(starts)
        batch = batch_of(self.model, self.tokenizer, rows)
        with evaluating(self.model):
            states, head = states_and_head(self.model, batch)
        counts = [len(row) - 1 - start for row, start in zip(rows, first, strict=True)]
        places = [torch.arange(start, start + n).clamp(min=0) for start, n in zip(first, counts, strict=True)]
        kept = [states[i, there.to(states.device)] for i, there in enumerate(places)]
        targets = [row[place + 1] for row, there in zip(rows, places, strict=True) for place in there.tolist()]
        change = None if self.decoding is None else self.decoding.change(self, rows, starts)
        vocabulary = states.shape[-1] if head is as_it_is else self.model.config.get_text_config().vocab_size
        return Predictions(
            torch.cat(kept), head, torch.tensor(targets, device=states.device), counts, vocabulary, change
        )


def _beginning(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that begins a sequence, if there is one."""
    try:
        return bos_id(tokenizer)
    except EntangleError:
        return None


@runtime_checkable
class Method(Protocol):
    """A way of changing a model, at a strength.

    Example:
        >>> isinstance(en.evaluation.Prompt(), en.evaluation.Method), isinstance(iti, en.evaluation.Method)
        (True, False)
    """

    def applied(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, alpha: float
    ) -> AbstractContextManager[Subject]:
        """The changed subject, for as long as the block lasts."""
        ...


@contextmanager
def applied(
    method: Method | Edit | Sequence[Edit], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, alpha: float
) -> Iterator[Subject]:
    """The subject that a method, an edit or several edits make of a model; at alpha 0, always the plain model.

    Raises:
        EntangleError: An alpha that is not finite, or a method whose model has another vocabulary.

    Example:
        >>> with en.evaluation.applied(en.evaluation.Prompt("Be kind. "), model, tokenizer, alpha=1) as subject:
        ...     subject.prefix
        'Be kind. '
        >>> with en.evaluation.applied(iti, model, tokenizer, alpha=8) as subject:
        ...     subject.model is model, en.models.is_hooked(model)
        (True, True)
    """
    from entangle.interventions.hooks.steer import steer

    if not math.isfinite(alpha):
        raise EntangleError(f"a strength must be a finite number; got alpha={alpha}")
    if alpha == 0:
        yield Subject(model, tokenizer)
    elif isinstance(method, Method):
        with method.applied(model, tokenizer, alpha) as subject:
            yield subject
    else:
        with steer(model, method, alpha=alpha):
            yield Subject(model, tokenizer)
