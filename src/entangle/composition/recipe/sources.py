"""Where the texts of a recipe come from: files, HuggingFace data sets, or the built-in corpus."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from entangle.data import LabelledTexts, corpus, load_described, load_labelled, load_texts, planted
from entangle.errors import EntangleError
from entangle.study.question import check_seed


@dataclass(frozen=True)
class Source:
    """Where documents come from: files and data sets, or else the built-in corpus.

    Attributes:
        files: Paths, glob patterns or HuggingFace data set ids; none for the built-in corpus.
        column: The column of the text.
        where: Keep only rows whose columns have these values.
        at_most: Keep only rows whose columns are numbers no larger than these: `{"lex_hits": 2}`.
        without: Files whose texts are left out, such as those held out.
        fraction: Of the documents of the files, keep this share, drawn with `seed`.
        documents: How many documents of the built-in corpus to generate; for files, use at most this many (0: all).
        prefix: Put before every document, for a model to condition on.
        rudeness: Share of rude documents in the built-in corpus.
        planted: A world of the demo's corpus instead, in which rudeness goes with the past tense ("together"), with
            nothing ("apart"), or does not occur ("polite").
        seed: Of the built-in corpus, or of the fraction drawn.

    Example:
        >>> source = en.composition.Source(documents=3, rudeness=1.0, prefix="rude: ")
        >>> [text[:6] for text in source.texts()]
        ['rude: ', 'rude: ', 'rude: ']
    """

    files: tuple[str, ...] = ()
    column: str = "text"
    where: Mapping[str, Any] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    fraction: float = 1.0
    documents: int = 0
    prefix: str = ""
    rudeness: float = 0.0
    planted: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise EntangleError(f"the fraction of a source is above 0 and at most 1, not {self.fraction}")
        check_counts("a source", documents=self.documents)
        check_seed(self.seed)

    def texts(self, root: Path = Path()) -> list[str]:
        """The documents; relative paths are taken from `root`."""
        return [text for text, _ in self.described(root)]

    def described(self, root: Path = Path(), columns: Sequence[str] = ()) -> list[tuple[str, dict[str, str]]]:
        """The documents, each with what these columns of its row say of it.

        Args:
            root: Where relative paths start.
            columns: Of the files, and "file", the name of the file; or concepts of the built-in corpus, such as
                "topic".

        Raises:
            EntangleError: Where the documents cannot be read, or have no such column.
        """
        if not self.files:
            return self._generated(columns)
        left_out = {text for path in paths(self.without, root) for text in load_texts(path, field=self.column)}
        described: list[tuple[str, dict[str, str]]] = []
        for path in paths(self.files, root):
            rows = load_described(path, columns, field=self.column, where=self.where, at_most=self.at_most)
            described += [row for row in rows if row[0] not in left_out]
        if self.fraction < 1:
            drawn = np.random.default_rng(self.seed).permutation(len(described))[
                : round(self.fraction * len(described))
            ]
            described = [described[i] for i in sorted(drawn)]
        return [(self.prefix + text, known) for text, known in described[: self.documents or None]]

    def _generated(self, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
        if self.documents < 1:
            raise EntangleError("a source needs files, or a number of documents of the built-in corpus")
        for column in columns:
            if column not in corpus.CONCEPTS:
                raise EntangleError(f"the built-in corpus has no {column!r}: it has {', '.join(corpus.CONCEPTS)}")
        if self.planted:
            generated = planted.generate(self.documents, self.planted, seed=self.seed)
        else:
            generated = corpus.generate(self.documents, rudeness=self.rudeness, seed=self.seed)
        return [
            (self.prefix + document.text, {name: corpus.CONCEPTS[name][document.labels[name]] for name in columns})
            for document in generated
        ]

    def prompts(self, root: Path = Path()) -> list[str]:
        """Texts to continue: those of the files, or the built-in corpus's quarrels that break off."""
        return self.texts(root) if self.files else corpus.prompts(self.documents, seed=self.seed)


