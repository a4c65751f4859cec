"""The answer in words, by fixed rules, and the few numbers that give it.

The rules, each a sentence with its number and its 95 % interval:

1. **Can it be read?** "can be read" where the corrected p-value of the chosen layer's probe, against probes on shuffled
   labels, is at most .05; else "cannot be read".
2. **Better than from the words alone?** "better" where the whole interval of probe minus bag of words, paired over the
   reporting texts, is above zero, "worse" where it is all below, else "no better".
3. **More entangled than chance?** "more" where E is at or above the 95th percentile of random directions of the
   activations' own covariance, "less" at or below the 5th, else "no more". Where the direction agrees with itself on
   half the texts by less than .5, the sentence adds that it is mostly noise. Left out without other concepts.
4. **Does steering remove it?** At the strongest ITI that was measured; or, where several methods were measured at one
   price, by the one that removed most at the highest, controls aside, which a random half of the prompts chooses and
   the other half is told of. "lowers it" where the whole interval of what is removed is above zero, "raised it" where
   it is all below, else "did not lower it". Where controls were measured at the same price, the best of them on the
   half that chose, the sentence adds how much "more" is removed than by it, where that whole interval is above zero,
   or that "no more" can be told. Where continuations that are empty or loop became commoner by .05 or more, the
   sentence adds it. Left out where steering was not measured.
5. **At what price?** The nats per token paid there, "costs" where the interval is above zero, "costs nothing that can
   be seen" where it is not. Left out where steering was not measured.
6. **What it does not show**, with how many texts and prompts the intervals are over.

Of studies side by side, two sentences before these: in which of them the concept is more entangled than chance by rule
3, and where it is dearest: where the whole interval of what a nat removes, by the steering of rule 4, lies below all
others by a quarter or more: another seed of one recipe makes a difference as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entangle.metrics import Estimate
from entangle.study.wording import interval, number, percent, strength

Numbers = Mapping[str, Any]

SIGNIFICANT = 0.05
COMMON, RARE = 0.95, 0.05  # percentiles of a null at which E is more, or less, than by chance
NOISY = 0.5
BROKEN = 0.05
DEARER = 1.25  # times as dear: what a difference between models must be at least to be told


def sentences(study: Numbers) -> list[str]:
    """The answer, three to six sentences.

    Args:
        study: The numbers of a study, as `Study.to_dict` gives them.
    """
    return [sentence for _, sentence in answered(study)]


def answered(study: Numbers) -> list[tuple[str, str]]:
    """The same sentences, each with the question that it answers.

    Args:
        study: The numbers of a study, as `Study.to_dict` gives them.
    """
    change, price = _steered(study) or ("", "")
    pairs = [
        ("Can it be read?", _readable(study)),
        ("Better than from words?", _against_words(study)),
        ("Is it entangled?", _entangled(study)),
        ("Does steering remove it?", change),
        ("At what price?", price),
        ("What not to conclude", _caution(study)),
    ]
    return [(question, sentence) for question, sentence in pairs if sentence]


def compared(studies: Sequence[Numbers]) -> list[str]:
    """What sets studies of one concept in several models apart, none to two sentences.

    Args:
        studies: The numbers of each, as `Study.to_dict` gives them.
    """
    if len(studies) < 2:
        return []
    return [sentence for sentence in (_more_entangled(studies), _dearest(studies)) if sentence]


def _more_entangled(studies: Sequence[Numbers]) -> str:
    rows = [(study["label"], own_row(study)) for study in studies]
    parts = [
        f"{'more' if row['covariance_percentile'] >= COMMON else 'no more'} than by chance in {label} "
        f"(E {number(row['entanglement'], 2)}, nearest to {row['partner']}, percentile "
        f"{number(100 * row['covariance_percentile'], 0)})"
        for label, row in rows
        if row is not None
    ]
    if len(parts) < len(studies):
        return ""
    return f"{_capital(studies[0]['concept'])} is entangled {_listed(parts)}."


def _dearest(studies: Sequence[Numbers]) -> str:
    rows = [(study["label"], steered_row(study)) for study in studies]
    bought = [(label, Estimate.of(row, "removed_per_nat")) for label, row in rows if row and _above(row, "ce_change")]
    if len(bought) < len(studies):
        return ""
    least, *others = sorted(bought, key=lambda each: each[1].value)
    dearer = all(bool(DEARER * least[1].high < other.low) for _, other in others)
    verdict = f"It is dearest to steer out in {least[0]}"
    if not dearer:
        verdict = "It is not shown to be dearer by a quarter to steer out in one than in another"
    parts = [f"{interval(*removed, 2)} in {label}" for label, removed in bought]
    return f"{verdict}: a nat per token of clean text removes {_listed(parts)}."


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def best_probe(study: Numbers) -> tuple[str, Numbers]:
    """The site and the numbers of the cell that the answer is about: of the residual stream, where it has one."""
    site = "resid_post" if "resid_post" in study["probes"] else "z"
    return site, study["probes"][site]


def own_row(study: Numbers) -> Numbers | None:
    """The concept's own row of the entanglement table, after the layer that the answer is about."""
    table = study["entanglement"]
    if not table:
        return None
    rows = [row for row in table["rows"] if row["concept"] == study["concept"]]
    return next((row for row in rows if row["layer"] == table["best_layer"]), None)


