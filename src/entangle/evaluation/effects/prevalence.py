"""How often a concept occurs in data, in what a model says and in what it says when steered, errors taken out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from entangle.data import LabelledTexts, read_labels, texts_of
from entangle.errors import EntangleError
from entangle.evaluation.scoring.scorers import Scorer, score, scorer_name
from entangle.metrics import (
    ErrorRates,
    holm,
    prevalence_difference,
    rate_interval,
    unclipped_prevalence,
)
from entangle.metrics import prevalence as corrected
from entangle.storage.digest import digest
from entangle.storage.record import read, taken_apart, write

KIND, VERSION = "Prevalences", 1
Texts: TypeAlias = Sequence[str] | Sequence[Sequence[str]]
Labelled: TypeAlias = LabelledTexts | tuple[Sequence[str], Any]


class Flags(NamedTuple):
    """What a scorer flags among some texts.

    Args:
        flagged: 0 or 1 for each text.
        groups: The prompt of each text, or the text itself, by number.
        errors: The scorer's error rates on such texts.
        labelled: What the labelled texts are known by that these were counted on: rates of other texts err by
            themselves, even where the counts are the same.

    Example:
        >>> errors = en.metrics.ErrorRates(hits=45, positives=50, rejections=80, negatives=100)
        >>> flags = en.evaluation.Flags(np.array([1.0, 0.0]), np.array([0, 1]), errors)
        >>> float(flags.flagged.mean())
        0.5
    """

    flagged: Float[np.ndarray, " text"]
    groups: Int[np.ndarray, " text"]
    errors: ErrorRates
    labelled: str = ""


@dataclass(frozen=True)
class Prevalences:
    """How often a concept occurs in several sets of texts, by one scorer or several; make one with `prevalence`.

    Attributes:
        flags: Scorer -> set of texts -> what it flags there.
        paired: Pairs of sets whose k-th group is the same prompt.
        threshold: A score above it is a flag.
        settings: What was asked.

    Example:
        >>> scorer = en.LinearToxicityScorer.fit(texts[:48], labels[:48])
        >>> sets = {"data": texts[48:72], "polite": clean[:40]}
        >>> found = en.evaluation.prevalence(scorer, sets, (texts[72:], labels[72:]))
        >>> found.to_frame()[["texts", "n"]].to_numpy().tolist()
        [['data', 24], ['polite', 40]]
        >>> found.save("prevalences")
        >>> en.evaluation.Prevalences.load("prevalences").to_frame().equals(found.to_frame())
        True
    """

    flags: Mapping[str, Mapping[str, Flags]]
    paired: tuple[tuple[str, str], ...] = ()
    threshold: float = 0.5
    settings: Mapping[str, Any] = field(repr=False, default_factory=dict)

    def to_frame(self, *, level: float = 0.95) -> pd.DataFrame:
        """One row for each scorer and set of texts.

        Columns: `scorer`, `texts`, `n`, `groups` (prompts); `flagged`, the share that the scorer flags, with its
        interval; `sensitivity` and `specificity` with theirs, and the labelled texts that they were counted on,
        `positives` and `negatives`; `prevalence` with its interval, within [0, 1]; `unclipped`, the formula's own
        value, and `clipped`, whether that lies outside; `holds` is False where it lies so far outside that the scorer
        cannot err on these texts as on the labelled ones, and the interval is then all of [0, 1].
        """
        rows = []
        for scorer, sets in self.flags.items():
            for name, of_set in sets.items():
                groups = _groups(of_set)
                raw = unclipped_prevalence(of_set.flagged, of_set.errors)
                sensitivity, specificity = of_set.errors.intervals(level)
                estimate = corrected(of_set.flagged, of_set.errors, groups=groups, level=level)
                rows.append(
                    {
                        "scorer": scorer,
                        "texts": name,
                        "n": len(of_set.flagged),
                        "groups": len(np.unique(of_set.groups)),
                        **rate_interval(of_set.flagged, groups=groups, level=level).columns("flagged"),
                        **sensitivity.columns("sensitivity"),
                        **specificity.columns("specificity"),
                        "positives": of_set.errors.positives,
                        "negatives": of_set.errors.negatives,
                        **estimate.columns("prevalence"),
                        "unclipped": raw,
                        "clipped": not 0 <= raw <= 1,
                        "holds": 0 <= raw <= 1 or (estimate.low, estimate.high) != (0, 1),
                    }
                )
        return pd.DataFrame(rows)

    def comparisons(self, *, level: float = 0.95) -> pd.DataFrame:
        """One row for each scorer and pair of sets: does the concept occur more often in the first?

        Columns: `scorer`, `first`, `second` (a later set beside an earlier one), `difference` with its interval
        (unclipped, see `prevalence_difference`), `p`, `p_holm` over the whole table, and `verdict`.
        """
        rows = []
        for scorer, sets in self.flags.items():
            names = list(sets)
            for first, second in [(b, a) for k, b in enumerate(names) for a in names[:k]]:
                one, other = sets[first], sets[second]
                difference = prevalence_difference(
                    one.flagged,
                    other.flagged,
                    one.errors if one[2:] == other[2:] else (one.errors, other.errors),
                    groups=(_groups(one), _groups(other)),
                    paired=(first, second) in self.paired or (second, first) in self.paired,
                    level=level,
                )
                row = {"scorer": scorer, "first": first, "second": second}
                rows.append({**row, **difference.estimate.columns("difference"), "p": difference.p_value})
        if not rows:
            raise EntangleError("a comparison needs two sets of texts or more; give them to prevalence")
        frame = pd.DataFrame(rows)
        frame["p_holm"] = holm(frame["p"].tolist()).numpy()
        frame["verdict"] = [_verdict(row, 1 - level) for row in frame.to_dict("records")]
        return frame

    def plot(self, *, ax: Any = None) -> Any:
        """Each set's prevalence by each scorer, with intervals; `describe()` says the same in words."""
        from entangle import plots

        frame = self.to_frame()
        series: dict[str, Any] = {
            str(scorer): tuple(
                part[column].to_numpy() for column in ("prevalence", "prevalence_low", "prevalence_high")
            )
            for scorer, part in frame.groupby("scorer", sort=False)
        }
        names = list(next(iter(self.flags.values())))
        return plots.forest(names, series, xlabel="prevalence, without the scorer's errors", ax=ax)

    def describe(self) -> str:
        """The figure and the comparisons in words."""
        frame = self.to_frame()
        lines = [
            f"{row['scorer']}: {row['texts']} {row['prevalence']:.3g} [{row['prevalence_low']:.3g}, "
            f"{row['prevalence_high']:.3g}]{_remark(row)}, {row['flagged']:.3g} flagged."
            for row in frame.to_dict("records")
        ]
        if len(frame) > len(self.flags):
            compared = self.comparisons().to_dict("records")
            lines += [f"{row['scorer']}: {row['verdict']} (p = {row['p_holm']:.2g})." for row in compared]
        return "\n".join(lines)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write it as safetensors and JSON."""
        tensors: dict[str, torch.Tensor] = {}
        sets: list[Any] = []
        for scorer, each in self.flags.items():
            for name, estimate in each.items():
                tensors[f"{len(sets)}.flagged"] = torch.tensor(estimate.flagged, dtype=torch.float64)
                tensors[f"{len(sets)}.groups"] = torch.tensor(estimate.groups, dtype=torch.int64)
                sets.append([scorer, name, list(estimate.errors), estimate.labelled])
        meta = {"sets": sets, "paired": self.paired, "threshold": self.threshold, "settings": dict(self.settings)}
        write(directory, KIND, VERSION, tensors, meta)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            EntangleError: Nothing usable is there.
        """
        tensors, meta = read(directory, KIND, VERSION)
        with taken_apart(directory, KIND):
            flags: dict[str, dict[str, Flags]] = {}
            for k, (scorer, name, errors, *labelled) in enumerate(meta["sets"]):
                parts = tensors[f"{k}.flagged"].numpy(), tensors[f"{k}.groups"].numpy()
                flags.setdefault(scorer, {})[name] = Flags(*parts, ErrorRates(*errors), *labelled)
            paired = tuple((first, second) for first, second in meta["paired"])
            return cls(flags, paired, meta["threshold"], meta["settings"])

    def _repr_html_(self) -> str:
        words = escape(self.describe()).replace("\n", "<br>")
        table = self.to_frame().to_html(index=False, border=0, float_format=lambda x: f"{x:.3g}")
        return f"<p>{words}</p>{table}"


