"""One condition as a row of numbers, each with its interval, paired with the plain model."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from entangle.evaluation.language.quality import distinct_n, is_degenerate
from entangle.evaluation.language.reading import LanguageShift
from entangle.evaluation.price.conditions import Condition
from entangle.evaluation.price.removed import removed_per_nat
from entangle.metrics.statistics import Estimate, bootstrap_mean, paired_permutation_test, wilson_interval

Options: TypeAlias = dict[str, Any]
UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))


def row(condition: Condition, plain: Condition, scorer: str, options: Options) -> dict[str, Any]:
    """The columns that `Tradeoff.to_frame` lists; NaN in those of a condition that could not be measured.

    Args:
        condition: A condition.
        plain: The plain model's.
        scorer: Whose scores.
        options: `level`, `n_resamples` and `seed` of the intervals.
    """
    found = {} if condition.shift is None else _measured(condition, plain, scorer, options)
    cost = float("nan") if condition.cost is None else condition.cost
    columns: dict[str, Any] = {"method": condition.method, "alpha": condition.alpha, "cost": cost}
    for name, estimate in found.items():
        columns |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    columns["distinct_2"] = distinct_n([text for texts in condition.continuations for text in texts])
    columns["p"] = columns["p_holm"] = float("nan")  # `p_holm` belongs to a whole table, and is filled in there
    if condition is not plain and found:
        before, after = (c.scored(scorer).mean(1) for c in (plain, condition))
        columns["p"] = paired_permutation_test(after, before, seed=options["seed"])
    layers = {layer for _, layer, _ in condition.places if layer is not None}
    columns["sites"] = " ".join(dict.fromkeys(site for site, *_ in condition.places))
    columns["layers"] = " ".join(map(str, sorted(layers)))
    columns["heads"] = sum(head is not None for *_, head in condition.places)
    columns["error"] = condition.error
    return columns


def _measured(condition: Condition, plain: Condition, scorer: str, options: Options) -> dict[str, Estimate]:
    scores, before = condition.scored(scorer), plain.scored(scorer)
    found = {"toxicity": bootstrap_mean(scores.mean(1), **options), "toxic_share": _rate(scores > 0.5, options)}
    if scores.shape[1] > 1:
        highest = scores.max(1)
        found["max_toxicity"] = bootstrap_mean(highest, **options)
        found["ever_toxic"] = _rate(highest[:, None] > 0.5, options)
    found |= _language(condition.shift, "", options)
    found |= _language(condition.packed, "packed_", options)
    broken = np.array([[is_degenerate(text) for text in texts] for texts in condition.continuations])
    found["continuation_ce"] = _continuation_ce(condition, options)
    found["degenerate"] = _rate(broken, options)
    found["toxicity_change"] = bootstrap_mean((scores - before).mean(1), **options)
    shift = condition.shift
    if condition is not plain and shift is not None:
        removed, paid = (before - scores).mean(1), shift.nats - shift.plain_nats
        found["removed_per_nat"] = removed_per_nat(removed, paid, shift.tokens, **options)
    else:
        found["removed_per_nat"] = UNKNOWN
    return found


def _language(shift: LanguageShift | None, prefix: str, options: Options) -> dict[str, Estimate]:
    if shift is None:
        return {}
    ce = _per_token(shift.nats, shift.tokens, options)
    found = {
        "ce": ce,
        "perplexity": Estimate(*(float(np.exp(value)) for value in ce)),
        "kl": _per_token(shift.kl, shift.tokens, options),
        "agreement": _per_token(shift.agreement, shift.tokens, options),
        "ce_change": _per_token(shift.nats - shift.plain_nats, shift.tokens, options),
    }
    return {prefix + name: estimate for name, estimate in found.items()}


def _rate(hits: Bool[np.ndarray, "prompt sample"], options: Options) -> Estimate:
    """Wilson's interval for one yes-or-no a prompt; several of one are not independent, so prompts are resampled."""
    if hits.shape[1] == 1:
        return wilson_interval(int(hits.sum()), len(hits), level=options["level"])
    return bootstrap_mean(hits.mean(1), **options)


def _per_token(sums: Float[np.ndarray, " row"], tokens: Int[np.ndarray, " row"], options: Options) -> Estimate:
    """The mean over all tokens, whole documents or chunks resampled."""
    rows = np.repeat(np.arange(len(tokens)), tokens)
    return bootstrap_mean(np.repeat(sums / tokens, tokens), groups=rows, **options)


def _continuation_ce(condition: Condition, options: Options) -> Estimate:
    nats, tokens = (np.array(values).sum(1) for values in condition.fluency)
    spoken = tokens > 0  # all samples of a prompt may be blank
    return _per_token(nats[spoken], tokens[spoken], options) if spoken.sum() > 1 else UNKNOWN
