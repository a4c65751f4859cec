"""Which of the heads that read a concept also write it: each is pushed both ways, and kept, flipped or dropped.

A head whose output tells two classes apart need not move the model toward either: it may be read by nothing, or
against the sign of its direction. So each candidate is tried in the running model on texts that fitted nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from transformers import PreTrainedTokenizerBase

from entangle.errors import EntangleError
from entangle.evaluation.language.documents import document_rows
from entangle.evaluation.language.reading import PlainReading
from entangle.forecast import Contrast
from entangle.interventions import ITI
from entangle.metrics import Estimate, max_statistic_p, wilson_interval
from entangle.models import own_tokenizer, underlying
from entangle.probes import encode_groups, permuted_within
from entangle.progress import progress_bar

KEEP, FLIP, DROP = "keep", "flip", "drop"
FEWEST = 8


@dataclass(frozen=True, eq=False)
class CausalHeads:
    """What `causal_heads` found of each candidate.

    Attributes:
        candidates: The intervention whose heads were tried.
        table: A row for each; see `to_frame`.
        alpha: How many standard deviations each was pushed.
        n_texts: Texts toward and away.
        forwards: How many times a text was read, forwards or backwards.
        tokens: Tokens of all texts together.
        seconds: How long it took.

    Example:
        >>> toward, away = texts[0::2][-24:], texts[1::2][-24:]
        >>> found = en.evaluation.causal_heads(model, tokenizer, iti, toward=toward, away=away, progress=False)
        >>> set(found.to_frame()["decision"]) <= {"keep", "flip", "drop"}
        True
        >>> len(found.answer())
        1
    """

    candidates: ITI
    table: pd.DataFrame = field(repr=False)
    alpha: float
    n_texts: tuple[int, int]
    forwards: int
    tokens: int
    seconds: float

    @property
    def signs(self) -> Int[np.ndarray, " head"]:
        """1 for a head that is kept, -1 for one that is flipped, 0 for one that is dropped."""
        return self.table["decision"].map({KEEP: 1, FLIP: -1, DROP: 0}).to_numpy(dtype=np.int64)

    @property
    def iti(self) -> ITI:
        """The intervention in the heads that move the contrast, those that push the wrong way turned about.

        Raises:
            EntangleError: No head was found to move it.
        """
        return self.candidates.signed([int(sign) for sign in self.signs], selection="causal")

    @property
    def wrong_way(self) -> Estimate:
        """Of the heads that move the contrast, the share that push it the wrong way, with Wilson's interval."""
        moving = int((self.signs != 0).sum())
        if not moving:
            return Estimate(float("nan"), 0.0, 1.0)
        return wilson_interval(int((self.signs < 0).sum()), moving)

    def to_frame(self) -> pd.DataFrame:
        """A row for each candidate head, in the candidates' order.

        Columns: `layer`, `head`; `effect`, what a push along its direction adds to the contrast, half the difference
        between pushes both ways, in nats per token; `p`, two-sided, against permuted labels, corrected for looking at
        all heads; `p_alone`, not corrected; `kl`, what the push costs on these texts, nats per token (NaN to first
        order); `decision`: "keep", "flip" or "drop".
        """
        return self.table.copy()

    def answer(self) -> list[str]:
        """In words: how many heads push the right way, the wrong way, and not to speak of; and at what cost."""
        kept, flipped, dropped = (int((self.signs == sign).sum()) for sign in (1, -1, 0))
        return [
            f"Of {len(self.table)} heads that read the concept, {kept} push it the way they read it, {flipped} the "
            f"wrong way (flipped), and {dropped} not clearly either way (dropped), by {sum(self.n_texts)} texts read "
            f"{self.forwards} times in {self.seconds:.0f} s."
        ]


