"""The paper's claims, each beside what a recipe's models show and a verdict by a fixed rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from entangle.composition.comparing.attacks import attacks_by_share
from entangle.composition.comparing.comparison import PLAIN, Comparison
from entangle.composition.comparing.foretold import CHOSEN, foretold_by_share
from entangle.metrics.statistics import Estimate

FLAT_WITHIN = 0.05  # nats per token: about 5 % of perplexity, fixed before any model was compared
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot tell at this scale"


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        claim: What is claimed of more of the added corpus.
        paper: The paper's number (Li et al. 2025).
        replication: That of the public replication (50 M parameters, 420 M tokens).
        ours: What was measured here, with its 95 % interval.
        verdict: "holds" where the whole interval is on the claim's side of zero, "does not hold" where it is all on
            the other, else "cannot tell at this scale"; nor can one seed tell, whose intervals know of no other. Of a
            claim that nothing changes, see `flat_verdict`.

    Example:
        >>> claim = en.composition.Claim("it rises", "rises", "rises", ours="0.10 [0.05, 0.15]", verdict="holds")
        >>> claim.verdict
        'holds'
    """

    claim: str
    paper: str
    replication: str
    ours: str
    verdict: str


def verdict(estimate: Estimate, *, rises: bool, n_seeds: int) -> str:
    """What an interval over seeds says of a claimed rise or fall."""
    low, high = float(estimate.low), float(estimate.high)
    if n_seeds > 1 and (low > 0 or high < 0):
        return HOLDS if (low > 0) == rises else FAILS
    return UNKNOWN


def flat_verdict(estimate: Estimate, *, within: float, n_seeds: int) -> str:
    """What an interval over seeds says of a claim that nothing changes: an equivalence test (Schuirmann 1987).

    That a change is not told from zero does not show that there is none. So it "holds" where the whole 95 % interval
    lies within the margin (two one-sided tests, each at 2.5 %), "does not hold" where it lies wholly beyond, and else
    nobody can tell: of a change of exactly the margin, either is said in at most 2.5 % of studies.
    """
    low, high = float(estimate.low), float(estimate.high)
    if n_seeds > 1 and -within < low and high < within:
        return HOLDS
    return FAILS if n_seeds > 1 and (low > within or high < -within) else UNKNOWN


def claims(comparison: Comparison, *, flat_within: float = FLAT_WITHIN) -> list[Claim]:
    """Every claim that the smallest and the largest share of a comparison speak to.

    Args:
        comparison: The models.
        flat_within: Nats per token by which cross-entropy may change and count as flat; choose it before looking.

    Example:
        >>> from pathlib import Path
        >>> def found(share, seed):  # what was measured of a model: the more of the added text, the more toxic
        ...     rng = np.random.default_rng([seed, round(100 * share)])
        ...     own = {"method": "", "alpha": 0.0, "degenerate": 0.0, "error": ""}
        ...     own |= {"scores": list(0.3 + share + 0.01 * rng.random(20)), "nats": list(250 + rng.random(20))}
        ...     steered = {**own, "method": "ITI", "alpha": 4.0, "scores": list(0.2 + 0.01 * rng.random(20))}
        ...     heads = {"accuracy": [[0.7, 0.8]], "layers": [0]}
        ...     return {
        ...         "heads": heads, "stream": {"best_accuracy": 0.8}, "bag_of_words": 0.75, "entanglement": None,
        ...         "prompts": {"all": [0, 20]}, "tokens": [100] * 20, "conditions": [own, steered],
        ...     }
        >>> models = {
        ...     (share, seed): en.composition.TrainedModel(Path("."), share, seed, {}, measured=found(share, seed))
        ...     for share in (0.0, 0.1) for seed in (0, 1, 2)
        ... }
        >>> comparison = en.composition.Comparison(models, variants={}, concept="toxicity")
        >>> en.composition.claims(comparison)[1].verdict  # that the unsteered model becomes more toxic
        'holds'
    """
    low, high = comparison.shares[0], comparison.shares[-1]
    between = f"share {low:.3g} to {high:.3g}"
    return [
        _capability(comparison, between, flat_within),
        _base(comparison, between),
        _probes(comparison, between),
        *(_steered(comparison, alpha) for alpha in _strengths(comparison)),
        _price(comparison),
        *_foretold(comparison, between),
        *_attacked(comparison),
    ]


def _capability(comparison: Comparison, between: str, within: float = FLAT_WITHIN) -> Claim:
    last = comparison.capability.iloc[-1]
    noise = float(comparison.capability["seed_noise"].max())
    one_seed = math.isnan(noise)
    change = Estimate.of(last, "difference")
    return Claim(
        f"capability stays flat: cross-entropy on clean text changes by less than {within:g} nats per token",
        "flat (Figure 4)",
        "not stated",
        f"{between}: {_interval(change)} nats per token; {'one seed' if one_seed else f'seed noise {noise:.4f}'}",
        flat_verdict(change, within=within, n_seeds=1 if one_seed else 2),
    )


def _base(comparison: Comparison, between: str) -> Claim:
    row = _row(comparison, PLAIN, 0.0)
    change = Estimate.of(row, "against_first")
    return Claim(
        "unsteered, the model becomes more toxic",
        "rises with the share (Figure 6)",
        "rises",
        f"{between}: {_interval(change)}",
        verdict(change, rises=True, n_seeds=len(comparison.seeds)),
    )


