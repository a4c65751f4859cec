"""Texts with a label 0 or 1 each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from entangle.errors import EntangleError


def texts_of(texts: Iterable[Any], what: str = "text") -> list[str]:
    """Texts as a list, each of them one that can be written and read.

    Args:
        texts: Any number of strings; empty ones pass.
        what: What each is called in an error, before its number.

    Raises:
        EntangleError: One line that names the first that is no string, or holds half a character.

    Example:
        >>> en.data.texts_of(("a gem", "a turnip"))
        ['a gem', 'a turnip']
        >>> en.data.texts_of(["a gem", 3])
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: texts must be strings, but text 1 is a int: leave it out
    """
    rows = in_order(texts, what)
    for i, text in enumerate(rows):
        if not isinstance(text, str):
            raise EntangleError(f"{what}s must be strings, but {what} {i} is a {type(text).__name__}: leave it out")
        refuse_half_characters(text, f"{what} {i}")
    return rows


def in_order(texts: Iterable[Any], what: str = "text") -> list[Any]:
    """Texts as a list, whatever they are; refused where going over them gives something else, or in any order.

    Args:
        texts: Any number of them.
        what: What each is called in an error.

    Raises:
        EntangleError: One string, a table or mapping (its names would be read), or a set (its order is by chance).

    Example:
        >>> en.data.in_order(("b", "a"))
        ['b', 'a']
        >>> en.data.in_order({"b", "a"})
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: texts must be in an order, but a set has none: pass a list
    """
    if isinstance(texts, str | bytes):
        kind = "string" if isinstance(texts, str) else "bytes"
        raise EntangleError(f"{what}s must be a list of strings, but one {kind} arrived: pass [{what}]")
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):
        raise EntangleError(f"{what}s must be a list, but a {type(texts).__name__} arrived: pass the column with them")
    if isinstance(texts, Set):
        raise EntangleError(f"{what}s must be in an order, but a {type(texts).__name__} has none: pass a list")
    if not isinstance(texts, Iterable):
        raise EntangleError(f"{what}s must be a list of strings, but a {type(texts).__name__} arrived")
    return list(texts)


def refuse_half_characters(text: str, place: str) -> None:
    r"""Refuse a text with a lone surrogate: half of a character, which no tokenizer, file or hash can take.

    Args:
        text: A text.
        place: Where it stands.

    Raises:
        EntangleError: One line with the place.

    Example:
        >>> en.data.refuse_half_characters("a useless turnip \U0001f331", "text 0")
        >>> en.data.refuse_half_characters("a useless turnip \ud83c", "text 0")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: text 0 holds half a character ('\ud83c', a lone surrogate, at ...
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EntangleError(
            f"{place} holds half a character ({text[error.start]!a}, a lone surrogate, at {error.start}), as where an "
            "emoji was cut in two: drop the row, or mend it with text.encode(errors='replace').decode()"
        ) from None


@dataclass(frozen=True)
class LabelledTexts:
    """Texts of one binary concept.

    Attributes:
        texts: The texts.
        labels: 0 or 1 for each.
        splits: The `split` each row names (such as train, valid, test), where the data has that column.
        name: What the concept or its file is called.
        sha256: Of texts and labels in order: names the data in reports and caches.
        label_names: What 0 and 1 were called.
        rule: Why the second of them is 1, as the end of a sentence.
        notes: What a reader of the results should know of how the data were read.

    Example:
        >>> data = en.data.corpus.labelled("tense", 64)
        >>> len(data), data.label_names, int(data.labels.sum())
        (64, ('present', 'past'), 32)
    """

    texts: list[str]
    labels: NDArray[np.int64]
    splits: list[str] | None
    name: str
    sha256: str
    label_names: tuple[str, str]
    rule: str = ""
    notes: tuple[str, ...] = ()

    @property
    def positive(self) -> str:
        """What label 1 was called."""
        return self.label_names[1]

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        labels: NDArray[np.int64],
        *,
        name: str,
        label_names: tuple[str, str] = ("0", "1"),
        splits: Sequence[str] | None = None,
        rule: str = "",
        notes: Sequence[str] = (),
    ) -> Self:
        """The same, with the hash computed."""
        digest = hashlib.sha256()
        for text, label in zip(texts, labels.tolist(), strict=True):
            digest.update(f"{len(text)}:{text}={label};".encode(errors="surrogatepass"))
        kept = None if splits is None else list(splits)
        return cls(
            list(texts), labels.astype(np.int64), kept, name, digest.hexdigest(), label_names, rule, tuple(notes)
        )

    def __len__(self) -> int:
        return len(self.texts)