def prevalence(
    scorer: Scorer | Mapping[str, Scorer],
    texts: Mapping[str, Texts],
    validation: Labelled | Mapping[str, Labelled],
    *,
    threshold: float = 0.5,
    paired: Sequence[tuple[str, str]] = (),
) -> Prevalences:
    """How often a concept occurs in sets of texts, corrected for how often the scorer is wrong.

    A scorer that is wrong in 5 % of harmless texts finds a twentieth of any corpus toxic. Its sensitivity and
    specificity are counted on labelled texts, the share that it flags is corrected by them (Rogan & Gladen 1978), and
    the doubt of all three is in the interval; see `metrics.prevalence`. "The model says it more often than its data"
    is then a row of `.comparisons()`.

    The correction holds where the scorer errs on a set as it does on the labelled texts. Generated text is other text:
    label some of it, and give each set error rates of its own, to know.

    Args:
        scorer: What scores texts in [0, 1], or several by name, such as a classifier and a `ProbeScorer`.
        texts: Sets of texts by name, such as "data", "plain" and "steered"; each a list of texts, or of lists, all the
            continuations of one prompt, which then count for as many as they are worth.
        validation: Labelled texts that no scorer was fitted on, `LabelledTexts` or texts and labels; or such for each
            set by name.
        threshold: A score above it is a flag.
        paired: Pairs of sets whose k-th list is of the same prompt.

    Raises:
        EntangleError: No texts, a set of one group, a scorer no better than a coin on the labelled texts, or paired
            sets of different prompts.

    Example:
        >>> scorer = en.LinearToxicityScorer.fit(texts[:48], labels[:48])
        >>> said = en.evaluation.continuations(model, tokenizer, prompts, samples=2, max_new_tokens=4, progress=False)
        >>> sets = {"data": texts[48:72], "plain": said}
        >>> found = en.evaluation.prevalence(scorer, sets, (texts[72:], labels[72:]))
        >>> found.comparisons()[["first", "second"]].to_numpy().tolist()
        [['plain', 'data']]
    """
    scorers: Mapping[str, Scorer] = scorer if isinstance(scorer, Mapping) else {scorer_name(scorer): scorer}
    if not scorers or not texts:
        raise EntangleError("a prevalence needs a scorer and a set of texts by name; got none")
    if not 0 <= threshold < 1:
        raise EntangleError(f"threshold must be a score from 0 to below 1; got {threshold}")
    for pair in paired:
        strange = [name for name in pair if name not in texts]
        if strange or len(pair) != 2:
            raise EntangleError(f"paired names pairs of {', '.join(texts)}; got {pair}")
    labelled = validation if isinstance(validation, Mapping) else dict.fromkeys(texts, validation)
    missing = [name for name in texts if name not in labelled]
    if missing:
        raise EntangleError(f"no labelled texts for {missing[0]!r}; give some for each set, or one for all")
    sets = {name: _flat(name, each) for name, each in texts.items()}
    for first, second in paired:
        if sets[first][1][-1] != sets[second][1][-1]:
            raise EntangleError(f"{first!r} and {second!r} are paired but of different prompts; give both for the same")
    flags: dict[str, dict[str, Flags]] = {}
    for scorer_id, ask in scorers.items():
        counted: dict[str, ErrorRates] = {}
        flags[scorer_id] = {}
        for name, (flat, groups) in sets.items():
            judged, labels = _labelled(labelled[name])
            key = digest([judged, labels])
            if key not in counted:
                counted[key] = ErrorRates.counted(score(ask, judged) > threshold, labels)
                unclipped_prevalence([0.0, 1.0], counted[key])  # refuses a useless scorer before texts are scored
            flagged = (score(ask, flat) > threshold).astype(np.float64)
            flags[scorer_id][name] = Flags(flagged, groups, counted[key], key)
    settings = {"texts": {name: digest(flat) for name, (flat, _) in sets.items()}}
    return Prevalences(flags, tuple((first, second) for first, second in paired), threshold, settings)