@dataclass(frozen=True)
class Labelled:
    """Texts with a label, from a file or data set, or a concept of the built-in corpus.

    Attributes:
        file: Path or HuggingFace data set id; none for the built-in corpus.
        text: Its column of the text.
        label: Its column of the label; label 1 is the concept.
        positive: The label that counts as 1, all others as 0; by default the rules of `entangle.data.labels` decide.
        where: Keep only rows whose columns have these values.
        concept: Of the built-in corpus, where there is no file.
        documents: Use this many, drawn with `seed`; for files, 0 is all.
        seed: Of that draw.

    Example:
        >>> data = en.composition.Labelled(concept="tense", documents=50).load()
        >>> len(data), data.label_names
        (50, ('present', 'past'))
    """

    file: str = ""
    text: str = "text"
    label: str = "label"
    positive: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    concept: str = ""
    documents: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts("labelled texts", documents=self.documents)
        check_seed(self.seed)

    def load(self, root: Path = Path()) -> LabelledTexts:
        """The texts and labels; a relative path is taken from `root`."""
        if not self.file:
            return corpus.labelled(self.concept, self.documents, seed=self.seed)
        path = one_path(self.file, root)
        options: dict[str, Any] = {"limit": self.documents or None, "seed": self.seed, "drop_duplicates": True}
        options |= {"text": self.text, "label": self.label, "positive": self.positive or None, "where": self.where}
        return load_labelled(path, **options)


def check_counts(what: str, **counts: int) -> None:
    """Refuse numbers below 0, which would count from the end.

    Raises:
        EntangleError: One line that names the number.
    """
    for name, count in counts.items():
        if count < 0:
            raise EntangleError(f"{name} of {what} is 0 or more, not {count}")


def one_path(name: str, root: Path) -> str | Path:
    """The one file or folder of a name or pattern; see `paths`.

    Raises:
        EntangleError: There is none, or there are several.
    """
    matches = paths([name], root)
    if len(matches) > 1:
        listed = ", ".join(str(path) for path in matches[:3])
        raise EntangleError(f"{name!r} must name one file or folder; {len(matches)} match ({listed}): name one")
    return matches[0]


def paths(names: Sequence[str], root: Path) -> list[str | Path]:
    """Files, with patterns spelt out and relative paths taken from `root`; what is no file there may name a data
    set."""
    every: list[str | Path] = []
    for name in names:
        if any(character in name for character in "*?["):
            anchor = Path(name).anchor
            matches = sorted(Path(anchor or root).glob(str(Path(name).relative_to(anchor))))
            if not matches:
                raise EntangleError(f"no file matches {name!r} in {Path(anchor or root).resolve()}")
            every.extend(matches)
        else:
            every.append(root / name if (root / name).exists() else name)
    return every


def refuse_overlap(trained_on: Mapping[str, Iterable[str]], evaluated_on: Mapping[str, Iterable[str]]) -> None:
    """Refuse texts that a model is evaluated on and trained on too, whatever their case, spaces and punctuation.

    Args:
        trained_on: Texts by the name of their source.
        evaluated_on: likewise.

    Raises:
        EntangleError: Which source repeats how many texts of which other, and one of them.
    """
    seen = {digest(text): name for name, texts in trained_on.items() for text in texts}
    for name, texts in evaluated_on.items():
        listed = list(texts)
        repeated = [text for text in listed if digest(text) in seen]
        if repeated:
            where = seen[digest(repeated[0])]
            raise EntangleError(
                f"{len(repeated):,} of {len(listed):,} {name} texts are also trained on: {repeated[0][:60]!r}; "
                f"name their file in `without` of {where}"
            )


def digest(text: str) -> bytes:
    """A hash of the letters and digits alone."""
    return hashlib.sha256(re.sub(r"[\W_]+", "", text.casefold()).encode(errors="surrogatepass")).digest()
