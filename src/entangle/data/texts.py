"""Texts with a label 0 or 1 each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelledTexts:
    """Texts of one binary concept.

    Attributes:
        texts: the texts.
        labels: 0 or 1 for each.
        splits: the `split` each row names (such as train, valid, test), where the data has that column.
        name: what the concept or its file is called.
        sha256: of texts and labels in order: names the data in reports and caches.
        label_names: what 0 and 1 were called.
        rule: why the second of them is 1, as the end of a sentence.
        notes: what a reader of the results should know of how the data were read.
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
