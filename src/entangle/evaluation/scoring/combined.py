"""Several scorers as one: the harmonic mean, which is small where any of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from entangle.data import AnyPrompt
from entangle.errors import EntangleError
from entangle.evaluation.scoring.scorers import Scorer, score, scorer_name


class HarmonicMeanScorer:
    """The harmonic mean of several scores of one answer; 0 where any of them is 0.

    AxBench (Wu et al. 2025, arXiv 2501.17148) judges steering so: the concept is there, the instruction is followed,
    the text is fluent, each on 0 to 2. Here each is on 0 to 1, and so is the mean, which is half of theirs.

    Args:
        scorers: Scorers by name; each sees the prompt if it looks at it.
        name: What tables call it.

    Raises:
        EntangleError: Fewer than two scorers.

    Example:
        >>> both = en.evaluation.HarmonicMeanScorer(
        ...     {"short": en.evaluation.LengthScorer(4), "English": en.evaluation.LanguageScorer("en")}
        ... )
        >>> both(["This is", "Das ist"])
        array([0.667, 0.   ])
    """

    def __init__(self, scorers: Mapping[str, Scorer], name: str | None = None) -> None:
        if not isinstance(scorers, Mapping):
            raise EntangleError(
                f'a mean needs scorers by name, such as {{"fluency": scorer}}; got a {type(scorers).__name__}'
            )
        if len(scorers) < 2:
            raise EntangleError(f"a mean needs two scorers or more; got {len(scorers)}")
        self.scorers = dict(scorers)
        for scorer in self.scorers.values():
            scorer_name(scorer)  # each must have one
        self._name = name

    @property
    def name(self) -> str:
        """What it was called, or what it is a mean of."""
        return self._name or f"harmonic mean of {', '.join(self.scorers)}"

    def content(self) -> Any:
        """What decides its scores: those of its scorers."""
        return self.scorers

    def __call__(self, texts: Sequence[str], prompts: Sequence[AnyPrompt] | None = None) -> Float[np.ndarray, " text"]:
        """The mean for each text."""
        return _harmonic(np.stack(list(self.parts(texts, prompts).values())))

    def parts(
        self, texts: Sequence[str], prompts: Sequence[AnyPrompt] | None = None
    ) -> dict[str, Float[np.ndarray, " text"]]:
        """What each scorer says.

        Example:
            >>> parts = {"short": en.evaluation.LengthScorer(4), "English": en.evaluation.LanguageScorer("en")}
            >>> en.evaluation.HarmonicMeanScorer(parts).parts(["This is"])
            {'short': array([0.5]), 'English': array([1.])}
        """
        return {name: score(scorer, texts, prompts) for name, scorer in self.scorers.items()}


def _harmonic(scores: Float[np.ndarray, "scorer text"]) -> Float[np.ndarray, " text"]:
    positive = (scores > 0).all(0)
    mean = len(scores) / np.where(scores > 0, 1 / np.where(scores > 0, scores, 1), 1).sum(0)
    return np.where(positive, mean, 0.0)
