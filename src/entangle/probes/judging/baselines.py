"""What a probe must beat: above all the words themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.data import same_index, texts_of
from entangle.errors import EntangleError
from entangle.metrics.intervals.rates import rate_interval
from entangle.metrics.statistics import Estimate
from entangle.probes.fit import fit_probes
from entangle.probes.grid import ProbeGrid
from entangle.probes.inputs import Cells, encode_groups, encode_labels
from entangle.probes.judging.scores import area_interval, correct
from entangle.probes.linear import BLOCK_BYTES
from entangle.probes.splits import Split


@dataclass(frozen=True)
class BaselineResult:
    """A baseline on the report part of a split.

    Attributes:
        name: Which baseline.
        accuracy: With Wilson's interval.
        auroc: With its score interval.
        scores: Of the report part, `[example]` (`[example, class]` for more than two classes).

    Example:
        >>> split = en.probes.three_way(labels)
        >>> words = en.probes.bag_of_words(texts, labels, split)
        >>> words.name, words.auroc.value  # the last words give it away
        ('bag of words', 1.0)
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
        groups: A group per example, over which the intervals are.
        n_resamples: No longer used: nothing is resampled.
        level: Coverage of the intervals.
        seed: No longer used.

    Raises:
        EntangleError: As many texts as labels are needed, and a split of them.

    Example:
        >>> split = en.probes.three_way(labels)
        >>> en.probes.bag_of_words(texts, labels, split).accuracy.value
        1.0
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    same_index(texts=texts, labels=labels, groups=groups)
    texts = texts_of(texts)
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
    return _judge("bag of words", scores.float(), codes, split, len(classes), groups, level)


def majority_class(
    labels: Any, split: Split, *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> BaselineResult:
    """Always the class that is most frequent in the fit part; AUROC is 0.5 by definition.

    Args:
        labels: One per example.
        split: The very split of the probes.
        n_resamples: No longer used: nothing is resampled.
        level: Coverage of the intervals.
        seed: No longer used.

    Example:
        >>> split = en.probes.three_way(labels)
        >>> en.probes.majority_class(labels, split).accuracy.value
        0.5
    """
    codes, classes = encode_labels(labels)
    split.check(codes)
    share = torch.bincount(codes[split.fit], minlength=len(classes)).float() / len(split.fit)
    scores = (share[1] - share[0]).expand(1) if len(classes) == 2 else share[None]
    scores = scores.expand(len(split.report), *scores.shape[1:])
    return _judge("majority class", scores, codes, split, len(classes), None, level)


def random_direction(x: Any, y: Any, *, seed: int = 0, **options: Any) -> ProbeGrid:
    """Probes that see one random direction of each cell: what any direction at all would read.

    Args:
        x: Activations `[example, *grid, feature]`.
        y: One label per example.
        seed: Seed of the directions, of the split and of the null.
        **options: For `fit_probes`; give `split` the split of the probes.

    Example:
        >>> en.probes.random_direction(acts["resid_post"], labels, n_permutations=0, progress=False).shape
        (2,)
    """
    cells = Cells(x)
    generator = torch.Generator().manual_seed(seed)
    coordinates = []
    for start, stop in cells.blocks(BLOCK_BYTES):
        rows = cells.read(start, stop)
        direction = torch.randn(stop - start, cells.n_features, 1, generator=generator).to(rows)
        coordinates.append((rows @ (direction / direction.norm(dim=1, keepdim=True))).transpose(0, 1))
    return fit_probes(torch.cat(coordinates, 1).reshape(cells.n_examples, *cells.grid, 1), y, seed=seed, **options)


def mean_embeddings(
    table: Float[Tensor, "vocabulary d"], input_ids: Sequence[Sequence[int]]
) -> Float[Tensor, "example d"]:
    """Mean input embedding of each text's tokens: fit probes on these for what the model had before its first layer.

    Args:
        table: `model.get_input_embeddings().weight`.
        input_ids: Tokens of each text, without padding.

    Raises:
        EntangleError: A text has no tokens.

    Example:
        >>> table = model.get_input_embeddings().weight
        >>> en.probes.mean_embeddings(table, acts.input_ids).shape
        torch.Size([96, 32])
    """
    for number, tokens in enumerate(input_ids):
        if not len(tokens):
            raise EntangleError(f"text {number} has no tokens; leave it out")
    return torch.stack([table.detach()[torch.as_tensor(tokens)].mean(0) for tokens in input_ids])


def _judge(
    name: str,
    scores: Tensor,
    codes: Int[Tensor, " example"],
    split: Split,
    n_classes: int,
    groups: Any,
    level: float,
) -> BaselineResult:
    units = encode_groups(groups, len(codes))
    of_report = None if units is None else units[split.report]
    labels = codes[split.report]
    accuracy = rate_interval(correct(scores, labels, n_classes), groups=of_report, level=level)
    auroc = area_interval(scores, labels, n_classes, level=level, groups=of_report)
    return BaselineResult(name, accuracy, Estimate(*(float(part) for part in auroc)), scores)
