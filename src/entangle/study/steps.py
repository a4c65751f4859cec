"""The steps of a study, each a few calls of the library; every result of one is whole by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from entangle.activations import Activations
from entangle.concepts import EntanglementReport, entanglement_report
from entangle.data import AnyPrompt, LabelledTexts
from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.evaluation import (
    LinearToxicityScorer,
    Scorer,
    SweepError,
    Tradeoff,
    baseline_methods,
    cross_entropy,
    tradeoff,
)
from entangle.evaluation.language.documents import document_rows
from entangle.evaluation.language.generation import Sampling, prompt_rows
from entangle.evaluation.language.subject import Subject
from entangle.interventions import ITI
from entangle.models import Atlas, fingerprint, frame, is_hooked
from entangle.probes import ProbeGrid, Split, fit_probes
from entangle.probes.estimators import PROBES
from entangle.storage.digest import digest
from entangle.study.cache import captured
from entangle.study.question import FROM_ROWS, Question
from entangle.study.texts import StudyTexts, split_of, written

BOS_DOCUMENTS = 32
LEAST_PRICED = 4  # two clean documents to solve a price on, and two to report it on
LEAST_FITTED = 10  # clean documents for a metric (8) and for learning a vector
NOISY = 0.5  # a split-half cosine below which a direction is more noise than signal


@dataclass(frozen=True)
class StudiedModel:
    """The model under study, how its texts are read, and where what is captured and measured of it is kept.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        atlas: Where its sites are.
        name: What messages call it.
        question: What is asked of it.
        captures: Folder for captured activations.
        conditions: Folder for the conditions of a sweep.
        progress: Whether to show bars.
        beside: Other models that methods are made of, or where they lie: "expert", "anti_expert", "amateur".

    Example:
        >>> from entangle.study import Question, StudiedModel
        >>> studied = StudiedModel(model, tokenizer, en.Atlas(model), "tiny", Question(), progress=False)
        >>> studied.can_generate
        True
        >>> studied.activations(concepts["tense"], "resid_post")["resid_post"].shape  # [text, layer, d_model]
        torch.Size([64, 2, 32])
    """

    model: Any
    tokenizer: Any
    atlas: Atlas
    name: str
    question: Question
    captures: Path | None = None
    conditions: Path | None = None
    progress: bool = True
    beside: Mapping[str, Any] = field(default_factory=dict)

    def check(self, texts: StudyTexts) -> None:
        """Refuse, before anything is measured, a model without heads, and texts that it cannot take.

        Raises:
            EntangleError: One line that says what to do.
        """
        if not self.atlas.layers("z"):
            raise EntangleError(
                f"{self.name} has no attention head that can be probed ({self.atlas.reason('z', 0)}): "
                "a study needs a model with attention"
            )
        self.question.heads(sum(self.atlas.n_heads(layer) for layer in self.atlas.layers("z")))
        if not texts.steers:
            return
        if not self.can_generate:
            raise EntangleError(
                f"{self.name} ({type(self.model).__name__}) does not generate text: leave out the prompts"
            )
        question = self.question
        if question.on_clean and len(shares(texts.clean, question)[0]) < LEAST_FITTED:
            raise EntangleError(
                f'"{question.on_clean[0]}" is fitted on a share of the clean documents, {LEAST_FITTED} at least, and '
                f"priced on others; got {len(texts.clean)} in all: give more, or leave the method out"
            )
        without = [name for name in question.of_models if not self._models_for(name)]
        if without:
            raise EntangleError(
                f'"{without[0]}" needs another model, but none is here: give expert=, or for "DExperts" anti_expert=, '
                "or leave the method out"
            )
        sampling = Sampling(question.samples, question.max_new_tokens, prepend_bos=question.prepend_bos)
        prompt_rows(Subject(self.model, self.tokenizer), texts.every_prompt, sampling)
        reading: dict[str, Any] = {"max_length": question.max_length, "prepend_bos": question.prepend_bos}
        document_rows(self.model, self.tokenizer, texts.clean, turns=question.turns, **reading)

    def _models_for(self, method: str) -> bool:
        kinds = ("expert",) if method == "expert" else ("expert", "anti_expert")
        return any(self.beside.get(kind) is not None for kind in kinds)

    @property
    def can_generate(self) -> bool:
        """Whether the model writes text."""
        return hasattr(self.model, "can_generate") and bool(self.model.can_generate())

    def activations(self, data: LabelledTexts, *sites: str, layers: Sequence[int] | None = None) -> Activations:
        """The sites at the last token of each text, in every layer that has them or in some."""
        try:
            return captured(
                self.model,
                self.tokenizer,
                data,
                sites,
                cache=self.captures,
                layers=layers,
                progress=self.progress,
                max_length=self.question.max_length,
                prepend_bos=self.question.prepend_bos,
                batch_tokens=self.question.batch_tokens,
                atlas=self.atlas,
            )
        except EntangleError as error:
            raise EntangleError(f"{data.name}: {error}") from error


def probe(
    site: str, activations: Activations, labels: Any, split: Split, studied: StudiedModel
) -> tuple[ProbeGrid | None, dict[str, str]]:
    """A logistic probe in every cell of a site.

    Returns:
        The probes, None where no cell could be fitted; and where cells could not be, with the reason.
    """
    layers = activations.layers(site)
    try:
        grid = fit_probes(
            activations[site],
            labels,
            split=split,
            layers=layers,
            fingerprint=activations.fingerprint,
            n_permutations=studied.question.n_permutations,
            n_resamples=studied.question.n_resamples,
            seed=studied.question.seed,
            broken="mark",
            progress=studied.progress,
        )
    except EntangleError as error:
        return None, {site: str(error)}
    names = (f"{site} in layer {layers[layer]}" + "".join(f", head {i}" for i in head) for layer, *head in grid.broken)
    return grid, dict(zip(names, grid.broken.values(), strict=True)) | _unconverged(site, layers, grid)


def _unconverged(site: str, layers: Sequence[int], grid: ProbeGrid) -> dict[str, str]:
    """Where probes did not converge, layer by layer; they are in no choice and not shown."""
    heads: dict[int, list[str]] = {}
    for layer, *head in (~grid.converged).nonzero().tolist():
        if (layer, *head) not in grid.broken:
            heads.setdefault(layers[layer], []).extend(map(str, head))
    names = {
        layer: f", head{'s' if len(some) > 1 else ''} {', '.join(some)}" if some else ""
        for layer, some in heads.items()
    }
    return {f"{site} in layer {layer}{name}": "not converged under any penalty" for layer, name in names.items()}


def fitting_rows(data: LabelledTexts, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the rows that directions are fitted on, and their labels."""
    fit = split_of(data, seed).fit
    return fit, torch.from_numpy(data.labels)[fit]