def causal_heads(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    iti: ITI,
    *,
    toward: Sequence[str],
    away: Sequence[str],
    alpha: float = 8.0,
    how: Literal["push", "gradient"] = "push",
    level: float = 0.05,
    familywise: bool = True,
    groups: tuple[Sequence[Any], Sequence[Any]] | None = None,
    n_permutations: int = 2000,
    max_length: int | None = None,
    batch_tokens: int = 8192,
    seed: int = 0,
    progress: bool = True,
) -> CausalHeads:
    """Push each head of an intervention both ways and see what the contrast of two kinds of held-out text does.

    The contrast is mean log p of the texts of one side minus that of the other, per token, a text counting once. A head
    whose push raises it is kept, one whose push lowers it is flipped, and one that is not told from chance is dropped;
    chance is labels permuted among the texts. Heads that read a concept nearly without error can push it the wrong way
    (arXiv 2608.02957).

    Args:
        model: The plain causal language model.
        tokenizer: Its tokenizer.
        iti: Candidates, fitted on other texts.
        toward: Texts of the class that it steers to; eight or more. None of those that fitted it.
        away: Texts of the other class; eight or more.
        alpha: How far each head is pushed, in standard deviations.
        how: "push" reads every text twice per head, with the head pushed; "gradient" takes what the contrast's gradient
            says of the push, one backward pass per text for all heads together: cheap, and right to first order alone.
        level: A head is kept or flipped whose p-value is below this.
        familywise: Correct for looking at all heads (Westfall and Young's largest statistic); else each head is tested
            alone, and of those that do nothing a share of `level` is kept or flipped.
        groups: A group for each text of either side; groups are permuted whole (see `permuted_within`).
        n_permutations: Permutations of the labels; no p-value is below one over this.
        max_length: Keep at most this many tokens of a text.
        batch_tokens: Tokens in one batch, padding included.
        seed: Of the permutations.
        progress: Show a progress bar.

    Returns:
        A decision for each head, and the intervention that follows.

    Raises:
        EntangleError: Too few texts, an alpha of 0, or settings out of range.

    Example:
        >>> toward, away = texts[0::2][-24:], texts[1::2][-24:]  # 0, the polite ones, is what iti steers to
        >>> quick = en.evaluation.causal_heads(
        ...     model, tokenizer, iti, toward=toward, away=away, how="gradient", progress=False
        ... )
        >>> quick.forwards  # each text once, whatever the number of heads
        1
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    sides = [list(toward), list(away)]
    if min(map(len, sides)) < FEWEST:
        raise EntangleError(
            f"a test of heads needs {FEWEST} texts or more on each side; got {len(sides[0])} and {len(sides[1])}"
        )
    if not (alpha > 0 and 0 < level < 1 and n_permutations >= 1) or how not in ("push", "gradient"):
        raise EntangleError(
            'a test of heads needs alpha > 0, 0 < level < 1, a permutation or more, and how="push" or "gradient"; got '
            f"{alpha}, {level}, {n_permutations} and {how!r}"
        )
    began = time.perf_counter()
    options: dict[str, Any] = {"max_length": max_length, "batch_tokens": batch_tokens, "progress": progress}
    if how == "push":
        moved, kl, tokens = _pushed(model, tokenizer, iti, sides, alpha, options)
    else:
        moved, tokens = _foretold(model, tokenizer, iti, sides, alpha, options)
        kl = [float("nan")] * len(iti.heads)
    effect, p, alone = _tested(moved, len(sides[0]), groups, n_permutations, seed)
    clear = (p if familywise else alone) < level
    decisions = [DROP if not sure else KEEP if value > 0 else FLIP for sure, value in zip(clear, effect, strict=True)]
    table = pd.DataFrame(
        {
            "layer": [layer for layer, _ in iti.heads],
            "head": [head for _, head in iti.heads],
            "effect": effect,
            "p": p,
            "p_alone": alone,
            "kl": kl,
            "decision": decisions,
        }
    )
    forwards = 1 + 2 * len(iti.heads) if how == "push" else 1
    n_texts = len(sides[0]), len(sides[1])
    return CausalHeads(iti, table, alpha, n_texts, forwards, tokens, time.perf_counter() - began)


def _pushed(
    model: Any, tokenizer: Any, iti: ITI, sides: list[list[str]], alpha: float, options: dict[str, Any]
) -> tuple[Float[np.ndarray, "head text"], list[float], int]:
    """Nats per token that each text gains by a push along each head, half the difference between both ways."""
    rows = document_rows(model, tokenizer, [*sides[0], *sides[1]], max_length=options["max_length"])
    reading = PlainReading(model, tokenizer, rows, batch_tokens=options["batch_tokens"])
    moved, paid = [], []
    for number in progress_bar(range(len(iti.heads)), desc="heads", unit="head", disable=not options["progress"]):
        one = iti.signed([int(number == other) for other in range(len(iti.heads))])
        there, back = (reading.shift(one, alpha=sign * alpha, progress=False) for sign in (1, -1))
        moved.append((back.nats - there.nats) / 2 / there.tokens)
        paid.append(float(there.kl.sum() / there.tokens.sum()))
    return np.stack(moved), paid, sum(map(len, rows))


def _foretold(
    model: Any, tokenizer: Any, iti: ITI, sides: list[list[str]], alpha: float, options: dict[str, Any]
) -> tuple[Float[np.ndarray, "head text"], int]:
    """The same to first order, from the gradient of each text's log-probability by a shift of each head."""
    layers = sorted({layer for layer, _ in iti.heads})
    contrast = Contrast.fit(model, tokenizer, *sides, sites="z", layers=layers, **options)
    gradients = {}
    for layer in layers:
        here = contrast.at([("z", layer)])
        gradients[layer] = torch.cat([here.toward, here.away]).double()
    tokens = torch.cat([contrast.toward_tokens, contrast.away_tokens])
    size = iti.directions.shape[1]
    moved = []
    for (layer, head), theta, sigma in zip(iti.heads, iti.directions, iti.sigmas, strict=True):
        own = gradients[layer][:, head * size : (head + 1) * size]
        moved.append((own @ (alpha * sigma * theta).double() / tokens).numpy())
    return np.stack(moved), int(tokens.sum())


