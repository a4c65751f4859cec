"""The steps of a report, each a few calls of the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from entangle.activations import Activations
from entangle.concepts import EntanglementReport, entanglement_report
from entangle.data import LabelledTexts, load_labelled, load_texts
from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.evaluation import (
    ClassifierScorer,
    LinearToxicityScorer,
    Scorer,
    Tradeoff,
    cross_entropy,
    tradeoff,
)
from entangle.evaluation.language.documents import document_rows
from entangle.evaluation.language.generation import Sampling, prompt_rows
from entangle.evaluation.language.subject import Subject as Steerable
from entangle.interventions import ITI
from entangle.models import Atlas, load
from entangle.probes import ProbeGrid, Split, fit_probes, three_way
from entangle.probes.estimators import PROBES
from entangle.study.cache import captured
from entangle.study.settings import Settings

MOST_HEADS = 30  # what the paper takes of 384
BOS_DOCUMENTS = 32
NOISY = 0.5  # a split-half cosine below which a direction is more noise than signal
PARTS = {"train": "fit", "valid": "select", "test": "report"}


@dataclass(frozen=True)
class Inputs:
    """Every text a study reads, and the scorer, where one is given."""

    data: LabelledTexts
    concepts: Mapping[str, LabelledTexts]
    prompts: list[str] | None
    clean: list[str] | None
    scorer: Scorer | None


def read(settings: Settings) -> Inputs:
    """Load every text and the scorer before the model, so that a wrong file costs nothing."""
    rows: dict[str, Any] = {
        "limit": settings.limit,
        "seed": settings.seed,
        "drop_duplicates": settings.drop_duplicates,
    }
    fields: dict[str, Any] = {"text": settings.text, "label": settings.label, "positive": settings.positive}
    data = load_labelled(settings.data, where=settings.where, **fields, **rows)
    concepts = {
        name: load_labelled(source, positive=settings.concept_positives.get(name), **rows)
        for name, source in settings.concepts.items()
    }
    prompts = load_texts(settings.prompts) if settings.prompts else None
    if prompts and settings.limit_prompts and settings.limit_prompts < len(prompts):
        drawn = np.random.default_rng(settings.seed).permutation(len(prompts))[: settings.limit_prompts]
        prompts = [prompts[i] for i in sorted(drawn)]
    clean = load_texts(settings.clean, limit=settings.limit_clean) if settings.clean else None
    scorer = ClassifierScorer(settings.scorer, labels=list(settings.scorer_labels)) if settings.scorer else None
    return Inputs(data, concepts, prompts, clean, scorer)


@dataclass(frozen=True)
class Subject:
    """The model under study, and how its activations are captured."""

    model: Any
    tokenizer: Any
    atlas: Atlas
    settings: Settings
    cache: Path | None
    progress: bool

    @classmethod
    def of(cls, settings: Settings, cache: Path | None, progress: bool) -> Subject:
        """Load the model, find its sites, and refuse what cannot be measured in it."""
        device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model: Any
        model, tokenizer = load(settings.model, revision=settings.revision, dtype=settings.dtype, device=device)
        atlas = Atlas(model)
        if not atlas.layers("z"):
            raise EntangleError(
                f"{settings.model} has no attention head that can be probed ({atlas.reason('z', 0)}): "
                "a report needs a model with attention"
            )
        if settings.steers and not model.can_generate():
            raise EntangleError(
                f"{settings.model} ({type(model).__name__}) does not generate text: leave out --prompts and --clean"
            )
        heads = sum(atlas.n_heads(layer) for layer in atlas.layers("z"))
        if settings.top_k is not None and settings.top_k > heads:
            raise EntangleError(f"top_k {settings.top_k} is more than the model's {heads} heads: choose fewer")
        return cls(model, tokenizer, atlas, settings, cache, progress)

    def check(self, inputs: Inputs) -> None:
        """Refuse prompts and documents that the model cannot take, before anything is measured."""
        if not self.settings.steers:
            return
        settings = self.settings
        sampling = Sampling(settings.samples, settings.max_new_tokens, prepend_bos=settings.bos)
        prompt_rows(Steerable(self.model, self.tokenizer), inputs.prompts or [], sampling)
        document_rows(
            self.model, self.tokenizer, inputs.clean or [], max_length=settings.max_length, prepend_bos=settings.bos
        )

    def activations(self, data: LabelledTexts, *sites: str) -> Activations:
        """The sites at the last token of each text, in every layer that has them."""
        try:
            return captured(
                self.model,
                self.tokenizer,
                data,
                sites,
                cache=self.cache,
                progress=self.progress,
                max_length=self.settings.max_length,
                prepend_bos=self.settings.bos,
                batch_tokens=self.settings.batch_tokens,
                atlas=self.atlas,
            )
        except EntangleError as error:
            raise EntangleError(f"{data.name}: {error}") from error


def split_of(data: LabelledTexts, seed: int) -> Split:
    """The data's own train / valid / test as fit / select / report where it names all three, else a stratified draw."""
    if data.splits is None or set(data.splits) != set(PARTS):
        return three_way(data.labels, seed=seed)
    names = np.array(data.splits)
    return Split(**{part: torch.from_numpy(np.flatnonzero(names == name)) for name, part in PARTS.items()})