def entangle_layer(
    layer: int, concepts: Mapping[str, tuple[Activations, LabelledTexts]], question: Question
) -> EntanglementReport:
    """How entangled the concepts are after a layer: each one's direction over its own fitting rows."""
    samples = {}
    for name, (activations, data) in concepts.items():
        rows, labels = fitting_rows(data, question.seed)
        index = activations.layers("resid_post").index(layer)
        samples[name] = (activations["resid_post"][rows, index].float(), labels)
    normals = [PROBES[question.direction]().fit(x, y).coef_[0] for x, y in samples.values()]
    directions = Directions(
        torch.as_tensor(np.stack(normals)), tuple(samples), "resid_post", layer, estimator=question.direction
    )
    return entanglement_report(
        directions,
        samples,
        n_resamples=question.n_resamples,
        n_permutations=question.n_permutations,
        seed=question.seed,
    )


def intervention(activations: Activations, grid: ProbeGrid, labels: Any, question: Question) -> ITI:
    """Inference-time intervention away from label 1, in the heads that the selection rows choose."""
    layers = [int(layer) for layer in grid.layers or ()]
    z = activations["z"][:, [activations.layers("z").index(layer) for layer in layers]]
    top_k = min(question.heads(grid.accuracy.numel()), int(grid.converged.sum()))
    z = z.masked_fill(~z.isfinite().all(-1, keepdim=True).all(0, keepdim=True), 0)  # heads that no probe chooses
    return ITI.fit(z, torch.as_tensor(labels), top_k=top_k, grid=grid, layers=layers, seed=question.seed)


def methods_of(
    activations: Activations, grid: ProbeGrid, labels: Any, iti: ITI, texts: StudyTexts, studied: StudiedModel
) -> tuple[dict[str, Any], dict[str, str]]:
    """The interventions that are asked for, by name, made of the rows that fitted and chose ITI's probes; and why one
    is not among them."""
    question = studied.question
    if question.methods == ("ITI",):
        return {"ITI": iti}, {}
    methods = baseline_methods(
        activations,
        torch.as_tensor(labels),
        top_k=len(iti.heads),
        seed=question.seed,
        grid=grid,
        names=question.methods,
        model=studied.model,
        tokenizer=studied.tokenizer,
        texts=texts.labelled.texts,
        clean=written(shares(texts.clean, question)[0], studied.tokenizer) if question.on_clean else None,
        warn=False,  # a study tells it in `missing`
        progress=studied.progress,
        **studied.beside,
    )
    return dict(methods), methods.missing


def scorer_of(data: LabelledTexts, split: Split, seed: int) -> LinearToxicityScorer:
    """A linear scorer that has seen the fitting rows alone.

    Example:
        >>> from entangle.study import StudyTexts, scorer_of, split_of
        >>> data = StudyTexts.of("rudeness", texts, labels).labelled
        >>> scorer_of(data, split_of(data, seed=0), seed=0).report["n_fit"]  # of the 57 or so that probes are fitted on
        46
    """
    fit = split.fit.tolist()
    return LinearToxicityScorer.fit([data.texts[i] for i in fit], data.labels[fit], seed=seed)


