"""On what a model is studied: labelled texts, further concepts, prompts to continue and clean text, however given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from entangle.activations import read_conversations
from entangle.data import (
    AnyPrompt,
    LabelledTexts,
    is_table,
    load_labelled,
    load_prompts,
    prompts_of,
    read_labels,
)
from entangle.errors import EntangleError
from entangle.probes import Split, named_split

LEAST_REPORTED = 10  # of n right answers in n, Wilson's 95 % interval begins at n / (n + 3.84)
LEAST_OF_A_CLASS = 3

Texts: TypeAlias = Sequence[str] | str | PathLike[str]
Labelled: TypeAlias = LabelledTexts | tuple[Sequence[str], Any] | str | PathLike[str]
Concepts: TypeAlias = Mapping[str, Labelled] | Sequence[LabelledTexts]
Prompted: TypeAlias = Sequence[AnyPrompt] | str | PathLike[str]
Prompts: TypeAlias = Prompted | Mapping[str, Prompted]


@dataclass(frozen=True)
class StudyTexts:
    """Every text of a study.

    Attributes:
        labelled: Texts with and without the concept; label 1 is the concept.
        concepts: Further concepts by name.
        prompts: Sets of texts to continue, or conversations to answer, by name; none where steering is not measured.
        clean: Texts on which the price of steering is measured, or conversations.
        sources: Where each labelled file came from, by concept.

    Example:
        >>> from entangle.study import StudyTexts
        >>> others = {"tense": concepts["tense"]}
        >>> data = StudyTexts.of("rudeness", texts, labels, concepts=others, prompts=prompts, clean=clean)
        >>> len(data.labelled), list(data.concepts), data.steers
        (96, ['tense'], True)
    """

    labelled: LabelledTexts
    concepts: Mapping[str, LabelledTexts] = field(default_factory=dict)
    prompts: Mapping[str, Sequence[AnyPrompt]] = field(default_factory=dict)
    clean: Sequence[AnyPrompt] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        texts: Texts | LabelledTexts,
        labels: Any = None,
        *,
        positive: Any = None,
        concepts: Concepts | None = None,
        prompts: Prompts | None = None,
        clean: Prompted | None = None,
    ) -> StudyTexts:
        """Texts as a notebook has them: lists, pairs of lists, files.

        Args:
            name: The concept's name.
            texts: Texts, a file of them with labels, or `LabelledTexts`.
            labels: One label of two kinds per text; None where `texts` come with theirs.
            positive: The label that counts as 1, all others as 0.
            concepts: Further concepts: name -> `(texts, labels)`, `LabelledTexts` or a file; or a list of
                `LabelledTexts`, which have names.
            prompts: Texts to continue or conversations to answer, a file of them, or several sets by name.
            clean: Clean texts, or conversations, or a file of either.

        Raises:
            EntangleError: One line for whatever cannot be used.
        """
        own = labelled(name, texts if labels is None else (texts, labels), positive)
        others = dict(_named(name, concepts))
        sets = prompts if isinstance(prompts, Mapping) else {} if prompts is None else {"prompts": prompts}
        sources = {name: str(texts)} if _is_path(texts) else {}
        sources |= {other: str(data) for other, data in others.items() if _is_path(data)}
        return cls(
            own,
            {other: labelled(other, data) for other, data in others.items()},
            {key: _prompts(of_set, f"the prompts {key!r}") for key, of_set in sets.items()},
            [] if clean is None else _prompts(clean, "clean text"),
            sources,
        )

    @property
    def every_prompt(self) -> list[AnyPrompt]:
        """The prompts of all sets, one after the other."""
        return [prompt for prompts in self.prompts.values() for prompt in prompts]

    @property
    def steers(self) -> bool:
        """Whether there is something to measure the price of steering on."""
        return bool(self.prompts)

    def clean_texts(self, tokenizer: Any) -> list[str]:
        """The clean texts, conversations as the tokenizer's chat template writes them.

        Raises:
            EntangleError: Conversations without a chat template, or such as it refuses.
        """
        return written(self.clean, tokenizer)

    def check(self) -> None:
        """Refuse texts that cannot be studied together, before a model is run on them.

        Raises:
            EntangleError: Prompts without clean text, or too few labelled texts to report on.
        """
        refuse_few(self.labelled)
        if self.steers and not self.clean:
            raise EntangleError(
                "the price of steering needs prompts and clean text; got prompts only: add clean text (--clean FILE)"
            )


def written(documents: Sequence[AnyPrompt], tokenizer: Any) -> list[str]:
    """Documents as text: conversations as the tokenizer's chat template writes them.

    Args:
        documents: Texts, or conversations.
        tokenizer: The model's.

    Raises:
        EntangleError: Conversations without a chat template, or such as it refuses.
    """
    if all(isinstance(document, str) for document in documents):
        return [str(document) for document in documents]
    return list(read_conversations(tokenizer, documents).texts)


def labelled(name: str, data: Any, positive: Any = None) -> LabelledTexts:
    """Labelled texts of one concept, from a file, a pair of lists, or as they are.

    Args:
        name: The concept's name.
        data: The texts.
        positive: The label that counts as 1, all others as 0; by default the rules of `entangle.data` decide.

    Raises:
        EntangleError: Not as many labels as texts, texts that are none or occur twice, or other than two labels.
    """
    if isinstance(data, LabelledTexts):
        return data
    if _is_path(data) or is_table(data):
        return load_labelled(data, positive=positive)
    if not (isinstance(data, Sequence) and len(data) == 2):
        raise EntangleError(
            f"{name} needs texts and labels; got {type(data).__name__}: give (texts, labels), a file, or LabelledTexts"
        )
    texts, labels = list(data[0]), data[1]
    wrong = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if wrong:
        raise EntangleError(f"{name}: text {wrong[0]} is {texts[wrong[0]]!r}: give texts that say something")
    classes = read_labels(labels, len(texts), positive=positive, two=True, what=f"the labels of {name}")
    if len(classes.classes) < 2:
        raise EntangleError(f"the labels of {name} are all {classes.names[0]!r}: two classes are needed")
    seen: dict[str, int] = {}
    for i, text in enumerate(texts):
        if seen.setdefault(text, i) != i:
            raise EntangleError(
                f"{name}: texts {seen[text]} and {i} are the same, and could end up on both sides of a split: keep one"
            )
    return LabelledTexts.of(
        texts,
        classes.codes,
        name=name,
        label_names=(classes.names[0], classes.names[1]),
        rule=classes.rule,
    )


def split_of(data: LabelledTexts, seed: int) -> Split:
    """The data's own parts as fit / select / report where they are named, else a stratified draw.

    Example:
        >>> from entangle.study import split_of
        >>> split = split_of(concepts["tense"], seed=0)
        >>> len(split.fit), len(split.select), len(split.report)
        (38, 14, 12)
    """
    return named_split(data.labels, data.splits, seed=seed)[0]


def split_notes(data: LabelledTexts, seed: int) -> list[str]:
    """What was made of the data's own splits, where that needs saying."""
    note = named_split(data.labels, data.splits, seed=seed)[1]
    return [f"{data.name}: {note}"] if note else []