def probe(site: str, activations: Activations, data: LabelledTexts, split: Split, subject: Subject) -> ProbeGrid:
    """A logistic probe in every cell of a site."""
    settings = subject.settings
    return fit_probes(
        activations[site],
        data.labels,
        split=split,
        layers=activations.layers(site),
        fingerprint=activations.fingerprint,
        n_permutations=settings.permutations,
        n_resamples=settings.resamples,
        seed=settings.seed,
        progress=subject.progress,
    )


def entangle(
    concepts: Mapping[str, tuple[Activations, LabelledTexts]], settings: Settings
) -> dict[int, EntanglementReport]:
    """The report of every layer: each concept's direction over its own fitting rows."""
    rows = {name: split_of(data, settings.seed).fit for name, (_, data) in concepts.items()}
    labels = {name: torch.from_numpy(data.labels)[rows[name]] for name, (_, data) in concepts.items()}
    layers = next(iter(concepts.values()))[0].layers("resid_post")
    reports = {}
    for index, layer in enumerate(layers):
        samples = {
            name: (activations["resid_post"][rows[name], index].float(), labels[name])
            for name, (activations, _) in concepts.items()
        }
        normals = [PROBES[settings.direction]().fit(x, y).coef_[0] for x, y in samples.values()]
        directions = Directions(
            torch.as_tensor(np.stack(normals)), tuple(samples), "resid_post", layer, estimator=settings.direction
        )
        reports[layer] = entanglement_report(
            directions,
            samples,
            n_resamples=settings.resamples,
            n_permutations=settings.permutations,
            seed=settings.seed,
        )
    return reports


@dataclass(frozen=True)
class Steered:
    """The intervention and its price."""

    iti: ITI
    scorer: Scorer
    tradeoff: Tradeoff


def steer_out(activations: Activations, grid: ProbeGrid, inputs: Inputs, split: Split, subject: Subject) -> Steered:
    """Inference-time intervention away from label 1, and what it wins and costs at each strength."""
    settings = subject.settings
    n_heads = grid.accuracy.numel()
    top_k = settings.top_k or min(MOST_HEADS, max(1, n_heads // 4))
    iti = ITI.fit(activations, torch.from_numpy(inputs.data.labels), top_k=top_k, grid=grid, seed=settings.seed)
    scorer = inputs.scorer
    if scorer is None:
        fit = split.fit.tolist()
        texts = [inputs.data.texts[i] for i in fit]
        scorer = LinearToxicityScorer.fit(texts, inputs.data.labels[fit], seed=settings.seed)
    found = tradeoff(
        subject.model,
        subject.tokenizer,
        {"ITI": iti},
        alphas=list(settings.alphas),
        prompts=inputs.prompts or [],
        scorer=scorer,
        texts=inputs.clean or [],
        samples=settings.samples,
        max_new_tokens=settings.max_new_tokens,
        max_length=settings.max_length,
        prepend_bos=settings.bos,
        seed=settings.seed,
        progress=subject.progress,
    )
    return Steered(iti, scorer, found)


def noise_note(reports: Mapping[int, EntanglementReport], layer: int) -> list[str]:
    """A warning that names the concepts whose direction is mostly noise at a layer."""
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


def bos_note(inputs: Inputs, subject: Subject) -> list[str]:
    """A warning when the model reads clean text clearly better with a beginning-of-text token that it was not given."""
    if subject.settings.bos or subject.tokenizer.bos_token_id is None or not inputs.clean:
        return []
    some = inputs.clean[:BOS_DOCUMENTS]
    options: dict[str, Any] = {"max_length": subject.settings.max_length, "progress": False}
    without, with_bos = (
        cross_entropy(subject.model, subject.tokenizer, some, prepend_bos=bos, **options).mean for bos in (False, True)
    )
    if with_bos > without - 0.01:
        return []
    return [
        f"With a beginning-of-text token this model reads clean text better ({with_bos:.3f} nats a token) than without "
        f"({without:.3f}), as it was asked to: add --bos."
    ]
