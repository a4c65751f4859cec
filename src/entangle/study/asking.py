"""The two ways to ask for a study: from a notebook, with lists or files, and from a file of settings."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from entangle.data import LabelledTexts
from entangle.errors import EntangleError
from entangle.evaluation import Scorer
from entangle.models import Atlas, load, load_tokenizer, own_tokenizer, underlying
from entangle.study.measure import run
from entangle.study.question import LayerChoice, Question
from entangle.study.result import Study
from entangle.study.settings import Settings
from entangle.study.steps import StudiedModel
from entangle.study.texts import Concepts, Prompted, Prompts, StudyTexts, Texts


def study(
    model: Any,
    tokenizer: Any,
    texts: Texts | LabelledTexts,
    labels: Any = None,
    *,
    concepts: Concepts | None = None,
    prompts: Prompts | None = None,
    clean: Prompted | None = None,
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
    turns: str | None = None,
    max_length: int | None = None,
    prepend_bos: bool = False,
    batch_tokens: int = Question.batch_tokens,
    n_resamples: int = Question.n_resamples,
    n_permutations: int = Question.n_permutations,
    seed: int = 0,
    cache: str | PathLike[str] | None = None,
    progress: bool = True,
    expert: Any = None,
    anti_expert: Any = None,
    amateur: Any = None,
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
        prompts: Texts to continue, or conversations to answer, with and without steering; several sets by name, or a
            file.
        clean: Clean text on which the price is measured, or conversations; needed with `prompts`.
        scorer: Scores continuations; by default a linear scorer fitted on the fitting texts. Of several, the first is
            shown.
        alphas: Strengths of the interventions in standard deviations; 0, 4, 8 and 12 by default. 0 is always measured.
        costs: Strengths by what they cost, in nats per token, instead of `alphas`: solved on every other clean
            document, while the others tell what is paid.
        positive: The label that counts as 1, all others as 0; by default the rules of `entangle.data` decide.
        name: The concept's name: what label 1 says.
        label: What tables call the model; by default the last part of its path, or its class.
        methods: Interventions to measure, with "ITI" among them (see `entangle.evaluation.baseline_methods`). Where one
            is fitted on clean text ("natural shift", "learned, ..."), it takes an equal share of the documents of
            `clean`, and prices are read on the rest.
        direction: The estimator of the concepts' directions: "mean_difference", "logistic", "lda", "ridge" or "svm".
        layers: After which layers entanglement is measured: "all", or the "best" for reading the concept alone.
        forecast: Whether to foretell, where there is clean text, what steering each concept out will cost at every
            layer; a few backward passes per text.
        top_k: Heads that ITI moves; by default a quarter, at most 30.
        samples: Continuations per prompt.
        max_new_tokens: Tokens per continuation.
        turns: Where `clean` is conversations: measure language only on what this role says, such as "assistant"; by
            default on all that the chat template writes.
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
        expert: A model of what is wanted, or where it lies, for "DExperts" and "expert".
        anti_expert: A model of what is unwanted, likewise, for "DExperts".
        amateur: A model for "contrastive decoding" to decode against, likewise.

    Returns:
        The study. `print` it for the answer in words; it shows itself in a notebook.

    Raises:
        EntangleError: One line that says what was wrong with the input and what to do.

    Example:
        >>> few = {"n_resamples": 100, "n_permutations": 20, "progress": False}
        >>> study = en.study(model, tokenizer, texts, labels, name="rudeness", forecast=False, **few)
        >>> {site: grid.shape for site, grid in study.probes.items()}
        {'z': (2, 4), 'resid_post': (2,)}
        >>> len(study.sentences())  # of the answer: can it be read, better than from words, what not to conclude
        3
        >>> study.iti is None  # prompts and clean text would measure the price of steering
        True
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
        turns=turns,
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
    beside = {"expert": expert, "anti_expert": anti_expert, "amateur": amateur}
    studied = StudiedModel(model, tokenizer, Atlas(model), shown, question, folder, folder, progress, beside)
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

    Example:
        >>> import pandas as pd
        >>> from entangle.study import Settings, measure
        >>> pd.DataFrame({"text": texts, "label": labels}).to_csv("rudeness.csv", index=False)
        >>> files = [*tokenizer.save_pretrained("tiny"), model.save_pretrained("tiny")]
        >>> settings = Settings(model="tiny", data="rudeness.csv", resamples=100, permutations=20, forecast=False)
        >>> study = measure(settings, progress=False)
        >>> study.concept, study.label
        ('rudeness', 'tiny')
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
