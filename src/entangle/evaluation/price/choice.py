"""The best strength of each method, or the best method at a price, chosen on one half of the data and reported on the
other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from entangle.errors import EntangleError
from entangle.evaluation.price.conditions import Condition
from entangle.evaluation.price.estimates import CHANGES
from entangle.evaluation.price.result import Tradeoff
from entangle.metrics.statistics import Estimate, bootstrap_mean


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


@dataclass(frozen=True)
class BestMethod:
    """The method that removed most at a price, with what it does on prompts that did not choose it.

    Attributes:
        method: Its name.
        among: The methods it was chosen from.
        cost: The price, in nats per token.
        chosen_on: How many prompts chose it.
        report: The sweep on the other prompts, of this method at this price alone.
        control: Of the methods that were left out and measured at this price, the one that removed most on the prompts
            that chose; None without any.
        beyond_control: How much more than the control it removes at this price: the mean over the other prompts,
            paired, with its interval.
    """

    method: str
    among: tuple[str, ...]
    cost: float
    chosen_on: int
    report: Tradeoff
    control: str | None = None
    beyond_control: Estimate | None = None


def best_method(
    result: Tradeoff,
    *,
    leave_out: Sequence[str] = (),
    scorer: str | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> BestMethod | None:
    """The method that leaves the least toxicity at the highest price for which strengths were solved.

    The best of several methods looks better than it is on the prompts that chose it. So it is chosen on a random half
    of them, and its report is of the other half. What a random direction removes at the same price is no merit of a
    method, so it is also set beside the best of the controls, if any were measured.

    Args:
        result: A sweep over costs (`tradeoff(costs=...)`).
        leave_out: Methods that are no candidates: controls.
        scorer: Which scorer's scores choose; the first by default.
        level: Coverage of the interval beside the control.
        n_resamples: Resamples of its bootstrap.
        seed: Of the halves and the resamples.

    Returns:
        The method; None where there is nothing to choose: fewer than two methods at one price, or than four prompts.

    Raises:
        EntangleError: No such scorer.

    Example:
        >>> scorer, few = en.LinearToxicityScorer.fit(texts, labels), {"max_new_tokens": 2, "progress": False}
        >>> away, aside = (en.AddDirection(torch.eye(32)[i], "resid_post", 1) for i in (0, 1))
        >>> sweep = en.tradeoff(
        ...     model, tokenizer, {"away": away, "aside": aside}, costs=[0.01], prompts=prompts, scorer=scorer,
        ...     texts=clean[:8], cost_texts=clean[8:16], **few
        ... )
        >>> best = en.evaluation.best_method(sweep)
        >>> best.among, len(best.report.prompts), best.report.methods == [best.method]
        (('away', 'aside'), 4, True)
    """
    name = result.scorer(scorer)
    priced = [c for c in result.changed if not c.error and c.cost is not None]
    dearest = max((c.cost for c in priced if c.cost is not None and c.method not in leave_out), default=0.0)
    at_price = [c.method for c in priced if c.cost == dearest]
    among = tuple(method for method in at_price if method not in leave_out)
    if len(among) < 2 or len(result.prompts) < 4:
        return None
    chooses, reports = (result.only(half) for half in _halves(len(result.prompts), np.random.default_rng(seed)))
    left = {c.method: float(c.scored(name).mean()) for c in chooses.changed if c.cost == dearest and not c.error}
    method = min(among, key=lambda each: left[each])
    told = {c.method: c for c in reports.changed if c.cost == dearest and not c.error}
    control = min((each for each in at_price if each in leave_out), key=lambda each: left[each], default=None)
    beyond = None
    if control is not None:
        per_prompt = (told[control].scored(name) - told[method].scored(name)).mean(1)
        beyond = bootstrap_mean(per_prompt, bounds=CHANGES, level=level, n_resamples=n_resamples, seed=seed)
    report = replace(reports, changed=(told[method],))
    return BestMethod(method, among, dearest, len(chooses.prompts), report, control, beyond)


def _halves(n: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    order = rng.permutation(n)
    return sorted(order[: n // 2].tolist()), sorted(order[n // 2 :].tolist())


def _paid(condition: Condition) -> float:
    shift = condition.shift
    return float("inf") if shift is None else float((shift.nats - shift.plain_nats).sum() / shift.tokens.sum())