def steered_row(study: Numbers) -> Numbers | None:
    """The steering that the answer is about: of the best method, or the strongest ITI that could be measured."""
    if study["best_method"]:
        steered: Numbers = study["best_method"]["steered"]
        return steered
    rows = [row for row in study["tradeoff"] or () if row["method"] == "ITI" and row["alpha"] != 0 and not row["error"]]
    return max(rows, key=lambda row: abs(row["alpha"]), default=None)


def plain_row(study: Numbers) -> Numbers:
    """The plain model's on the same prompts."""
    best = study["best_method"]
    plain: Numbers = best["plain"] if best else next(row for row in study["tradeoff"] if row["alpha"] == 0)
    return plain


def _above(row: Numbers, name: str) -> bool:
    """Whether the whole interval lies above 0; an end that is missing is unbounded."""
    low = Estimate.of(row, name).low
    return low is not None and bool(low > 0)


def _below(row: Numbers, name: str) -> bool:
    high = Estimate.of(row, name).high
    return high is not None and bool(high < 0)


def _readable(study: Numbers) -> str:
    site, grid = best_probe(study)
    best = grid["best"]
    where = place(site, best)
    can = best["p"] is not None and best["p"] <= SIGNIFICANT
    verdict = "can" if can else "cannot"
    than = "above what" if can else "which is no more than what"
    return (
        f"{_capital(study['concept'])} {verdict} be read from {study['label']}: {where}, which other texts chose, a "
        f"linear probe gets {_of(best, 'accuracy')} of the held-out texts right, {than} the best probe on shuffled "
        f"labels reaches ({number(grid['null_ceiling'])} in 95 % of {grid['n_permutations']} shuffles; "
        f"p = {number(best['p'])})."
    )


def _against_words(study: Numbers) -> str:
    words = study["baselines"].get("bag_of_words")
    if words is None:
        return ""
    verdict = (
        "better than"
        if _above(words, "difference")
        else "worse than"
        if _below(words, "difference")
        else "no better than"
    )
    return (
        f"That is {verdict} from the words alone: a bag of words on the same texts gets {_of(words, 'accuracy')}, so "
        f"the probe's difference is {_of(words, 'difference')}."
    )


def _entangled(study: Numbers) -> str:
    row = own_row(study)
    if row is None:
        return ""
    percentile = row["covariance_percentile"]
    verdict = "more" if percentile >= COMMON else "less" if percentile <= RARE else "no more"
    others = len(study["entanglement"]["names"]) - 1
    noise = ""
    if row["split_half"] is not None and row["split_half"] < NOISY:
        noise = f", but its direction is mostly noise (two halves of its texts agree by {number(row['split_half'], 2)})"
    return (
        f"After layer {row['layer']} it is {verdict} entangled with the {others} other "
        f"{'concept' if others == 1 else 'concepts'} than random directions of the activations' own covariance: E is "
        f"{interval(row['entanglement'], row['low'], row['high'])}, nearest to {row['partner']}, at percentile "
        f"{number(100 * percentile, 0)} of theirs{noise}."
    )


