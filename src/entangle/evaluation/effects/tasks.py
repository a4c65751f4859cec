"""What is asked of a model before and after: one number for each item of a task, such as a prompt or a text.

A task is anything with `measure(witness)`; it may say `items` (tasks of the same items are resampled together),
`bounds` (between which numbers its values lie) and `unit` (how much of it counts as much as a change from 0 to 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from entangle.data import AnyPrompt, read_labels, texts_of
from entangle.errors import EntangleError
from entangle.evaluation.language.documents import read_rows
from entangle.evaluation.language.generation import Sampling, sample
from entangle.evaluation.language.reading import batches, token_nats
from entangle.evaluation.language.subject import Subject
from entangle.evaluation.language.tasks import question_scores, task_manager
from entangle.evaluation.scoring.calibrating import apart
from entangle.evaluation.scoring.probe import ProbeScorer, last_states
from entangle.evaluation.scoring.scorers import Scorer, score
from entangle.models.readout import LOGITS
from entangle.storage.digest import digest

SHARES = (0.0, 1.0)


class Witness:
    """A model in one condition, as tasks see it; what several tasks ask alike is sampled once.

    Args:
        subject: The model with whatever is around it.
        batch_tokens: Tokens in one batch of reading.
        progress: Show progress bars.

    Example:
        >>> witness = en.evaluation.Witness(en.evaluation.Subject(model, tokenizer), progress=False)
        >>> sampling = en.evaluation.Sampling(max_new_tokens=2)
        >>> witness.said(prompts, sampling) is witness.said(prompts, sampling)
        True
    """

    def __init__(self, subject: Subject, *, batch_tokens: int = 8192, progress: bool = True) -> None:
        self.subject, self.batch_tokens, self.progress = subject, batch_tokens, progress
        self._said: dict[str, list[list[str]]] = {}

    def said(self, prompts: Sequence[Any], sampling: Sampling) -> list[list[str]]:
        """Continuations of each prompt, with the same random numbers in every condition."""
        key = digest([list(prompts), sampling])
        if key not in self._said:
            self._said[key] = sample(self.subject, prompts, sampling, progress=self.progress)
        return self._said[key]

    def states(
        self, texts: Sequence[str], site: str, layer: int, *, max_length: int | None = None
    ) -> Float[Tensor, "text d"]:
        """Activations at the last token of each text."""
        return last_states(self.subject, texts, site, layer, max_length=max_length, batch_tokens=self.batch_tokens)


@runtime_checkable
class Task(Protocol):
    """A behaviour: one number for each item, measured in any condition of a model.

    Example:
        >>> class Vowels:
        ...     def measure(self, witness):
        ...         said = witness.said(prompts, en.evaluation.Sampling(max_new_tokens=4))
        ...         return np.array([sum(c in "aeiou" for c in row[0]) / (1 + len(row[0])) for row in said])
        >>> isinstance(Vowels(), en.evaluation.Task)
        True
    """

    def measure(self, witness: Witness) -> Float[np.ndarray, " item"]: ...  # noqa: D102


@dataclass(frozen=True)
class Said:
    """What a scorer says of the continuations of prompts: the mean score of each prompt's samples.

    Args:
        prompts: Prompts, or conversations that end with the user's turn.
        scorer: Anything that scores texts in [0, 1].
        sampling: How continuations are drawn.
        unit: How much of the score counts as much as a change from 0 to 1.

    Example:
        >>> task = en.evaluation.Said(prompts, en.evaluation.DistinctScorer(), en.evaluation.Sampling(max_new_tokens=4))
        >>> witness = en.evaluation.Witness(en.evaluation.Subject(model, tokenizer), progress=False)
        >>> task.measure(witness).shape
        (8,)
    """

    prompts: Sequence[Any]
    scorer: Scorer
    sampling: Sampling = field(default_factory=Sampling)
    unit: float = 1.0
    bounds = SHARES

    @property
    def items(self) -> str:
        """What the prompts are known by."""
        return digest([list(self.prompts)])

    def measure(self, witness: Witness) -> Float[np.ndarray, " prompt"]:
        """The mean score of each prompt."""
        answers = witness.said(self.prompts, self.sampling)
        flat = [text for row in answers for text in row]
        asked = [prompt for prompt, row in zip(self.prompts, answers, strict=True) for _ in row]
        scores: np.ndarray[Any, Any] = score(self.scorer, flat, asked).reshape(len(self.prompts), -1).mean(1)
        return scores


@dataclass(frozen=True)
class Read:
    """What a probe of another concept reads in the model's activations: the probability of class 1 for each text.

    The probe is the plain model's, whatever is done to the model later. An edit above the probe's place moves nothing.

    Args:
        texts: Texts that the probe was not fitted on.
        probe: A linear probe of two classes with `decision_function`.
        site: Where it reads, at the last token of each text.
        layer: Layer.
        labels: 0 or 1 for each text: then the value is 1 where the probe is right and 0 where it is wrong.
        max_length: Keep at most this many tokens of a text.
        unit: How much of it counts as much as a change from 0 to 1.
        report: How well the probe read these texts in the plain model, where it was fitted here.

    Example:
        >>> task = en.evaluation.Read.fit(model, tokenizer, texts, labels, layer=1)
        >>> task.report["accuracy"] > 0.8, len(task.texts)
        (True, 48)
    """

    texts: Sequence[str]
    probe: Any
    site: str = "resid_post"
    layer: int = 0
    labels: Sequence[int] | None = None
    max_length: int | None = None
    unit: float = 1.0
    report: dict[str, Any] = field(default_factory=dict, compare=False)
    bounds = SHARES

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        texts: Sequence[str],
        labels: Any,
        *,
        site: str = "resid_post",
        layer: int = -1,
        right: bool = False,
        held_out: float = 0.5,
        max_length: int | None = None,
        seed: int = 0,
        positive: Any = None,
        probe: str = "logistic",
    ) -> Self:
        """Fit a probe on some texts of the plain model; the others are the task.

        Args:
            model: The plain model.
            tokenizer: Its tokenizer.
            texts: Labelled texts.
            labels: Two classes of any kind.
            site: Where to read.
            layer: Layer, from the end where it is negative.
            right: Ask whether the probe is right instead of what it reads.
            held_out: Share of the texts, stratified, that are the task; copies of a text are on one side.
            max_length: Keep at most this many tokens of a text.
            seed: Of the split.
            positive: The label that is class 1.
            probe: Which probe, as in `fit_probes`.

        Raises:
            EntangleError: Labels of other than two classes, or too few texts.
        """
        texts = texts_of(texts)
        y = read_labels(labels, len(texts), positive=positive, two=True).codes
        fitted, asked = apart(texts, y, held_out, seed=seed, least=2)
        reader = ProbeScorer.fit(
            *(model, tokenizer, [texts[i] for i in fitted], y[fitted]),
            site=site,
            layer=layer,
            max_length=max_length,
            probe=probe,
            seed=seed,
        )
        asked_texts = [texts[i] for i in asked]
        task = cls(asked_texts, reader.probe, site, reader.layer, y[asked].tolist(), max_length)
        plain = Witness(Subject(model, tokenizer), progress=False)
        task.report.update(accuracy=float(task.measure(plain).mean()), n_fit=len(fitted), n_asked=len(asked))
        return task if right else replace(task, labels=None)

    @property
    def items(self) -> str:
        """What the texts are known by."""
        return digest(list(self.texts))

    def content(self) -> Any:
        """What decides its values."""
        return [list(self.texts), self.probe, self.site, self.layer, self.labels, self.max_length, self.unit]

    def measure(self, witness: Witness) -> Float[np.ndarray, " text"]:
        """Probability of class 1, or whether the probe is right, for each text."""
        states = witness.states(self.texts, self.site, self.layer, max_length=self.max_length)
        logit = torch.as_tensor(np.asarray(self.probe.decision_function(states.numpy())), dtype=torch.float64)
        if self.labels is None:
            probabilities: np.ndarray[Any, Any] = logit.sigmoid().numpy()
            return probabilities
        right: np.ndarray[Any, Any] = (logit > 0).numpy() == np.asarray(self.labels, dtype=bool)
        return right.astype(np.float64)


@dataclass(frozen=True)
class Language:
    """Cross-entropy of clean text: nats per token of each document.

    Args:
        texts: Documents; or conversations, which the chat template writes and an instruction is a system turn of.
        max_length: Keep at most this many tokens of a document.
        unit: How many nats per token count as much as a change of a score from 0 to 1.
        turns: Count only what this role says in conversations, such as "assistant", as in `cross_entropy`.
        chat_template_kwargs: For the chat template.

    Example:
        >>> witness = en.evaluation.Witness(en.evaluation.Subject(model, tokenizer), progress=False)
        >>> en.evaluation.Language(clean[:8]).measure(witness).shape
        (8,)
    """

    texts: Sequence[AnyPrompt]
    max_length: int | None = None
    unit: float = 1.0
    turns: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    @property
    def items(self) -> str:
        """What the documents are known by."""
        return digest(list(self.texts))

    def measure(self, witness: Witness) -> Float[np.ndarray, " document"]:
        """Nats per token of each document."""
        subject = witness.subject
        reading = read_rows(
            *(subject.model, subject.tokenizer, self.texts),
            max_length=self.max_length,
            turns=self.turns,
            chat_template_kwargs=self.chat_template_kwargs,
        )
        per_token = np.zeros(len(reading.rows))
        for batch in batches(reading.rows, subject.model, witness.batch_tokens, LOGITS, witness.progress):
            reader, rows = reading.reader(subject, batch), [reading.rows[i] for i in batch]
            nats = token_nats(reader, *reader.put_before(rows))
            per_token[batch] = [values[reading.measured(i)].mean() for i, values in zip(batch, nats, strict=True)]
        return per_token


@dataclass(frozen=True)
class Harness:
    """A task of lm-evaluation-harness: one of its metrics for each question.

    Args:
        task: Its name, of one task.
        metric: The metric; where the task has one only, that one.
        num_fewshot: Examples before each question; by default the task's own number.
        limit: Questions, the first ones; all by default.
        batch_size: Questions in one batch.
        include_path: A directory with further task definitions.
        seed: Of the few-shot examples.
        unit: How much of the metric counts as much as a change from 0 to 1.

    Example:
        >>> task = en.evaluation.Harness("arc_easy", metric="acc", limit=50)
        >>> task.items == en.evaluation.Harness("arc_easy", metric="acc_norm", limit=50).items  # the same questions
        True
    """

    task: str
    metric: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 16
    include_path: str | Path | None = None
    seed: int = 0
    unit: float = 1.0

    @property
    def items(self) -> str:
        """What the questions are known by."""
        return digest([self.task, self.limit])

    def measure(self, witness: Witness) -> Float[np.ndarray, " question"]:
        """The metric of each question."""
        values = question_scores(
            witness.subject,
            [self.task],
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            batch_size=self.batch_size,
            manager=task_manager([self.task], self.include_path),
            seed=self.seed,
        )
        scores_of = {metric: scores for (_, metric), scores in values.items()}
        if len(scores_of) < len(values):
            raise EntangleError(f"{self.task!r} is a group of tasks; give each of its tasks a name of its own")
        if self.metric is None and len(scores_of) == 1:
            return next(iter(scores_of.values()))
        if self.metric not in scores_of:
            raise EntangleError(f"{self.task!r} has the metrics {', '.join(scores_of)}; give metric= one of them")
        return scores_of[self.metric]
