"""One concept in one model, from end to end: texts in, a `Study` out."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np

from entangle.activations import Activations
from entangle.concepts import EntanglementReport
from entangle.data import LabelledTexts
from entangle.errors import EntangleError
from entangle.evaluation import AtStrengths, Scorer, Tradeoff
from entangle.interventions import ITI
from entangle.models import fingerprint
from entangle.probes import ProbeGrid, Split, bag_of_words
from entangle.study.foretelling import foretold_of, to_foretell
from entangle.study.numbers import data_numbers, nearest_layer, plain
from entangle.study.result import Study
from entangle.study.steps import (
    StudiedModel,
    bos_note,
    entangle_layer,
    intervention,
    massive_note,
    methods_of,
    noise_note,
    probe,
    scorer_of,
    shares,
    steer_out,
)
from entangle.study.texts import StudyTexts, split_notes, split_of

PACKAGES = ("entangle", "torch", "transformers", "tokenizers", "scikit-learn", "numpy", "scipy")
SITES = ("z", "resid_post")
# What a step may raise that is no fault of the library's and no wish to stop: the steps before it are kept.
FAILURES = (EntangleError, RuntimeError, MemoryError, ArithmeticError, np.linalg.LinAlgError)

NOTHING = AtStrengths([], alphas=())  # a method that is measured at no strength: the plain model alone is

T = TypeVar("T")


def run(
    studied: StudiedModel,
    texts: StudyTexts,
    *,
    scorer: Scorer | Sequence[Scorer] | None = None,
    more: Mapping[str, Any] | None = None,
    own: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Study:
    """The study of a model that is loaded; whatever measures one concept in one model calls this.

    Args:
        studied: The model, and what is asked of it.
        texts: On what.
        scorer: Scores continuations; by default a linear scorer fitted on the fitting texts.
        more: Further methods to measure beside the question's, by name.
        own: Whether the question's methods are measured, and not only the model as it is and `more`.
        about: What `Study.about` says besides what was found.

    Returns:
        The study.

    Raises:
        EntangleError: The texts are not for this model, or nothing at all could be measured.

    Example:
        >>> from entangle.study import Question, StudiedModel, StudyTexts, run
        >>> question = Question(name="rudeness", n_resamples=100, n_permutations=20)
        >>> studied = StudiedModel(model, tokenizer, en.Atlas(model), "tiny", question, progress=False)
        >>> run(studied, StudyTexts.of("rudeness", texts, labels)).probes["resid_post"].shape
        (2,)
    """
    question, data = studied.question, texts.labelled
    clock, missing = _Clock(), _Missing()
    studied.check(texts)
    with clock("capture"):
        captured = {question.name: studied.activations(data, *SITES)}
    split = split_of(data, question.seed)
    with clock("probe"):
        probes = _probes(captured[question.name], data, split, studied, missing)
        resampling = {"n_resamples": question.n_resamples, "seed": question.seed}
        words = missing.unless("bag of words", lambda: bag_of_words(data.texts, data.labels, split, **resampling))
    best = Study(question, studied.name, probes, words, {}, None, None).best_layer
    with clock("entangle"):
        reports = _entanglement(captured, texts, best, studied, missing)
    every = [data, *texts.concepts.values()]
    notes = [note for rows in every for note in (*rows.notes, *split_notes(rows, question.seed))]
    if not studied.can_generate:
        notes.append("This model does not generate text, so the price of steering is not measured.")
    if reports:
        nearest = nearest_layer(reports, best)
        notes += noise_note(reports, nearest) + massive_note(reports, nearest)
    with clock("foretell"):
        asked, why = to_foretell(texts, studied)
        notes += why
        foretold = missing.unless("the forecast", partial(foretold_of, asked, texts, studied)) if asked else None
    iti, sweep, judge = None, None, scorer
    if texts.steers:
        with clock("steer"):
            judge = scorer_of(data, split, question.seed) if scorer is None else scorer
            iti, sweep = _steering(captured[question.name], probes, texts, judge, studied, missing, more or {}, own)
            notes += bos_note(texts.clean, studied)
            if question.turns is not None:
                notes.append(
                    f"Language is measured on what the {question.turns} says in {len(texts.clean)} conversations."
                )
            if own and question.on_clean:
                count = len(shares(texts.clean, question)[0])
                notes.append(
                    f"Of the {len(texts.clean)} clean documents, {', '.join(question.on_clean)} was fitted on {count}; "
                    "prices are read on others."
                )
    table = studied.atlas.table()
    first = judge if callable(judge) else next(iter(judge or ()), None)
    rows_of = {question.name: data, **texts.concepts}
    return Study(
        question=question,
        label=studied.name,
        probes=probes,
        words=words,
        entanglement=reports,
        iti=iti,
        tradeoff=sweep,
        forecast=foretold,
        notes=tuple(notes),
        missing=dict(missing),
        about=plain(
            {
                "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
                "command": "",
                "versions": {
                    "python": platform.python_version(),
                    **{package: version(package) for package in PACKAGES},
                },
                "fingerprint": fingerprint(studied.model),
                "atlas": {"columns": list(table.columns), "rows": table.to_numpy().tolist()},
                "data": [
                    data_numbers(name, texts.sources.get(name, rows.name), rows) for name, rows in rows_of.items()
                ],
                "scorer": sweep and {"name": sweep.scorers[0], **getattr(first, "report", {})},
                **dict(about or {}),
                "seconds": clock.seconds,
            }
        ),
        captured=captured,
    )


def _probes(
    acts: Activations, data: LabelledTexts, split: Split, studied: StudiedModel, missing: _Missing
) -> dict[str, ProbeGrid]:
    """The probes of every site; what cannot be fitted is told.

    Raises:
        EntangleError: None could be fitted at all.
    """
    probes: dict[str, ProbeGrid] = {}
    reason = ""
    for site in SITES:
        grid, unfitted = probe(site, acts, data.labels, split, studied)
        missing |= {f"probes on {where}": why for where, why in unfitted.items()}
        reason = reason or next(iter(unfitted.values()), "")
        if grid is not None:
            probes[site] = grid
    if not probes:
        raise EntangleError(reason)
    return probes


def _entanglement(
    captured: dict[str, Activations], texts: StudyTexts, best: int, studied: StudiedModel, missing: _Missing
) -> dict[int, EntanglementReport]:
    """The reports of every layer that is asked for; the other concepts' activations join `captured`."""
    question = studied.question
    if not texts.concepts:
        return {}
    layers = captured[question.name].layers("resid_post") if question.layers == "all" else [best]
    concepts = {question.name: (captured[question.name], texts.labelled)}
    for name, rows in texts.concepts.items():
        captured[name] = studied.activations(rows, "resid_post", layers=None if question.layers == "all" else layers)
        concepts[name] = (captured[name], rows)
    reports = {
        layer: missing.unless(f"entanglement after layer {layer}", partial(entangle_layer, layer, concepts, question))
        for layer in layers
    }
    return {layer: report for layer, report in reports.items() if report is not None}