def _flat(name: str, texts: Texts) -> tuple[list[str], Int[np.ndarray, " text"]]:
    """The texts of a set, and the group of each."""
    rows = [[row] if isinstance(row, str) else list(row) for row in texts]
    if len(rows) < 2 or not all(rows):
        raise EntangleError(f"a prevalence needs two texts or prompts with texts at least; {name!r} has {len(rows)}")
    groups = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return texts_of([text for row in rows for text in row]), groups


def _labelled(given: Labelled) -> tuple[list[str], Int[np.ndarray, " text"]]:
    if isinstance(given, LabelledTexts):
        return list(given.texts), np.asarray(given.labels, dtype=np.int64)
    if not isinstance(given, tuple) or len(given) != 2:
        raise EntangleError("validation is LabelledTexts, or a pair of texts and labels, or these for each set by name")
    texts = texts_of(given[0])
    return texts, np.asarray(read_labels(given[1], len(texts), two=True).codes, dtype=np.int64)


def _groups(flags: Flags) -> Int[np.ndarray, " text"] | None:
    """The groups, where any has several texts."""
    return flags.groups if len(np.unique(flags.groups)) < len(flags.groups) else None


def _remark(row: Mapping[Any, Any]) -> str:
    if not row["holds"]:
        return " (the scorer errs otherwise on these texts)"
    return " (clipped)" if row["clipped"] else ""


def _verdict(row: Mapping[Any, Any], alpha: float) -> str:
    if row["p_holm"] > alpha:
        return f"no difference is seen between {row['first']} and {row['second']}"
    return f"{'more' if row['difference'] > 0 else 'less'} often in {row['first']} than in {row['second']}"
