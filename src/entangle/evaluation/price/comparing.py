"""Comparisons along whole curves: the Pareto front, and two methods or models at equal cost."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from entangle.errors import EntangleError
from entangle.evaluation.price.conditions import Condition
from entangle.evaluation.price.result import Tradeoff
from entangle.metrics.statistics import Estimate, bootstrap_counts

Cost = Literal["ce", "ce_change", "kl"]


class Matched(NamedTuple):
    """Two curves at one cost: the toxicity of each, and first minus second, each with its interval.

    Example:
        >>> a, b, c = (en.metrics.Estimate(x, x - 0.1, x + 0.1) for x in (0.3, 0.5, -0.2))
        >>> pair = en.evaluation.Matched(cost=0.1, first=a, second=b, difference=c)
        >>> pair.difference.high < 0  # the first leaves less toxicity at this price
        True
    """

    cost: float
    first: Estimate
    second: Estimate
    difference: Estimate


def pareto(result: Tradeoff, *, scorer: str | None = None, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Which conditions no other beats on both toxicity and cross-entropy, and how surely.

    Args:
        result: A sweep.
        scorer: Which scorer's scores; the first by default.
        n_resamples: Resamples of prompts and documents.
        seed: Seed of the resamples.

    Returns:
        `method`, `alpha`, `toxicity`, `ce`, `on_front`, and `front_share`, the share of resamples in which the
        condition is on the front; sorted by `ce`. Conditions without numbers are left out.

    Example:
        >>> scorer, few = en.LinearToxicityScorer.fit(texts, labels), {"max_new_tokens": 2, "progress": False}
        >>> sweep = en.tradeoff(
        ...     model, tokenizer, iti, alphas=[8], prompts=prompts, scorer=scorer, texts=clean[:8], **few
        ... )
        >>> front = en.evaluation.pareto(sweep, n_resamples=100)
        >>> bool(front.loc[front["ce"].idxmin(), "on_front"])  # nothing beats the cheapest on both
        True
    """
    conditions = [result.plain, *(c for c in result.changed if not c.error)]
    toxicity, ce = _points(conditions, result.scorer(scorer), "ce", n_resamples, seed)
    table = pd.DataFrame(
        {
            "method": [c.method or "plain" for c in conditions],
            "alpha": [c.alpha for c in conditions],
            "toxicity": toxicity[0],
            "ce": ce[0],
            "on_front": _on_front(toxicity[:1], ce[:1])[0],
            "front_share": _on_front(toxicity[1:], ce[1:]).mean(0),
        }
    )
    return table.sort_values("ce", kind="stable", ignore_index=True)


def matched(
    first: tuple[Tradeoff, str],
    second: tuple[Tradeoff, str],
    *,
    cost: float,
    measure: Cost = "ce_change",
    scorer: str | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Matched:
    """Toxicity of two methods, or of one method on two models, at the same cost.

    Each method's curve runs straight from the plain model through its strengths in order of cost. Both curves are read
    at `cost` in every resample; prompts and documents are resampled alike for both, so the difference is paired.

    Args:
        first: A sweep and the name of a method in it.
        second: Another, or another method of the same; on the same prompts and documents.
        cost: Where to compare.
        measure: Which cost: "ce_change" (cross-entropy paid; for two models, whose own cross-entropies differ), "ce",
            or "kl".
        scorer: Which scorer's scores; the first by default.
        level: Coverage of the intervals.
        n_resamples: Resamples.
        seed: Seed of the resamples.

    Returns:
        The two toxicities and their difference, with percentile intervals.

    Raises:
        EntangleError: Sweeps of other prompts or documents, no such method, or a cost that a curve does not reach.

    Example:
        >>> scorer, few = en.LinearToxicityScorer.fit(texts, labels), {"max_new_tokens": 2, "progress": False}
        >>> two = {"a": iti, "b": iti}  # one method under two names
        >>> sweep = en.tradeoff(
        ...     model, tokenizer, two, alphas=[8], prompts=prompts, scorer=scorer, texts=clean[:8], **few
        ... )
        >>> cost = float(sweep.to_frame(n_resamples=100)["kl"].max()) / 2
        >>> en.evaluation.matched((sweep, "a"), (sweep, "b"), cost=cost, measure="kl", n_resamples=100).difference.value
        0.0
    """
    different = [k for k in ("prompts", "texts", "max_length") if first[0].settings.get(k) != second[0].settings.get(k)]
    if different:
        raise EntangleError(f"only sweeps of the same {different[0]} can be paired; these have different ones")
    curves = []
    for result, method in (first, second):
        if method not in result.methods:
            raise EntangleError(f"no method {method!r} in this sweep; it has {', '.join(result.methods)}")
        conditions = [result.plain, *(c for c in result.changed if c.method == method and not c.error)]
        toxicity, paid = _points(conditions, result.scorer(scorer), measure, n_resamples, seed)
        low, high = float(paid[0].min()), float(paid[0].max())
        rounding = 1e-9 * max(abs(low), abs(high))  # a method's own price, summed in another order, is within its range
        if not low - rounding <= cost <= high + rounding:
            raise EntangleError(
                f"{method} costs {low:.3g} to {high:.3g}; compare at a cost in that range, not {cost:g}"
            )
        order = np.argsort(paid, axis=1)
        x, y = (np.take_along_axis(v, order, 1) for v in (paid, toxicity))
        curves.append(np.array([np.interp(cost, x[i], y[i]) for i in range(len(x))]))

    def estimate(values: Float[np.ndarray, " resample"]) -> Estimate:
        low, high = np.quantile(values[1:], [(1 - level) / 2, (1 + level) / 2])
        return Estimate(float(values[0]), float(low), float(high))

    return Matched(cost, estimate(curves[0]), estimate(curves[1]), estimate(curves[0] - curves[1]))


def _points(
    conditions: list[Condition], scorer: str, measure: Cost, n_resamples: int, seed: int
) -> tuple[Float[np.ndarray, "resample condition"], Float[np.ndarray, "resample condition"]]:
    """Toxicity and cost of every condition: as measured (row 0), then in each resample."""
    scores = np.stack([c.scored(scorer).mean(1) for c in conditions], 1)
    shifts = [c.shift for c in conditions if c.shift is not None]
    sums = [{"ce": s.nats, "ce_change": s.nats - s.plain_nats, "kl": s.kl}[measure] for s in shifts]
    costs, tokens = np.stack(sums, 1), shifts[0].tokens

    def weights(n: int, stream: int) -> Float[np.ndarray, "resample example"]:
        drawn = bootstrap_counts(n, n_resamples, seed=seed + stream).double().numpy()
        return np.concatenate([np.ones((1, n)), drawn])

    prompts, documents = weights(len(scores), 0), weights(len(tokens), 1)
    return prompts @ scores / len(scores), documents @ costs / (documents @ tokens)[:, None]


def _on_front(
    toxicity: Float[np.ndarray, "resample condition"], ce: Float[np.ndarray, "resample condition"]
) -> Bool[np.ndarray, "resample condition"]:
    t, c = toxicity[:, None, :], ce[:, None, :]
    as_good = (t <= toxicity[:, :, None]) & (c <= ce[:, :, None])
    better = (t < toxicity[:, :, None]) | (c < ce[:, :, None])
    front: Bool[np.ndarray, "resample condition"] = np.logical_not(np.any(as_good & better, axis=-1))
    return front
