"""One concept in one model, from end to end: texts in, a `Study` out."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from entangle.activations import Activations
from entangle.concepts import EntanglementReport
from entangle.data import LabelledTexts
from entangle.errors import EntangleError
from entangle.evaluation import AtStrengths, Scorer, Tradeoff
from entangle.interventions import ITI
from entangle.models import Atlas, fingerprint, load, load_tokenizer, own_tokenizer, underlying
from entangle.probes import ProbeGrid, Split, bag_of_words
from entangle.study.foretelling import foretold_of, to_foretell
from entangle.study.numbers import data_numbers, nearest_layer, plain
from entangle.study.question import LayerChoice, Question
from entangle.study.result import Study
from entangle.study.settings import Settings
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
    steer_out,
)
from entangle.study.texts import Concepts, Prompts, StudyTexts, Texts, split_notes, split_of

PACKAGES = ("entangle", "torch", "transformers", "tokenizers", "scikit-learn", "numpy", "scipy")
SITES = ("z", "resid_post")
# What a step may raise that is no fault of the library's and no wish to stop: the steps before it are kept.
FAILURES = (EntangleError, RuntimeError, MemoryError, ArithmeticError, np.linalg.LinAlgError)

NOTHING = AtStrengths([], alphas=())  # a method that is measured at no strength: the plain model alone is

T = TypeVar("T")


def study(
    model: Any,
    tokenizer: Any,
    texts: Texts | LabelledTexts,
    labels: Any = None,
    *,
    concepts: Concepts | None = None,
    prompts: Prompts | None = None,
    clean: Texts | None = None,
    scorer: Scorer | Sequence[Scorer] | None = None,
    alphas: Sequence[float] | None = None,
    costs: Sequence[float] | None = None,
    positive: Any = None,
    name: str = "concept",
    label: str | None = None,
    methods: Sequence[str] = Question.methods,
    direction: str = Question.direction,
    layers: LayerChoice = Question.layers,
    forecast: bool = True,
    top_k: int | None = None,
    samples: int = Question.samples,
    max_new_tokens: int = Question.max_new_tokens,
    max_length: int | None = None,
    prepend_bos: bool = False,
    batch_tokens: int = Question.batch_tokens,
    n_resamples: int = Question.n_resamples,
    n_permutations: int = Question.n_permutations,
    seed: int = 0,
    cache: str | PathLike[str] | None = None,
    progress: bool = True,
) -> Study:
    """Measure one concept in one model, end to end: where it can be read, how entangled it is, what steering it out
    wins and costs.

    Whatever is left out makes a smaller study: without `concepts` there is no entanglement, without `prompts` no price
    of steering. What fails on the way is told by `Study.missing` and the rest is kept: a layer whose probes cannot be
    fitted, a strength at which generation breaks off.

    Args:
        model: A HuggingFace causal language model or encoder, or the directory or hub id of one; or what holds one (a
            TransformerLens bridge, an nnsight or nnterp model, a pipeline).
        tokenizer: Its tokenizer, or the directory or hub id of one; None for the one beside a model given by its path.
        texts: Labelled texts: strings, a file, or `LabelledTexts`.
        labels: One label of two kinds per text, the later (1, True) being the concept and what steering moves away
            from; None where `texts` come with theirs.
        concepts: Further concepts to measure entanglement with: name -> `(texts, labels)`, a file or `LabelledTexts`.
        prompts: Texts to continue, with and without steering; several sets by name, or a file.
        clean: Clean text on which the price is measured; needed with `prompts`.
        scorer: Scores continuations; by default a linear scorer fitted on the fitting texts. Of several, the first is
            shown.
        alphas: Strengths of the interventions in standard deviations; 0, 4, 8 and 12 by default. 0 is always measured.
        costs: Strengths by what they cost, in nats per token, instead of `alphas`: solved on every other clean
            document, while the others tell what is paid.
        positive: The label that counts as 1, all others as 0; by default the rules of `entangle.data` decide.
        name: The concept's name: what label 1 says.
        label: What tables call the model; by default the last part of its path, or its class.
        methods: Interventions to measure, with "ITI" among them (see `entangle.evaluation.baseline_methods`).
        direction: The estimator of the concepts' directions: "mean_difference", "logistic", "lda", "ridge" or "svm".
        layers: After which layers entanglement is measured: "all", or the "best" for reading the concept alone.
        forecast: Whether to foretell, where there is clean text, what steering each concept out will cost at every
            layer; a few backward passes per text.
        top_k: Heads that ITI moves; by default a quarter, at most 30.
        samples: Continuations per prompt.
        max_new_tokens: Tokens per continuation.
        max_length: Cut texts to this many tokens; by default longer ones than the context are refused.
        prepend_bos: Put the beginning-of-text token before every text: right for models that were trained with it and
            whose tokenizer does not add it.
        batch_tokens: Tokens per batch, padding included.
        n_resamples: Bootstrap resamples of every interval.
        n_permutations: Label permutations of the null.
        seed: Seed of every random draw.
        cache: A folder in which captured activations and finished conditions are kept; they are found again by model,
            texts and settings. Without it, activations are found again while a study that holds them is kept.
        progress: Whether to show bars.

    Returns:
        The study. `print` it for the answer in words; it shows itself in a notebook.

    Raises:
        EntangleError: One line that says what was wrong with the input and what to do.
    """
    if costs is not None and alphas is not None:
        raise EntangleError("a study is measured at alphas= or at costs=, not at both; give one of them")
    question = Question(
        name=name,
        direction=direction,
        layers=layers,
        alphas=Question.alphas if alphas is None else tuple(float(alpha) for alpha in alphas),
        costs=tuple(float(cost) for cost in costs or ()),
        methods=tuple(methods),
        forecast=forecast,
        top_k=top_k,
        samples=samples,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        prepend_bos=prepend_bos,
        batch_tokens=batch_tokens,
        n_resamples=n_resamples,
        n_permutations=n_permutations,
        seed=seed,
    )
    given = StudyTexts.of(name, texts, labels, positive=positive, concepts=concepts, prompts=prompts, clean=clean)
    given.check()
    shown = label or _name(model)
    model, tokenizer = _loaded(model, tokenizer)
    folder = None if cache is None else Path(cache)
    studied = StudiedModel(model, tokenizer, Atlas(model), shown, question, folder, folder, progress)
    return run(studied, given, scorer=scorer)


def measure(settings: Settings, *, cache: Path | None = None, label: str | None = None, progress: bool = True) -> Study:
    """The study that a command line or a file asks for.

    Args:
        settings: What, on what, and how.
        cache: Where captured activations and finished conditions are kept between runs; nowhere by default.
        label: What to call the model; by default the last part of its path.
        progress: Whether to show bars.

    Returns:
        The study.

    Raises:
        EntangleError: One line that says what was wrong with the input and what to do.
    """
    settings.check()
    texts, scorer = settings.read()
    texts.check()
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load(settings.model, revision=settings.revision, dtype=settings.dtype, device=device)
    name = label or Path(settings.model).name
    studied = StudiedModel(model, tokenizer, Atlas(model), name, settings.question(), cache, cache, progress)
    about = {"settings": settings.to_dict(), "command": settings.command()}
    return run(studied, texts, scorer=scorer, about=about)


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
        foretold = missing.unless("the forecast", partial(foretold_of, asked, texts.clean, studied)) if asked else None
    iti, sweep, judge = None, None, scorer
    if texts.steers:
        with clock("steer"):
            judge = scorer_of(data, split, question.seed) if scorer is None else scorer
            iti, sweep = _steering(captured[question.name], probes, texts, judge, studied, missing, more or {}, own)
            notes += bos_note(texts.clean, studied)
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
        methods = methods_of(acts, probes["z"], labels, iti, question) | dict(more)
        return iti, *steer_out(methods, texts, scorer, studied)

    iti, sweep, why = missing.unless("steering", measured) or (None, None, "")
    if why:
        missing["steering"] = why
    return (None, None) if sweep is None else (iti, sweep)


def _loaded(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The model and its tokenizer, read where they are paths."""
    if isinstance(model, str | PathLike):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, beside = load(Path(model) if isinstance(model, PathLike) else model, device=device)
        tokenizer = beside if tokenizer is None else tokenizer
    tokenizer = own_tokenizer(model, tokenizer)
    if isinstance(tokenizer, str | PathLike):
        tokenizer = load_tokenizer(str(tokenizer))
    if tokenizer is None:
        raise EntangleError("a study needs a tokenizer; got None: give the model's own, or the model by its path")
    return underlying(model), tokenizer


def _name(model: Any) -> str:
    """What to call a model: the last part of its path, or its class."""
    if isinstance(model, str | PathLike):
        return Path(model).name
    inner = underlying(model)
    path = getattr(getattr(inner, "config", None), "_name_or_path", "") or ""
    return Path(path).name or type(inner).__name__


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