def refuse_few(data: LabelledTexts) -> None:
    """Refuse data of which too few are left to report on.

    Raises:
        EntangleError: How many there are, and how many it takes.
    """
    reported = data.labels[split_of(data, 0).report.numpy()]
    fewest = min(int((reported == value).sum()) for value in (0, 1))
    if len(reported) < LEAST_REPORTED or fewest < LEAST_OF_A_CLASS:
        raise EntangleError(
            f"{data.name} leaves {len(reported)} texts to report on, {fewest} of the rarer label: give at least "
            f"{LEAST_REPORTED}, {LEAST_OF_A_CLASS} of each label, or {5 * LEAST_REPORTED} in all, of which a fifth is "
            "reported on; of fewer even a faultless probe's 95 % interval would reach below .7"
        )


def _named(name: str, concepts: Concepts | None) -> list[tuple[str, Labelled]]:
    """Each further concept with its name, of which there are no two alike."""
    if concepts is None:
        return []
    pairs: list[tuple[str, Any]] = (
        list(concepts.items()) if isinstance(concepts, Mapping) else [(data.name, data) for data in concepts]
    )
    names = [name, *(other for other, _ in pairs)]
    twice = next((other for other in names if names.count(other) > 1), None)
    if twice is not None:
        raise EntangleError(f"two concepts are named {twice!r}: rename one")
    return pairs


def _texts(listed: list[Any], what: str) -> list[AnyPrompt]:
    wrong = [i for i, text in enumerate(listed) if not isinstance(text, str) or not text.strip()]
    if wrong or not listed:
        got = f"number {wrong[0]} is {listed[wrong[0]]!r}" if wrong else "there are none"
        raise EntangleError(f"{what} must be texts that say something; {got}: give others, or leave them out")
    return listed


def _prompts(prompts: Prompted, what: str) -> list[AnyPrompt]:
    """Prompts of either kind, from a file, a table or a list."""
    read: Any = Path(prompts) if isinstance(prompts, str | PathLike) else prompts
    if isinstance(read, Path) or is_table(read):
        return load_prompts(read)
    listed = list(read)
    if not listed or all(isinstance(prompt, str) for prompt in listed):
        return _texts(listed, what)
    try:
        return prompts_of(listed)
    except EntangleError as error:
        raise EntangleError(f"{what}: {error}") from error


def _is_path(data: Any) -> bool:
    return isinstance(data, str | PathLike)
