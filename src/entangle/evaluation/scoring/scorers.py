"""What a scorer is, and what is done with any of them: checked, cached and compared.

A scorer is anything callable on a list of texts that gives one number in [0, 1] for each (0: clean, 1: toxic) and has a
`name`; a function with a name serves as well. One whose call takes an argument `prompts` sees what each text answers.
"""

from __future__ import annotations

import hashlib
import inspect
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats
from torch.utils.weak import WeakIdKeyDictionary

from entangle.data import AnyPrompt, prompt_key, prompts_of, texts_of
from entangle.errors import EntangleError
from entangle.storage.digest import digest


@runtime_checkable
class Scorer(Protocol):
    """Texts in, scores in [0, 1] out. `name` identifies it, its version and its settings in tables and caches.

    Example:
        >>> class Shouts:
        ...     name = "shouts"
        ...
        ...     def __call__(self, texts):
        ...         return np.array([float(text.isupper()) for text in texts])
        >>> isinstance(Shouts(), en.evaluation.Scorer), Shouts()(["HELLO", "hello"])
        (True, array([1., 0.]))
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]: ...  # noqa: D102


@runtime_checkable
class AnswerScorer(Protocol):
    """A scorer that may see what each text answers: its call takes `prompts`, one a text, or None where there are none.

    Example:
        >>> class Echoes:
        ...     name = "echoes"
        ...
        ...     def __call__(self, texts, prompts=None):
        ...         return np.array([float(text in prompt) for text, prompt in zip(texts, prompts)])
        >>> en.evaluation.sees_prompts(Echoes())
        True
        >>> en.evaluation.score(Echoes(), ["gem", "turnip"], ["Say gem!", "Say nothing!"])
        array([1., 0.])
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    def __call__(  # noqa: D102
        self, texts: Sequence[str], prompts: Sequence[AnyPrompt] | None = None
    ) -> Float[np.ndarray, " text"]: ...


def sees_prompts(scorer: Scorer) -> bool:
    """Whether a scorer looks at the prompt of each text: its call takes an argument called `prompts`.

    Example:
        >>> en.evaluation.sees_prompts(en.LinearToxicityScorer.fit(texts, labels))
        False
    """
    try:
        return "prompts" in inspect.signature(scorer).parameters
    except (TypeError, ValueError):  # something built in, which says nothing of its arguments
        return False


def score(
    scorer: Scorer, texts: Sequence[str], prompts: Sequence[AnyPrompt] | None = None
) -> Float[np.ndarray, " text"]:
    """The scorer's scores, checked; a blank text has nothing in it to be toxic and scores 0.

    Blank continuations are counted beside every toxicity (`entangle.evaluation.is_degenerate`), since a model that says
    nothing has not become polite.

    Args:
        scorer: Any scorer.
        texts: Texts to score.
        prompts: What each text answers, strings or conversations; handed on to scorers that look at it.

    Returns:
        One score in [0, 1] for each text, float64.

    Raises:
        EntangleError: The scorer returned another number of scores, one that is NaN, or one outside [0, 1]; or prompts
            of another number than texts.

    Example:
        >>> def half(texts):
        ...     return np.full(len(texts), 0.5)
        >>> en.evaluation.score(half, ["a", "b", " "])  # a blank text has nothing in it to be toxic
        array([0.5, 0.5, 0. ])
    """
    texts = texts_of(texts)
    beside = beside_texts(texts, prompts)
    speaking = [i for i, text in enumerate(texts) if text.strip()]
    scores = np.zeros(len(texts))
    if not speaking:
        return scores
    with _asked(scorer):
        values = np.asarray(ask(scorer, [texts[i] for i in speaking], beside and [beside[i] for i in speaking]))
        try:
            values = values.astype(np.float64)
        except (TypeError, ValueError):
            raise EntangleError(
                f"scorer {scorer_name(scorer)!r} must return one number for each text; got {values.dtype} that are none"
            ) from None
    if values.shape != (len(speaking),):
        raise EntangleError(
            f"scorer {scorer_name(scorer)!r} must return one score for each of {len(speaking)} texts; "
            f"got shape {values.shape}"
        )
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if bad.size:
        raise EntangleError(
            f"scorer {scorer_name(scorer)!r} must return scores in [0, 1]; it gave {values[bad[0]]} for text "
            f"{speaking[bad[0]]} and {bad.size - 1} more such: check its labels and its weights"
        )
    scores[speaking] = values
    return scores