def _tested(
    moved: Float[np.ndarray, "head text"], n_toward: int, groups: Any, n_permutations: int, seed: int
) -> tuple[Float[np.ndarray, " head"], Float[np.ndarray, " head"], Float[np.ndarray, " head"]]:
    """Each head's effect, its p-value corrected for all heads, and that of the head alone."""
    y = (np.arange(moved.shape[1]) < n_toward).astype(np.int64)
    if groups is not None:
        given = [len(each) if isinstance(each, Sized) else None for each in groups]
        if given != [n_toward, len(y) - n_toward]:
            raise EntangleError(
                "groups must name one for each text of either side, as a pair of lists; got lengths "
                f"{given[:4]} for {[n_toward, len(y) - n_toward]}"
            )
    together = None if groups is None else encode_groups([*groups[0], *groups[1]], len(y))
    names = np.arange(len(y)) if together is None else _numbered(together.tolist())
    rng = np.random.default_rng(seed)
    labels = np.stack([y, *(permuted_within(y, names, rng) for _ in range(n_permutations))])
    # Groups of unlike sizes change how many texts a side has.
    weights = labels / labels.sum(1, keepdims=True) - (1 - labels) / (1 - labels).sum(1, keepdims=True)
    drawn = weights @ moved.T
    spread = drawn[1:].std(0)
    spread[spread == 0] = np.inf  # a head that moves no text: its statistic is 0
    observed, null = np.abs(drawn[0]) / spread, np.abs(drawn[1:]) / spread
    corrected = max_statistic_p(torch.from_numpy(observed), torch.from_numpy(null)).numpy()
    alone = (1 + (null >= observed).sum(0)) / (1 + n_permutations)
    return drawn[0], corrected, alone


def _numbered(names: Sequence[Any]) -> Int[np.ndarray, " text"]:
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])