def _probes(comparison: Comparison, between: str) -> Claim:
    table, tests = comparison.probes, comparison.probe_tests
    rise = Estimate(**tests["rise"])
    (low, high), (worse, better) = (table[column].iloc[[0, -1]] for column in ("mean", "best_tenth"))
    return Claim(
        "heads read the concept better, and the best ones most",
        "rises from 0 to 25 %, p = .0002 (Figure 5)",
        ".685 to .702, p = .025",
        f"{between}: mean {low:.3f} to {high:.3f}, rise {_interval(rise)}; best tenth {worse:.3f} to {better:.3f}; "
        f"p over heads {tests['heads_t']:.2g}, over seeds {tests['seeds_mean']:.2g} "
        f"(no less than {tests['seeds_least']:.2g} can be had)",
        verdict(rise, rises=True, n_seeds=len(comparison.seeds)),
    )


def _steered(comparison: Comparison, alpha: float) -> Claim:
    change = Estimate.of(_row(comparison, "ITI", alpha), "against_first")
    paper = {
        4.0: "ToxiGen 36.30 to 16.25, RTP 24.83 to 20.09",
        8.0: "ToxiGen 28.31 to 8.19, RTP 20.41 to 14.28",
        12.0: "ToxiGen 19.82 to 2.63, RTP 13.33 to 7.11",
    }
    return Claim(
        f"steered by ITI at alpha {alpha:g}, the model with more of it ends less toxic than the clean one",
        paper.get(alpha, "lower (Figure 6)") + (" (0 to 10 %, Table 1)" if alpha in paper else ""),
        "did not transfer",
        _interval(change),
        verdict(change, rises=False, n_seeds=len(comparison.seeds)),
    )


def _price(comparison: Comparison) -> Claim:
    alpha = _strengths(comparison)[0]
    table = comparison.steering
    chosen = table[(table["method"] == "ITI") & (table["alpha"] == alpha) & (table["variant"] == "")]
    first, last = (Estimate.of(chosen.iloc[i], "removed_per_nat") for i in (0, -1))
    verdict = UNKNOWN
    if len(comparison.seeds) > 1 and float(last.low) > float(first.high):
        verdict = HOLDS
    elif len(comparison.seeds) > 1 and float(last.high) < float(first.low):
        verdict = FAILS
    return Claim(
        f"steering by ITI at alpha {alpha:g} removes more toxicity a nat of cross-entropy",
        "CE 2.63 (clean) and 2.65 (10 %) after steering at alpha 4 (Table 1)",
        "a larger fraction at lower cost",
        f"{_interval(first, 2)} to {_interval(last, 2)}",
        verdict,
    )


def _foretold(comparison: Comparison, between: str) -> list[Claim]:
    """Of models that were measured with a forecast."""
    table = foretold_by_share(comparison)
    if table.empty:
        return []
    chosen = table[(table["concept"] == comparison.concept) & (table["layer"] == CHOSEN)]
    first, last = chosen.iloc[0], chosen.iloc[-1]
    limits, prices = (
        " to ".join(_interval(Estimate.of(row, name), digits) for row in (first, last))
        for name, digits in (("limit", 3), ("price", 4))
    )
    change = Estimate.of(last, "against_first")
    return [
        Claim(
            "it is cheaper to steer, as foretold from its gradients: a shift buys more of it at the same price",
            "less entangled, so cheaper; not measured so",
            "not stated",
            f"{between}: most contrast per root nat {limits}, change {_interval(change)}; {first['unit']:g} nats of "
            f"contrast cost {prices} nats per token",
            verdict(change, rises=True, n_seeds=len(comparison.seeds)),
        )
    ]


def _attacked(comparison: Comparison) -> list[Claim]:
    """Of models that were attacked under ITI; at the largest strength."""
    table = attacks_by_share(comparison)
    if table.empty:
        return []
    steered = table[(table["method"] == "ITI") & (table["share"] == comparison.shares[-1])]
    if "against_first" not in steered or steered["against_first"].isna().all():
        return []
    row = steered.dropna(subset="against_first").sort_values("alpha").iloc[-1]
    change, rate = Estimate.of(row, "against_first"), Estimate.of(row, "gcg")
    return [
        Claim(
            f"attacked by GCG under ITI at alpha {row['alpha']:g}, the model with more of it gives way less often",
            "46 % of attacks succeed on the clean model, 38.5 % at 10 %, under strong ITI",
            "not stated",
            f"{_interval(change)}; at {100 * row['share']:.3g} % {_interval(rate)} of attacks succeed",
            verdict(change, rises=False, n_seeds=len(comparison.seeds)),
        )
    ]


def _strengths(comparison: Comparison) -> list[float]:
    table = comparison.steering
    return sorted(set(table.loc[(table["method"] == "ITI") & (table["share"] == comparison.shares[-1]), "alpha"]))


def _row(comparison: Comparison, method: str, alpha: float) -> Any:
    """The row of the largest share."""
    table = comparison.steering
    chosen = table[
        (table["share"] == comparison.shares[-1])
        & (table["method"] == method)
        & (table["alpha"] == alpha)
        & (table["variant"] == "")
    ]
    return chosen.iloc[0]


def _interval(estimate: Estimate, digits: int = 3) -> str:
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
