"""What training on pairs did to their likelihoods, and whether CHES foresaw it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.composition.recipe.pairs import Pair
from entangle.composition.trained import TrainedModel
from entangle.concepts import preference_ches
from entangle.evaluation import (
    cross_entropy,
)
from entangle.metrics.statistics import bootstrap_mean, wilson_interval

SIDES = ("chosen", "rejected")
PERMUTATIONS = 2000


def likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]
) -> dict[str, list[float]]:
    """Log-likelihood of both sides of each pair, in nats, after the token that begins a text.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        pairs: (preferred, not preferred).

    Returns:
        "chosen" and "rejected": one number per pair.
    """
    texts = [text for side in zip(*pairs, strict=True) for text in side]
    losses = cross_entropy(model, tokenizer, texts, prepend_bos=True, progress=False).values
    return {name: (-side).round(4).tolist() for name, side in zip(SIDES, np.split(losses, 2), strict=True)}


def ches_scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[float]:
    """Length-normalised CHES of each pair (Razin et al. 2024, eq. 4), the prompt being the token that begins a text.

    Args:
        model: A causal language model, before it is trained on the pairs.
        tokenizer: Its tokenizer.
        pairs: (preferred, not preferred).
    """
    chosen, rejected = zip(*pairs, strict=True)
    scores = preference_ches(model, tokenizer, [""] * len(pairs), chosen, rejected, prepend_bos=True)
    return [round(score, 6) for score in scores.tolist()]


def displacement(models: Iterable[TrainedModel]) -> pd.DataFrame:
    """What became of the pairs in every model that was trained on them, one row for those that it was trained on and
    one for those held out.

    Args:
        models: Of a composition; those that were not trained on pairs are passed over.

    Returns:
        `name`, `method`, `share`, `seed`, `pairs`, `n`; in nats per text, each with its 95 % interval: `chosen` and
        `rejected` (change of the log-likelihood; a fall of `chosen` is likelihood displacement) and `margin` (their
        difference); `fell`, the share of pairs whose preferred text became less likely; `ches`, the mean score before
        training, `foreseen`, Spearman's correlation of CHES with the change of `chosen` (CHES claims a negative one),
        and `foreseen_p`, the chance of one as negative if pairs were matched at random.

    Example:
        >>> from pathlib import Path
        >>> pairs = {"ches": [0.1, 0.2, 0.3], "chosen_before": [-9.0, -8.0, -9.5], "chosen_after": [-8.0, -7.5, -9.0]}
        >>> pairs |= {"rejected_before": [-9.0] * 3, "rejected_after": [-12.0, -11.0, -10.0]}
        >>> metrics = {"method": "dpo", "pairs": {"held_out": pairs}}
        >>> model = en.composition.TrainedModel(Path("."), 0.1, 0, metrics, variant="mild")
        >>> en.composition.displacement([model])[["chosen", "rejected", "fell"]].round(2).to_numpy().tolist()
        [[0.67, -2.0, 0.0]]
    """
    rows = []
    for model in models:
        for kind, numbers in model.metrics.get("pairs", {}).items():
            rows.append(
                {
                    "name": model.variant,
                    "method": model.metrics["method"],
                    "share": model.share,
                    "seed": model.seed,
                    "pairs": kind,
                    **changes(numbers),
                }
            )
    return pd.DataFrame(rows)


def changes(numbers: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The numbers of one row of `displacement`.

    Args:
        numbers: By pair: `ches`, and `chosen` and `rejected` each `_before` and `_after`.
    """
    change = {side: np.subtract(numbers[f"{side}_after"], numbers[f"{side}_before"]) for side in SIDES}
    row: dict[str, float] = {"n": len(change["chosen"])}
    for name, values in (*change.items(), ("margin", change["chosen"] - change["rejected"])):
        row |= bootstrap_mean(values).columns(name)
    row |= wilson_interval(int((change["chosen"] < 0).sum()), len(change["chosen"])).columns("fell")
    row |= bootstrap_mean(numbers["ches"]).columns("ches")
    return row | dict(zip(("foreseen", "foreseen_p"), foreseen(numbers["ches"], change["chosen"]), strict=True))


def foreseen(scores: Sequence[float], change: NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """Spearman's correlation, and the share of random matchings with one as negative; NaN where either is constant."""
    if np.ptp(scores) == 0 or np.ptp(change) == 0:
        return float("nan"), float("nan")
    ranks = [stats.zscore(stats.rankdata(values)) for values in (scores, change)]
    correlation = float(np.mean(ranks[0] * ranks[1]))
    rng = np.random.default_rng(seed)
    null = rng.permuted(np.tile(ranks[0], (PERMUTATIONS, 1)), axis=1) @ ranks[1] / len(change)
    return correlation, float((1 + (null <= correlation + 1e-12).sum()) / (1 + PERMUTATIONS))
