"""What a probe must beat: above all the words themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.statistics import Estimate, bootstrap_mean
from entangle.probes.inputs import encode_groups, encode_labels
from entangle.probes.scores import area_interval, correct
from entangle.probes.splits import Split


@dataclass(frozen=True)
class BaselineResult:
    """A baseline on the report part of a split.

    Attributes:
        name: Which baseline.
        accuracy: With its bootstrap interval.
        auroc: With its bootstrap interval.
        scores: Of the report part, `[example]` (`[example, class]` for more than two classes).
    """

    name: str
    accuracy: Estimate
    auroc: Estimate
    scores: Float[Tensor, "reported ..."]


def bag_of_words(
    texts: Sequence[str],
    labels: Any,
    split: Split,
    *,
    C: float = 1.0,
    groups: Any = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> BaselineResult:
    """Logistic regression on tf-idf of words and pairs of words: fitted on the fit part, reported on the report part.

    Args:
        texts: One per example.
        labels: One per example.
        split: The very split of the probes, so that the numbers compare.
        C: Inverse strength of the penalty.
        groups: A group per example; resamples draw whole groups.
        n_resamples: Bootstrap resamples.
        level: Coverage of the intervals.
        seed: Seed of the resamples.

    Raises:
        EntangleError: As many texts as labels are needed, and a split of them.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    codes, classes = encode_labels(labels, len(texts))
    split.check(codes)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    fit, report = split.fit.tolist(), split.report.tolist()
    try:
        x = vectorizer.fit_transform([texts[i] for i in fit])
    except ValueError:
        raise EntangleError(
            "no word occurs in two texts of the fit part; a bag of words needs more or longer texts"
        ) from None
    model = LogisticRegression(C=C, max_iter=2000).fit(x, codes[split.fit].numpy())
    scores = torch.from_numpy(np.asarray(model.decision_function(vectorizer.transform([texts[i] for i in report]))))
    return _judge("bag of words", scores.float(), codes, split, len(classes), groups, n_resamples, level, seed)


def _judge(
    name: str,
    scores: Tensor,
    codes: Int[Tensor, example],
    split: Split,
    n_classes: int,
    groups: Any,
    n_resamples: int,
    level: float,
    seed: int,
) -> BaselineResult:
    units = encode_groups(groups, len(codes))
    of_report = None if units is None else units[split.report]
    labels = codes[split.report]
    accuracy = bootstrap_mean(
        correct(scores, labels, n_classes), n_resamples=n_resamples, level=level, seed=seed, groups=of_report
    )
    auroc = area_interval(scores, labels, n_classes, n_resamples=n_resamples, level=level, seed=seed, groups=of_report)
    return BaselineResult(name, accuracy, Estimate(*(float(part) for part in auroc)), scores)