def shares(clean: Sequence[AnyPrompt], question: Question) -> list[list[AnyPrompt]]:
    """The clean documents, dealt out: to fit on, where a method is; to solve prices on, where there are any; to report.

    Example:
        >>> from entangle.study import Question
        >>> from entangle.study.steps import shares
        >>> [len(share) for share in shares(clean, Question(costs=(0.1,), methods=("ITI", "natural shift")))]
        [100, 100, 100]
        >>> [len(share) for share in shares(clean, Question())]
        [300]
    """
    count = 1 + bool(question.costs) + bool(question.on_clean)
    return [list(clean[i::count]) for i in range(count)]


def steer_out(
    methods: Mapping[str, Any], texts: StudyTexts, scorer: Scorer | Sequence[Scorer], studied: StudiedModel
) -> tuple[Tradeoff | None, str]:
    """What the interventions win and cost at each strength.

    Returns:
        What was measured, and why it is not all, if it is not.
    """
    question = studied.question
    *_, reported = documents = shares(texts.clean, question)
    settings: dict[str, Any] = {
        "prompts": texts.every_prompt,
        "texts": reported,
        "samples": question.samples,
        "max_new_tokens": question.max_new_tokens,
        "max_length": question.max_length,
        "prepend_bos": question.prepend_bos,
        "seed": question.seed,
    }
    if question.turns is not None:
        settings["turns"] = question.turns
    if question.costs:
        if len(texts.clean) < LEAST_PRICED:
            raise EntangleError(
                "prices are solved on some of the clean documents and reported on as many others; got "
                f"{len(texts.clean)} of at least {LEAST_PRICED}: give more, or alphas"
            )
        settings |= {"costs": list(question.costs), "cost_texts": documents[-2]}
    else:
        settings["alphas"] = list(question.alphas)
    folder = None
    if studied.conditions is not None and not is_hooked(studied.model):
        # Methods of one ITI come of the same activations, so that more of them are added to what is there.
        own = {name: method for name, method in methods.items() if name == "ITI" or name not in FROM_ROWS}
        key = digest([fingerprint(studied.model), own, {k: v for k, v in settings.items() if k != "alphas"}])
        folder = studied.conditions / f"sweep-{key}"
    try:
        sweep = tradeoff(
            studied.model,
            studied.tokenizer,
            methods,
            scorer=scorer,
            save_to=folder,
            progress=studied.progress,
            **settings,
        )
    except SweepError as error:
        return error.partial, str(error)
    return sweep, ""


def noise_note(reports: Mapping[int, EntanglementReport], layer: int) -> list[str]:
    """A warning that names the concepts whose direction is mostly noise after a layer."""
    report = reports[layer]
    split_half = [] if report.split_half is None else report.split_half.tolist()
    noisy = [
        f"{name} ({agreement:.2f})"
        for name, agreement in zip(report.names, split_half, strict=False)
        if agreement < NOISY
    ]
    if not noisy:
        return []
    return [
        f"After layer {layer}, the directions found on two halves of a concept's texts agree too little to say much "
        f"about its entanglement (their cosine in brackets): {', '.join(noisy)}. More texts may help, or another "
        "--direction."
    ]


def massive_note(reports: Mapping[int, EntanglementReport], layer: int) -> list[str]:
    """Says what E would be without the coordinates that alone may carry every cosine."""
    report = reports[layer]
    if not report.massive or report.entanglement_set_aside is None:
        return []
    before, after = (torch.as_tensor(each.value) for each in (report.entanglement, report.entanglement_set_aside))
    pairs = zip(report.names, before.tolist(), after.tolist(), strict=True)
    changes = "; ".join(f"{name} {one:.2f} with them, {other:.2f} without" for name, one, other in pairs)
    n_dims = report.settings["n_dims"]
    return [
        f"After layer {layer}, {len(report.massive)} of {n_dims} coordinates are massive, and may carry every cosine. "
        f"E: {changes}."
    ]


def bos_note(clean: Sequence[AnyPrompt], studied: StudiedModel) -> list[str]:
    """A warning when the model reads clean text clearly better with a beginning-of-text token that it was not given."""
    question = studied.question
    begin = studied.tokenizer.bos_token_id
    if question.prepend_bos or begin is None or not clean or begin in frame(studied.tokenizer).opening:
        return []  # with it, or both ways the same
    if not all(isinstance(document, str) for document in clean):
        return []  # the chat template writes it or does not
    some = list(clean[:BOS_DOCUMENTS])
    options: dict[str, Any] = {"max_length": question.max_length, "progress": False}
    without, with_bos = (
        cross_entropy(studied.model, studied.tokenizer, some, prepend_bos=bos, **options).mean for bos in (False, True)
    )
    if with_bos > without - 0.01:
        return []
    return [
        f"With a beginning-of-text token this model reads clean text better ({with_bos:.3f} nats per token) than "
        f"without ({without:.3f}), as it was asked to: add --bos (prepend_bos=True)."
    ]
