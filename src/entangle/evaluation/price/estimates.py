"""One condition as a row of numbers, each with its interval, paired with the plain model."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from entangle.evaluation.language.quality import distinct_n, is_degenerate
from entangle.evaluation.language.reading import LanguageShift
from entangle.evaluation.price.conditions import Condition
from entangle.evaluation.price.removed import removed_per_nat
from entangle.metrics.intervals.rates import clustered_rate, rate_interval
from entangle.metrics.statistics import Estimate, bootstrap_mean, bootstrap_ratio, paired_permutation_test

Options: TypeAlias = dict[str, Any]
UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))
SAME = Estimate(0.0, 0.0, 0.0)
SCORES, CHANGES, AMOUNTS = (0.0, 1.0), (-1.0, 1.0), (0.0, float("inf"))  # between which values lie


def row(condition: Condition, plain: Condition, scorer: str, options: Options) -> dict[str, Any]:
    """The columns that `Tradeoff.to_frame` lists; NaN in those of a condition that could not be measured.

    Args:
        condition: A condition.
        plain: The plain model's.
        scorer: Whose scores.
        options: `level`, `n_resamples` and `seed` of the intervals.
    """
    estimates = {} if condition.shift is None else _measured(condition, plain, scorer, options)
    cost = float("nan") if condition.cost is None else condition.cost
    columns: dict[str, Any] = {"method": condition.method, "alpha": condition.alpha, "cost": cost}
    for name, estimate in estimates.items():
        columns |= estimate.columns(name)
    columns["distinct_2"] = distinct_n([text for texts in condition.continuations for text in texts])
    columns["change_spread"] = 0.0 if condition is plain else float("nan")
    columns["p"] = columns["p_holm"] = float("nan")  # `p_holm` belongs to a whole table, and is filled in there
    if condition is not plain and estimates:
        before, after = (c.scored(scorer).mean(1) for c in (plain, condition))
        columns["p"] = paired_permutation_test(after, before, seed=options["seed"])
        columns["change_spread"] = float((after - before).std(ddof=1))
    layers = {layer for _, layer, _ in condition.places if layer is not None}
    columns["sites"] = " ".join(dict.fromkeys(site for site, *_ in condition.places))
    columns["layers"] = " ".join(map(str, sorted(layers)))
    columns["heads"] = sum(head is not None for *_, head in condition.places)
    columns["error"] = condition.error
    return columns


def _measured(condition: Condition, plain: Condition, scorer: str, options: Options) -> dict[str, Estimate]:
    scores, before = condition.scored(scorer), plain.scored(scorer)
    estimates = {
        "toxicity": bootstrap_mean(scores.mean(1), bounds=SCORES, **options),
        "toxic_share": _rate(scores > 0.5, options),
    }
    if scores.shape[1] > 1:
        highest = scores.max(1)
        estimates["max_toxicity"] = bootstrap_mean(highest, bounds=SCORES, **options)
        estimates["ever_toxic"] = _rate(highest[:, None] > 0.5, options)
    itself = condition is plain
    estimates |= _language(condition.shift, "", options, itself)
    estimates |= _language(condition.packed, "packed_", options, itself)
    broken = np.array([[is_degenerate(text) for text in texts] for texts in condition.continuations])
    estimates["continuation_ce"] = _continuation_ce(condition, options)
    estimates["degenerate"] = _rate(broken, options)
    change = (scores - before).mean(1)
    estimates["toxicity_change"] = SAME if itself else bootstrap_mean(change, bounds=CHANGES, **options)
    estimates["worse"] = SAME if itself else _rate(change[:, None] > 0, options)
    estimates["removed_per_nat"] = UNKNOWN
    shift = condition.shift
    if not itself and shift is not None:
        paid = shift.nats - shift.plain_nats
        estimates["removed_per_nat"] = removed_per_nat(-change, paid, shift.tokens, bounds=CHANGES, **options)
    return estimates


def _language(shift: LanguageShift | None, prefix: str, options: Options, itself: bool) -> dict[str, Estimate]:
    """Of a model beside itself, what compares the two is known exactly."""
    if shift is None:
        return {}
    ce = _per_token(shift.nats, shift.tokens, options, bounds=AMOUNTS)
    agreement = clustered_rate(shift.agreement, shift.tokens, level=options["level"])
    change = _per_token(shift.nats - shift.plain_nats, shift.tokens, options)
    estimates = {
        "ce": ce,
        "perplexity": Estimate(*(float(np.exp(value)) for value in ce)),
        "kl": SAME if itself else _per_token(shift.kl, shift.tokens, options, bounds=AMOUNTS),
        "agreement": Estimate(1.0, 1.0, 1.0) if itself else agreement,
        "ce_change": SAME if itself else change,
    }
    return {prefix + name: estimate for name, estimate in estimates.items()}


def _rate(hits: Bool[np.ndarray, "prompt sample"], options: Options) -> Estimate:
    """Wilson's interval; several samples of one prompt count for as many as they are worth."""
    n_prompts, n_samples = hits.shape
    prompts = None if n_samples == 1 else np.repeat(np.arange(n_prompts), n_samples)
    return rate_interval(hits.reshape(-1).astype(np.float64), groups=prompts, level=options["level"])


def _per_token(
    sums: Float[np.ndarray, " row"],
    tokens: Int[np.ndarray, " row"],
    options: Options,
    *,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """The mean over all tokens, rows resampled whole; wider where rows that stand together are alike."""
    return bootstrap_ratio(sums, tokens, serial=True, bounds=bounds, **options)


def _continuation_ce(condition: Condition, options: Options) -> Estimate:
    nats, tokens = (np.array(values).sum(1) for values in condition.fluency)
    spoken = int((tokens > 0).sum())  # all samples of a prompt may be blank
    return _per_token(nats, tokens, options, bounds=AMOUNTS) if spoken > 1 else UNKNOWN
