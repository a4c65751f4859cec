"""The forecast's part of a study: which concepts have texts enough, and what steering each out will cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from entangle.data import LabelledTexts
from entangle.forecast import FEWEST_CLEAN, FEWEST_TEXTS, Forecast, foretell
from entangle.study.steps import StudiedModel
from entangle.study.texts import StudyTexts

LENGTH = 128
"""Tokens of a text that a forecast reads at most."""

Concepts: TypeAlias = Mapping[str, tuple[Sequence[str], Sequence[int]]]


def to_foretell(texts: StudyTexts, studied: StudiedModel) -> tuple[Concepts, list[str]]:
    """The concepts whose price is foretold, and a note on those that have too few texts.

    None where it is not asked for, where there is no clean text, or for a model that generates none.

    Example:
        >>> from entangle.study import Question, StudiedModel, StudyTexts, to_foretell
        >>> studied = StudiedModel(model, tokenizer, en.Atlas(model), "tiny", Question(forecast=True))
        >>> few = {"small": (texts[:40], labels[:40])}  # 20 of each class
        >>> data = StudyTexts.of("concept", texts, labels, concepts=few, clean=clean)
        >>> enough, notes = to_foretell(data, studied)
        >>> list(enough)
        ['concept']
        >>> print(notes[0])
        Too few texts for a forecast of the price: small (at least 32 of each class).
    """
    question = studied.question
    if not (question.forecast and texts.clean and studied.can_generate):
        return {}, []
    every = {question.name: texts.labelled, **texts.concepts}
    enough = {name: rows for name, rows in every.items() if _fewest(rows) >= FEWEST_TEXTS}
    if len(texts.clean) < FEWEST_CLEAN:
        return {}, [f"Too few clean texts for a forecast of the price: {len(texts.clean)} of at least {FEWEST_CLEAN}."]
    small = [name for name in every if name not in enough]
    note = f"Too few texts for a forecast of the price: {', '.join(small)} (at least {FEWEST_TEXTS} of each class)."
    concepts = {name: (list(rows.texts), rows.labels.tolist()) for name, rows in enough.items()}
    return concepts, [note] if small else []


def foretold_of(concepts: Concepts, texts: StudyTexts, studied: StudiedModel) -> Forecast:
    """The forecast; of clean conversations, every token that the chat template writes.

    Raises:
        EntangleError: Whatever `foretell` refuses.
    """
    question = studied.question
    return foretell(
        studied.model,
        studied.tokenizer,
        concepts,
        texts.clean_texts(studied.tokenizer),
        top_k=question.top_k,
        max_length=min(question.max_length or LENGTH, LENGTH),
        seed=question.seed,
        progress=studied.progress,
    )


def _fewest(rows: LabelledTexts) -> int:
    positive = int(rows.labels.sum())
    return min(positive, len(rows.texts) - positive)
