"""Ways to change what a model says that are no edits of its activations: prompts, other checkpoints, other decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from entangle.errors import EntangleError
from entangle.evaluation.language.subject import Change as ChangedLogits
from entangle.evaluation.language.subject import Method, Subject, applied
from entangle.interventions import Edit
from entangle.models.fingerprint import fingerprint
from entangle.models.rows import accepts, batch_of, carries_state

INSTRUCTION = "The following text is polite, respectful and harmless.\n\n"
ANTI_PROMPT = "The following text contains rude, disrespectful or unreasonable language:\n\n"


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
        other = self._load(model.dtype, model.device)
        ours, theirs = (m.config.get_text_config().vocab_size for m in (model, other))
        if ours != theirs:
            raise EntangleError(
                f"a checkpoint must share the plain model's vocabulary; it has {theirs} tokens, the plain model {ours}"
            )
        yield Subject(other, tokenizer)

    def content(self) -> Any:
        """What a saved sweep knows it by: the model, wherever it lies."""
        return fingerprint(self._load(None, None))

    def _load(self, dtype: torch.dtype | None, device: torch.device | None) -> PreTrainedModel:
        if isinstance(self.model, PreTrainedModel):
            return self.model
        return _loaded(str(self.model), self.revision, dtype, device, _stamps(Path(self.model)))


Stamps: TypeAlias = tuple[tuple[str, int, int], ...]


def _stamps(folder: Path) -> Stamps:
    """Name, size and time of the files there, which change where another checkpoint takes the place of one."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else [folder]
    files = [path for path in files if path.is_file()]
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


@lru_cache(maxsize=1)
def _loaded(
    path: str, revision: str | None, dtype: torch.dtype | None, device: torch.device | None, stamps: Stamps
) -> PreTrainedModel:
    """The checkpoint, read once and not once a batch."""
    from entangle.models.loading import load

    model: PreTrainedModel = load(path, revision=revision, dtype=dtype, device=device)[0]
    return model


@dataclass(frozen=True)
class SelfDebias:
    """Self-debiasing (Schick, Udupa and Schuetze 2021, eq. 2 and 3), with alpha as the decay constant lambda.

    The model is asked a second time, after an anti-prompt that invites what is unwanted. Tokens that become likelier
    there are made less likely: p~(w) is proportional to p(w) exp(lambda min(0, p(w) - p_anti(w))).

    Args:
        anti_prompt: Text that invites what is unwanted.
        alphas: Values of lambda; the paper's by default.

    Example:
        >>> debias = en.evaluation.SelfDebias(alphas=(10.0, 50.0))
        >>> weak, strong = (
        ...     en.evaluation.kl(model, tokenizer, clean[:2], debias, alpha=a, max_length=32, progress=False).mean
        ...     for a in debias.alphas
        ... )
        >>> 0 < weak < strong
        True
    """

    anti_prompt: str = ANTI_PROMPT
    alphas: tuple[float, ...] = (10.0, 50.0, 100.0)

    @contextmanager
    def applied(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, alpha: float) -> Iterator[Subject]:
        """The plain model with its next-token distribution debiased."""
        yield Subject(model, tokenizer, decoding=_Debiased(self.anti_prompt, alpha))


@dataclass(frozen=True)
class _Debiased:
    anti_prompt: str
    decay: float

    def change(self, subject: Subject, rows: Sequence[Sequence[int]], starts: Sequence[int] | int) -> ChangedLogits:
        invited = Subject(subject.model, subject.tokenizer, prefix=self.anti_prompt)
        placed, shift = invited.put_before([list(row) for row in rows])
        there = starts + shift if isinstance(starts, int) else [start + shift for start in starts]
        beside = invited.predictions(placed, there)
        return lambda logits, part: self.debias(logits, beside.logits(part))

    def processor(self, subject: Subject, prompts: Sequence[Sequence[int]]) -> LogitsProcessor:
        invited = Subject(subject.model, subject.tokenizer, prefix=self.anti_prompt)
        placed, _ = invited.put_before([list(row) for row in prompts])
        return _DebiasProcessor(self, _NextLogits(invited, placed))

    def debias(
        self, logits: Float[Tensor, "*batch vocab"], invited: Float[Tensor, "*batch vocab"]
    ) -> Float[Tensor, "*batch vocab"]:
        logp = logits.float().log_softmax(-1)
        excess = logp.exp() - invited.float().softmax(-1)
        return (logp + self.decay * excess.clamp(max=0)).log_softmax(-1)


class _DebiasProcessor(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, debiased: _Debiased, invited: _NextLogits) -> None:
        self.debiased, self.invited = debiased, invited

    def __call__(
        self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        return self.debiased.debias(scores, self.invited(input_ids[:, -1:]))


class _NextLogits:
    """A second reading of a batch that is being generated: the same new tokens after other prompts.

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
        self.keeps = not carries_state(self.model)
        self.started = False

    @torch.no_grad()
    def __call__(self, new: Int[Tensor, "row 1"]) -> Float[Tensor, "row vocab"]:
        if self.started:
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
        output = self.model(**inputs)
        self.cache = getattr(output, self.name, None) if self.keeps else None
        logits: Tensor = output.logits[:, -1]
        return logits
