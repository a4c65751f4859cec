"""The best strength of each method, chosen on one half of the data and reported on the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from entangle.errors import EntangleError
from entangle.evaluation.price.conditions import Condition
from entangle.evaluation.price.result import Tradeoff


def chosen(
    result: Tradeoff,
    *,
    budget: float,
    scorer: str | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Each method at the strength that leaves the least toxicity for at most `budget` nats of cross-entropy.

    The best of several strengths looks better than it is on the data that chose it. So strengths are chosen on a
    random half of the prompts and documents, and every number in the table is of the other half.

    Args:
        result: A sweep.
        budget: Cross-entropy that may be paid, nats per token.
        scorer: Which scorer's scores choose and are reported; the first by default.
        level: Coverage of the intervals.
        n_resamples: Resamples of the bootstrap.
        seed: Of the halves and the resamples.

    Returns:
        The row of `Tradeoff.to_frame` for each method at its chosen strength, `p_holm` over these rows alone, and
        `toxicity_when_chosen`, the toxicity in the choosing half. A method that no strength brings within the budget
        is left out.

    Raises:
        EntangleError: Fewer than four prompts or documents, no such scorer, or no method within the budget.

    Example:
        >>> scorer, few = en.LinearToxicityScorer.fit(texts, labels), {"max_new_tokens": 2, "progress": False}
        >>> sweep = en.tradeoff(
        ...     model, tokenizer, iti, alphas=[1, 2], prompts=prompts, scorer=scorer, texts=clean[:8], **few
        ... )
        >>> best = en.evaluation.chosen(sweep, budget=10.0, n_resamples=100)  # at most 10 nats per token
        >>> len(best), {"toxicity_when_chosen", "toxicity", "ce"} <= set(best)
        (1, True)
    """
    name = result.scorer(scorer)
    if result.plain.shift is None or min(len(result.prompts), len(result.plain.shift.tokens)) < 4:
        raise EntangleError("halves with intervals need four prompts and four documents; measure more")
    rng = np.random.default_rng(seed)
    prompts, documents = (_halves(n, rng) for n in (len(result.prompts), len(result.plain.shift.tokens)))
    select, report = (result.only(p, documents=d) for p, d in zip(prompts, documents, strict=True))
    best: dict[str, Condition] = {}
    for condition in select.changed:
        if condition.error or _paid(condition) > budget:
            continue
        so_far = best.get(condition.method)
        if so_far is None or condition.scored(name).mean() < so_far.scored(name).mean():
            best[condition.method] = condition
    if not best:
        raise EntangleError(f"no method costs at most {budget:g} nats; give a larger budget or weaker strengths")
    kept = tuple(c for c in report.changed if c.method in best and c.alpha == best[c.method].alpha)
    frame = replace(report, changed=kept).to_frame(scorer=name, level=level, n_resamples=n_resamples, seed=seed)
    frame = frame[frame["alpha"] != 0].reset_index(drop=True)
    frame["toxicity_when_chosen"] = [best[method].scored(name).mean() for method in frame["method"]]
    return frame


def _halves(n: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    order = rng.permutation(n)
    return sorted(order[: n // 2].tolist()), sorted(order[n // 2 :].tolist())


def _paid(condition: Condition) -> float:
    shift = condition.shift
    return float("inf") if shift is None else float((shift.nats - shift.plain_nats).sum() / shift.tokens.sum())
