"""What takes the plain model's place in a sweep: an edit at strengths of its own, a prompt, another checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.evaluation.language.subject import Method, Subject, applied
from entangle.evaluation.methods.other import OtherModel
from entangle.interventions import Edit, steer

INSTRUCTION = "The following text is polite, respectful and harmless.\n\n"


@dataclass(frozen=True)
class AtStrengths:
    """An edit that is measured at strengths of its own, whatever the others of a sweep are (ablation: once, at 1).

    Args:
        edit: An edit, several, or another method.
        alphas: Its strengths.

    Example:
        >>> ablation = en.evaluation.AtStrengths(en.Ablate(directions.vectors[0], "resid_post", 1), alphas=(0.5, 1.0))
        >>> ablation.alphas  # what a sweep measures it at, whatever the others' strengths are
        (0.5, 1.0)
    """

    edit: Method | Edit | Sequence[Edit]
    alphas: tuple[float, ...] = (1.0,)

    @contextmanager
    def applied(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, alpha: float) -> Iterator[Subject]:
        """The edit at this strength."""
        with applied(self.edit, model, tokenizer, alpha) as subject:
            yield subject


@dataclass(frozen=True)
class Scoped:
    """An edit of some tokens alone, such as those that the model writes itself.

    A document that is read is a prompt, so that "generated" leaves it as it was.

    Args:
        edit: An edit or several.
        tokens: Which tokens, as for `steer`.

    Example:
        >>> scoped = en.evaluation.Scoped(iti, tokens="generated")
        >>> en.evaluation.kl(model, tokenizer, clean[:2], scoped, alpha=8, progress=False).mean
        0.0
    """

    edit: Edit | Sequence[Edit]
    tokens: Any = "generated"

    @contextmanager
    def applied(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, alpha: float) -> Iterator[Subject]:
        """The edit at this strength, on those tokens."""
        with steer(model, self.edit, alpha=alpha, tokens=self.tokens):
            yield Subject(model, tokenizer)


@dataclass(frozen=True)
class Prompt:
    """An instruction before every prompt and document; only what follows it is scored and counted.

    Args:
        text: The instruction.
        alphas: It is there or not, so one strength, 1.

    Example:
        >>> prompt = en.evaluation.Prompt("Be kind: ")
        >>> with prompt.applied(model, tokenizer, alpha=1) as subject:
        ...     subject.before_prompts(["You said"])
        ['Be kind: You said']
    """

    text: str = INSTRUCTION
    alphas: tuple[float, ...] = (1.0,)

    @contextmanager
    def applied(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, alpha: float) -> Iterator[Subject]:
        """The plain model after the instruction."""
        yield Subject(model, tokenizer, prefix=self.text)


@dataclass(frozen=True)
class Checkpoint:
    """Another model in the plain one's place: fine-tuned, baked, or trained on other data.

    Args:
        model: The model, or the directory or hub id of one; it must have the plain model's vocabulary.
        revision: Commit of the hub's repository.
        alphas: It is used or not, so one strength, 1.

    Example:
        >>> baked = en.evaluation.Checkpoint(iti.bake(model, alpha=4))
        >>> hooked, weights = (
        ...     en.evaluation.kl(model, tokenizer, clean[:4], method, alpha=alpha, progress=False).mean
        ...     for method, alpha in ((iti, 4), (baked, 1))
        ... )
        >>> abs(hooked - weights) < 1e-4  # as weights or as hooks, one edit
        True
    """

    model: PreTrainedModel | str | Path
    revision: str | None = None
    alphas: tuple[float, ...] = (1.0,)

    @contextmanager
    def applied(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, alpha: float) -> Iterator[Subject]:
        """The other model, read by the plain model's tokenizer."""
        other = OtherModel(self.model, self.revision).beside(model, tokenizer, "a checkpoint")
        yield Subject(other, tokenizer)

    def content(self) -> Any:
        """What a saved sweep knows it by: the model, wherever it lies."""
        return OtherModel(self.model, self.revision).content()