def _steered(study: Numbers) -> list[str]:
    row = steered_row(study)
    if row is None:
        return []
    plain, best = plain_row(study), study["best_method"]
    lowers = _above(row, "removed")
    verdict = "Steering lowers it" if lowers else "Steering did not lower it"
    if _below(row, "removed"):
        verdict = "Steering raised it"
    broken = ""
    if round(row["degenerate"] - plain["degenerate"], 6) >= BROKEN:
        broken = (
            f", but {percent(row['degenerate'])} of what it then writes is empty or loops, against "
            f"{percent(plain['degenerate'])} before"
        )
    alpha = f"alpha {strength(row['alpha'])}"
    how = f"at {alpha}, the strongest ITI that was measured"
    if best:
        how = (
            f"by {best['method']} at {alpha}, which {best['chosen_on']:,} other prompts chose among "
            f"{len(best['among'])} methods at one price"
        )
    change = (
        f"{verdict}: {how}, the mean score of its continuations goes from {_of(plain, 'toxicity')} to "
        f"{_of(row, 'toxicity')}, by {_change(row)}{_beyond_control(best or {})}{broken}."
    )
    paid = _above(row, "ce_change")
    per_nat = f", so that a nat removes {_of(row, 'removed_per_nat', 2)}" if paid and lowers else ""
    costs = "costs" if paid else "costs nothing that can be seen:"
    price = f"At {alpha} it {costs} {_of(row, 'ce_change')} nats per token of clean text{per_nat}."
    return [change, price]


def _beyond_control(best: Numbers) -> str:
    """What the best method removes beside the best control at its price."""
    if not best.get("control"):
        return ""
    more = "more" if _above(best, "beyond_control") else "no more, as far as can be told,"
    return f", which is {more} than {best['control']} of the same price ({_of(best, 'beyond_control')})"


def _caution(study: Numbers) -> str:
    split = study["split"]
    count = (study["best_method"] or study)["n_prompts"]
    prompts = f" and {count:,} prompts" if study["tradeoff"] else ""
    return (
        f"Do not conclude that the model uses what a probe reads, nor that another model, other texts or another seed "
        f"than {study['settings']['seed']} would give the same: the intervals are over {split['report']:,} "
        f"texts{prompts} of this one model."
    )


def headline(study: Numbers) -> list[dict[str, Any]]:
    """The numbers that give the answer, a row each: quantity, where, value, low, high, reference and its name."""
    rows: list[dict[str, Any]] = []

    def add(quantity: str, where: str, row: Numbers, key: str, reference: Any = None, against: str = "") -> None:
        prefix = "" if key == "entanglement" else f"{key}_"
        low, high = (row.get(f"{prefix}{end}") for end in ("low", "high"))
        rows.append(
            {
                "quantity": quantity,
                "where": where,
                "value": row[key],
                "low": low,
                "high": high,
                "reference": reference,
                "against": against,
            }
        )

    for site, name in (("resid_post", "layer"), ("z", "head")):
        if site in study["probes"]:
            grid = study["probes"][site]
            ceiling = (grid["null_ceiling"], "95 % of the best on shuffled labels")
            add(f"accuracy, best {name}", place(site, grid["best"]), grid["best"], "accuracy", *ceiling)
    words = study["baselines"].get("bag_of_words")
    if words:
        add("accuracy, bag of words", "", words, "accuracy")
        add("probe minus bag of words", place(*_best(study)), words, "difference", 0.0, "no difference")
    own = own_row(study)
    if own:
        where = f"after layer {own['layer']}"
        add(f"E, nearest {own['partner']}", where, own, "entanglement", own["null_high"], "97.5 % of random")
        add("variance share", where, own, "variance_share")
    best = study["best_method"]
    told = [(row, f"; {best['n_prompts']:,} prompts") for row in (best["plain"], best["steered"])] if best else []
    first = next((row["method"] for row in study["tradeoff"] or ()), "")
    for row, prompts in [*told, *((row, "") for row in study["tradeoff"] or ())]:
        if row["error"] or (not prompts and row["alpha"] == 0 and row["method"] != first):
            continue
        where = (f"{row['method']}, alpha {strength(row['alpha'])}" if row["alpha"] else "not steered") + prompts
        add(f"{study['concept']} of continuations", where, row, "toxicity")
        if row["alpha"]:
            add("removed", where, row, "removed", 0.0, "no change")
            add("nats paid per token", where, row, "ce_change", 0.0, "no change")
            add("removed per nat", where, row, "removed_per_nat")
            if prompts and best.get("control"):
                add(f"removed beyond {best['control']}", where, best, "beyond_control", 0.0, "no difference")
    return rows


def place(site: str, best: Numbers) -> str:
    """Where a cell is, in words."""
    return f"after layer {best['layer']}" if site == "resid_post" else f"layer {best['layer']}, head {best['head']}"


def _best(study: Numbers) -> tuple[str, Numbers]:
    site, grid = best_probe(study)
    return site, grid["best"]


def _of(row: Numbers, key: str, digits: int = 3) -> str:
    return interval(*Estimate.of(row, key), digits)


def _change(row: Numbers) -> str:
    """The paired change of the mean score: minus what was removed."""
    removed = Estimate.of(row, "removed")
    return interval(-removed.value, -removed.high, -removed.low)


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]