def ask(scorer: Scorer, texts: Sequence[str], prompts: Sequence[AnyPrompt] | None = None) -> Float[np.ndarray, " text"]:
    """What a scorer says, as it says it; prompts only if it looks at them."""
    if prompts is None or not sees_prompts(scorer):
        return scorer(texts)
    return scorer(texts, prompts=prompts)  # type: ignore[call-arg]


def beside_texts(texts: Sequence[str], prompts: Sequence[AnyPrompt] | None) -> list[AnyPrompt] | None:
    """The prompts of some texts, one each, if there are any.

    Raises:
        EntangleError: Another number of them, or one that is no prompt.
    """
    if prompts is None:
        return None
    listed = prompts_of(prompts)
    if len(listed) != len(texts):
        raise EntangleError(f"scoring needs one prompt for each text; got {len(listed)} for {len(texts)} texts")
    return listed


class CachedScorer:
    """A scorer that remembers, by the hash of each text, and of its prompt if it looks at it, what it has scored.

    Args:
        scorer: The scorer to ask for new texts.
        path: An SQLite file that keeps the scores between runs; scorers share one file without mixing, since rows
            carry the scorer's key (`scorer_key`): one that was fitted anew begins anew. Without it, scores are kept
            in memory.

    Raises:
        EntangleError: The file is no database of scores, is damaged, or cannot be written; or the scorer has no content
            that it could be known by.

    Example:
        >>> calls = []
        >>> class Length:
        ...     name = "length"
        ...
        ...     def __call__(self, texts):
        ...         calls.append(len(texts))
        ...         return np.array([min(1.0, len(text) / 100) for text in texts])
        >>> scorer = en.evaluation.CachedScorer(Length(), "scores.db")
        >>> scorer(texts[:4]).shape, scorer(texts[:6]).shape
        ((4,), (6,))
        >>> calls  # no text is scored twice
        [4, 2]
    """

    def __init__(self, scorer: Scorer, path: str | Path | None = None) -> None:
        self.scorer = scorer
        self.name = scorer_name(scorer)
        self.path = path
        scorer_key(scorer)  # refused now rather than after hours
        with self._asking():
            self._connection = sqlite3.connect(":memory:" if path is None else path)
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS scores "
                    "(scorer TEXT, sha256 TEXT, score REAL, PRIMARY KEY (scorer, sha256))"
                )

    def __call__(self, texts: Sequence[str], prompts: Sequence[AnyPrompt] | None = None) -> Float[np.ndarray, " text"]:
        """Scores, asking the scorer only for texts, or answers to a prompt, not seen before."""
        texts, scorer = texts_of(texts), f"{self.name} {scorer_key(self.scorer)}"
        beside = beside_texts(texts, prompts) if sees_prompts(self.scorer) else None
        keys = [_key(text, None if beside is None else beside[i]) for i, text in enumerate(texts)]
        new = {key: i for i, key in enumerate(keys) if self._find(scorer, key) is None}
        if new:
            rest = list(new.values())
            values = score(self.scorer, [texts[i] for i in rest], beside and [beside[i] for i in rest])
            rows = [(scorer, key, float(value)) for key, value in zip(new, values, strict=True)]
            with self._asking(), self._connection:
                self._connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?)", rows)
        return np.array([self._find(scorer, key) for key in keys], dtype=np.float64)

    def content(self) -> str:
        """What it is known by: what it remembers the scores of."""
        return scorer_key(self.scorer)

    def _find(self, scorer: str, key: str) -> float | None:
        query = "SELECT score FROM scores WHERE scorer = ? AND sha256 = ?"
        with self._asking():
            row = self._connection.execute(query, (scorer, key)).fetchone()
        if row is None:
            return None
        if not isinstance(row[0], float) or not 0 <= row[0] <= 1:
            raise EntangleError(f"{self.path} keeps {row[0]!r} as a score, so it is damaged: delete it")
        return row[0]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what the database refuses into one clear line."""
        try:
            yield
        except sqlite3.Error as error:
            raise EntangleError(
                f"{self.path} cannot keep scores ({error}): give a file that CachedScorer made, or a new one"
            ) from error


def _key(text: str, prompt: AnyPrompt | None) -> str:
    """Of a text alone, the hash of the text, as ever; of an answer, that of both, with the length of the prompt."""
    if prompt is not None:
        asked = prompt_key(prompt)
        text = f"{len(asked)} {asked} {text}"
        return "p" + hashlib.sha256(text.encode()).hexdigest()
    return hashlib.sha256(text.encode()).hexdigest()


def scorer_agreement(
    scores: Mapping[str, Float[np.ndarray, " text"]], texts: Sequence[str], *, examples: int = 3
) -> pd.DataFrame:
    """How far scorers agree on the same texts, pair by pair.

    Args:
        scores: Scorer name -> its scores.
        texts: The texts scored.
        examples: How many of the texts they disagree on most to show.

    Returns:
        One row per pair: `first`, `second`, Spearman's `rank_correlation`, `same_side` (share of texts that both put on
        the same side of .5) and `disagreements`, the texts furthest apart with both scores.

    Raises:
        EntangleError: Fewer than two scorers or texts, or scores of another length.

    Example:
        >>> scores = {"exclaims": np.array([1.0, 1.0, 0.0, 0.0]), "shouts": np.array([1.0, 0.0, 1.0, 0.0])}
        >>> frame = en.evaluation.scorer_agreement(scores, ["NO!", "no!", "NO", "no"])
        >>> frame[["rank_correlation", "same_side"]].to_numpy().tolist()
        [[0.0, 0.5]]
    """
    if len(scores) < 2 or len(texts) < 2:
        raise EntangleError(f"agreement needs two scorers and two texts; got {len(scores)} and {len(texts)}")
    for name, values in scores.items():
        if np.shape(values) != (len(texts),):
            raise EntangleError(f"scorer {name!r} has scores of shape {np.shape(values)} for {len(texts)} texts")
    rows = []
    for (first, a), (second, b) in combinations(scores.items(), 2):
        furthest = np.argsort(-np.abs(a - b), kind="stable")[:examples]
        constant = np.ptp(a) == 0 or np.ptp(b) == 0  # no ranks to compare
        rows.append(
            {
                "first": first,
                "second": second,
                "rank_correlation": float("nan") if constant else float(stats.spearmanr(a, b).statistic),
                "same_side": float(np.mean((a > 0.5) == (b > 0.5))),
                "disagreements": [(texts[i], float(a[i]), float(b[i])) for i in furthest],
            }
        )
    return pd.DataFrame(rows)


# What each scorer was known by, and its content after it was last asked.
_ASKED: WeakIdKeyDictionary = WeakIdKeyDictionary()


def scorer_key(scorer: Scorer) -> str:
    """A hash of a scorer's name and of all that decides its scores: its code, its numbers, the weights in it.

    What being asked leaves behind in a scorer, such as a count or a memory of texts, is no part of that; a change made
    otherwise, such as fitting it anew, is.

    Args:
        scorer: Any scorer. One that stands for something out of reach, such as a service, says by `content()` what its
            scores depend on, such as a version.

    Returns:
        32 hexadecimal digits.

    Raises:
        EntangleError: It has no name, or no content that can be compared.

    Example:
        >>> one, other = (en.LinearToxicityScorer(np.full(2**19, w, dtype=np.float32), bias=0.0) for w in (0.1, 0.2))
        >>> en.evaluation.scorer_key(one) == en.evaluation.scorer_key(other)
        False
    """
    now = _content(scorer)
    known: tuple[str, str] | None = _ASKED.get(scorer, None)  # type: ignore[no-untyped-call]
    return known[0] if known is not None and known[1] == now else now


def _content(scorer: Scorer) -> str:
    name = scorer_name(scorer)
    try:
        return digest([name, scorer])
    except EntangleError as error:
        raise EntangleError(
            f"scores of {name!r} cannot be kept, since nothing tells it from another scorer of that name ({error}): "
            "give it a content() that returns what decides its scores"
        ) from error


@contextmanager
def _asked(scorer: Scorer) -> Iterator[None]:
    """Keep the key of a scorer that is asked now, whatever that leaves in it."""
    try:
        key = scorer_key(scorer)
    except EntangleError:  # it is not kept by anyone
        yield
        return
    try:
        yield
    finally:
        _ASKED[scorer] = key, _content(scorer)


def scorer_name(scorer: Scorer) -> str:
    """The scorer's `name`, or a function's own.

    Raises:
        EntangleError: It has neither.

    Example:
        >>> def half(texts):
        ...     return np.full(len(texts), 0.5)
        >>> en.evaluation.scorer_name(half)
        'half'
    """
    name = getattr(scorer, "name", None) or getattr(scorer, "__name__", None)
    if not isinstance(name, str):
        raise EntangleError(f"a scorer needs a name for tables and caches; give {type(scorer).__name__} a .name")
    return name
