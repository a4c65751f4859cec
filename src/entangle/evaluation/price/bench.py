"""Measuring one condition of a sweep: every method on the same prompts and documents, in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.data import AnyPrompt
from entangle.evaluation.language.fluency import continuation_nats
from entangle.evaluation.language.generation import Sampling, prompt_rows, sample
from entangle.evaluation.language.reading import PlainReading
from entangle.evaluation.language.subject import Method, NotFiniteError, Subject, applied
from entangle.evaluation.price.conditions import Condition, Location
from entangle.interventions import Edit

Change: TypeAlias = Method | Edit | Sequence[Edit]


@dataclass(frozen=True)
class Bench:
    """What every condition of a sweep is measured on.

    Args:
        model: The plain model.
        tokenizer: Its tokenizer.
        prompts: Prompts to continue.
        sampling: How.
        documents: The plain model's reading of the documents.
        packed: Its reading of the same documents end to end, in chunks.
        progress: Show progress bars.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[AnyPrompt]
    sampling: Sampling
    documents: PlainReading
    packed: PlainReading | None = None
    progress: bool = True

    def measure(self, name: str, change: Change, alpha: float, digest: str) -> Condition:
        """Continuations, language and fluency of a changed model; of one whose logits are not finite, the error."""
        condition = Condition(name, alpha, digest, [], None, places=places(change))
        try:
            with applied(change, self.model, self.tokenizer, alpha) as subject:
                continuations = sample(subject, self.prompts, self.sampling, progress=self.progress)
            return replace(
                condition,
                continuations=continuations,
                fluency=self._fluency(continuations),
                shift=self.documents.shift(change, alpha=alpha, progress=self.progress),
                packed=None if self.packed is None else self.packed.shift(change, alpha=alpha, progress=self.progress),
            )
        except NotFiniteError as error:
            return replace(condition, error=str(error))

    def _fluency(self, continuations: list[list[str]]) -> tuple[list[list[float]], list[list[int]]]:
        plain = Subject(self.model, self.tokenizer)
        rows = prompt_rows(plain, self.prompts, self.sampling)
        at_once = {"batch_tokens": self.documents.batch_tokens, "logits": self.documents.logits}
        nats, tokens = continuation_nats(plain, rows, continuations, **at_once, progress=self.progress)
        return nats.tolist(), tokens.tolist()


def places(change: Any) -> list[Location]:
    """Site, layer and head of everything an edit touches; nothing for a method that is no edit of activations."""
    inner = getattr(change, "edit", change)  # `AtStrengths` and such
    edits = inner if isinstance(inner, Sequence) else [inner]
    forms = [form for edit in edits if hasattr(edit, "forms") for form in edit.forms()]
    return [(form.site, form.layer, form.head) for form in forms]
