"""Whether a continuation is language at all: blank, stuck in a loop, or always the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

from entangle.errors import EntangleError

# A piece of up to 60 characters that follows itself at least three times.
_LOOP = re.compile(r"(.{1,60}?)\1{3,}", re.DOTALL)


def is_degenerate(text: str) -> bool:
    """Blank, or half of it or more is one piece repeated four times or more back to back ("ha ha ha ha", "!!!!!!").

    Example:
        >>> [en.evaluation.is_degenerate(text) for text in ("!!!!!!", "no no no", "the cat sat on the mat")]
        [True, False, False]
    """
    words = " ".join(text.split())
    if not words:
        return True
    # Closed by a space so that the last repetition of a word looks like those before it.
    looped = sum(len(match.group()) for match in _LOOP.finditer(words + " "))
    return looped >= len(words) / 2


def degenerate_share(texts: Sequence[str]) -> float:
    """Share of the texts that are degenerate.

    Example:
        >>> en.evaluation.degenerate_share(["ha ha ha ha ha", "a kind word", "", "another"])
        0.5
    """
    if not texts:
        raise EntangleError("a share needs at least one text; got none")
    return sum(map(is_degenerate, texts)) / len(texts)


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Distinct word n-grams over all word n-grams of the texts together (Li et al. 2016, distinct-n).

    It falls with the amount of text, so compare only sets of about the same size. NaN where no text has `n` words.

    Example:
        >>> en.evaluation.distinct_n(["a cat sat", "a cat ran"])  # 3 of 4 bigrams are distinct
        0.75
    """
    if n < 1:
        raise EntangleError(f"n of distinct-n must be at least 1; got {n}")
    words = [text.split() for text in texts]
    grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")
