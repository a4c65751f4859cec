"""Pairs of a preferred text and one that is not, for what is trained after pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from entangle.composition.recipe.sources import digest, one_path, paths
from entangle.data import corpus, load_pairs, load_texts
from entangle.errors import EntangleError
from entangle.storage.digest import digest as content_digest
from entangle.study.question import check_seed

Pair = tuple[str, str]
LEAST = 2  # of pairs on either side of the split: intervals need two


@dataclass(frozen=True)
class Pairs:
    """Where pairs come from: a file or data set, or else the built-in corpus.

    Attributes:
        file: Path or HuggingFace data set id; none for quarrels of the built-in corpus that end politely or rudely.
        chosen: The column of the preferred text.
        rejected: The column of the other.
        where: Keep only rows whose columns have these values.
        without: Files whose texts are left out, whichever side they are.
        number: How many pairs to generate; for files, how many to draw (0: all).
        held_out: Of them, so many are never trained on.
        seed: Of what is drawn and of what is held out.

    Example:
        >>> pairs = en.composition.Pairs(number=300, held_out=100).load()  # of the built-in corpus
        >>> len(pairs.held_out), pairs.held_out[0][0] != pairs.held_out[0][1]
        (100, True)
    """

    file: str = ""
    chosen: str = "chosen"
    rejected: str = "rejected"
    where: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    number: int = 0
    held_out: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.held_out < LEAST:
            raise EntangleError(f"held_out of pairs is a number of at least {LEAST}, not {self.held_out}")
        if self.number < 0 or not (self.file or self.number):
            raise EntangleError("pairs need a file, or a number of pairs of the built-in corpus")
        check_seed(self.seed)
        if self.chosen == self.rejected:
            raise EntangleError(f"chosen and rejected of pairs are two columns, not both {self.chosen!r}")

    def load(self, root: Path = Path()) -> PreferencePairs:
        """The pairs, each text on one side of the split alone; relative paths are taken from `root`.

        Raises:
            EntangleError: A pair without either side, or too few of them.
        """
        if not self.file:
            pairs = corpus.pairs(self.number, seed=self.seed)
        else:
            path = one_path(self.file, root)
            pairs = load_pairs(path, chosen=self.chosen, rejected=self.rejected, where=self.where)
            left_out = {digest(text) for name in paths(self.without, root) for text in load_texts(name)}
            pairs = [pair for pair in pairs if not left_out & {digest(text) for text in pair}]
        order = np.random.default_rng(self.seed).permutation(len(pairs))[: self.number or None]
        held_out = [pairs[i] for i in order[: self.held_out]]
        known = {digest(text) for pair in held_out for text in pair}
        rest = [pairs[i] for i in order[self.held_out :]]
        trained = [pair for pair in rest if not known & {digest(text) for text in pair}]
        return _enough(PreferencePairs(trained, held_out))


@dataclass(frozen=True)
class PreferencePairs:
    """Pairs (preferred, not preferred).

    Attributes:
        trained: To train on.
        held_out: To measure alone.

    Example:
        >>> pair = ("you are kind", "you are daft")
        >>> pairs = en.composition.PreferencePairs(trained=[pair] * 3, held_out=[pair] * 2)
        >>> len(pairs.texts()), len(pairs.within(tokenizer, max_length=32).trained)
        (6, 3)
    """

    trained: Sequence[Pair]
    held_out: Sequence[Pair]

    def within(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> PreferencePairs:
        """Those whose sides both have no more tokens than this.

        Raises:
            EntangleError: Where too few are left.
        """
        return _enough(
            PreferencePairs(*(_short(pairs, tokenizer, max_length) for pairs in (self.trained, self.held_out))),
            f" of no more than {max_length} tokens a side",
        )

    def texts(self) -> list[str]:
        """Both sides of all pairs that are trained on."""
        return [text for pair in self.trained for text in pair]

    def key(self) -> str:
        """A hash of the pairs."""
        return content_digest([list(self.trained), list(self.held_out)])


def _short(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Pair]:
    if not pairs:
        return []
    chosen, rejected = (
        tokenizer(list(side), add_special_tokens=False, verbose=False)["input_ids"] for side in zip(*pairs, strict=True)
    )
    return [pairs[i] for i, rows in enumerate(zip(chosen, rejected, strict=True)) if max(map(len, rows)) <= max_length]


def _enough(pairs: PreferencePairs, what: str = "") -> PreferencePairs:
    if min(len(pairs.trained), len(pairs.held_out)) < LEAST:
        raise EntangleError(
            f"{len(pairs.trained)} pairs{what} to train on and {len(pairs.held_out)} held out are too few, at least "
            f"{LEAST} of each are needed: give more, or hold out fewer"
        )
    return pairs