def _steering(
    acts: Activations,
    probes: Mapping[str, ProbeGrid],
    texts: StudyTexts,
    scorer: Scorer | Sequence[Scorer],
    studied: StudiedModel,
    missing: _Missing,
    more: Mapping[str, Any],
    own: bool,
) -> tuple[ITI | None, Tradeoff | None]:
    """The intervention and its price; why, where it is not all, is told."""
    question, labels = studied.question, texts.labelled.labels
    if own and "z" not in probes:
        missing["steering"] = "no probe of a head could be fitted, so there is none to steer"
        return None, None

    def measured() -> tuple[ITI | None, Tradeoff | None, str]:
        if not own:
            return None, *steer_out(dict(more) or {"nothing": NOTHING}, texts, scorer, studied)
        iti = intervention(acts, probes["z"], labels, question)
        methods, left_out = methods_of(acts, probes["z"], labels, iti, texts, studied)
        missing.update(left_out)
        return iti, *steer_out(methods | dict(more), texts, scorer, studied)

    iti, sweep, why = missing.unless("steering", measured) or (None, None, "")
    if why:
        missing["steering"] = why
    return (None, None) if sweep is None else (iti, sweep)


class _Missing(dict[str, str]):
    """What was asked for and could not be measured -> why."""

    def unless(self, what: str, step: Callable[[], T]) -> T | None:
        """The step's result; None, and why, where it fails."""
        try:
            return step()
        except FAILURES as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self[what] = reason if isinstance(error, EntangleError) else f"{type(error).__name__}: {reason}"
            return None


class _Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[step] = round(time.perf_counter() - began, 2)
