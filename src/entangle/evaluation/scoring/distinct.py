"""How little a text repeats itself, as a scorer: deterministic, and no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from entangle.errors import EntangleError
from entangle.evaluation.language.quality import distinct_n


@dataclass(frozen=True)
class DistinctScorer:
    """The share of a text's word n-grams that are distinct (Li et al. 2016, distinct-n, of each text by itself).

    A text without n words repeats nothing and scores 1.

    Args:
        n: Words in a row.

    Example:
        >>> en.evaluation.DistinctScorer()(["the cat sat", "ha ha ha ha", "no"])
        array([1.   , 0.333, 1.   ])
    """

    n: int = 2

    def __post_init__(self) -> None:
        if self.n < 1:
            raise EntangleError(f"n of distinct-n must be at least 1; got {self.n}")

    @property
    def name(self) -> str:
        """`distinct-2` and so on."""
        return f"distinct-{self.n}"

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """The share of each text."""
        shares = [distinct_n([text], self.n) if len(text.split()) >= self.n else 1.0 for text in texts]
        return np.array(shares, dtype=np.float64)
