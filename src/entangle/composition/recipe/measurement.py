"""What is measured of every model of a recipe, and the texts that it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from entangle.composition.recipe.attack import Attack
from entangle.composition.recipe.sources import Labelled, Source
from entangle.data import LabelledTexts
from entangle.errors import EntangleError
from entangle.probes.estimators import PROBES

MOST_HEADS = 30  # what the paper takes of 384
METHODS = ("ITI", "random heads", "random directions", "CAA", "ablation", "LEACE", "prompting", "self-debias")


@dataclass(frozen=True)
class Measurement:
    """What is measured of every model.

    Attributes:
        concept: what label 1 of `labelled` says, and what steering moves away from.
        labelled: texts to probe, and to fit the interventions and the scorer on.
        prompts: sets of texts to continue, by name.
        others: further concepts, by name, to measure entanglement against.
        alphas: strengths of the interventions, in standard deviations; 0 is always measured.
        methods: the interventions: of "ITI", "random heads", "random directions", "CAA", "ablation", "LEACE",
            "prompting" and "self-debias".
        top_k: heads that ITI moves; 0 is a quarter of them, at most 30.
        direction: the estimator of the concepts' directions.
        clean_documents: held-out documents on which cross-entropy is measured; 0 is all.
        samples: continuations a prompt.
        max_new_tokens: tokens a continuation.
        max_length: cut texts and documents to this many tokens.
        permutations: label permutations of the probes' null.
        resamples: bootstrap resamples of the intervals within a model.
        seed: decides every random draw.
        attack: red-teaming of the models of every share and seed; none by default. It is saved apart from the rest.
    """

    labelled: Labelled
    prompts: Mapping[str, Source]
    concept: str = "toxicity"
    others: Mapping[str, Labelled] = field(default_factory=dict)
    alphas: tuple[float, ...] = (4.0, 8.0, 12.0)
    methods: tuple[str, ...] = METHODS
    top_k: int = 0
    direction: str = "mean_difference"
    clean_documents: int = 0
    samples: int = 1
    max_new_tokens: int = 20
    max_length: int = 256
    permutations: int = 50
    resamples: int = 1000
    seed: int = 0
    attack: Attack | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise EntangleError("a measurement needs prompts: add [measure.prompts.NAME] with files or documents")
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown or "ITI" not in self.methods:
            wrong = f"not {unknown[0]!r}" if unknown else "ITI among them"
            raise EntangleError(f"methods of a measurement are of {', '.join(METHODS)}, {wrong}")
        if not self.alphas or not all(math.isfinite(alpha) and alpha > 0 for alpha in self.alphas):
            raise EntangleError(f"alphas of a measurement are positive numbers, not {list(self.alphas)}")
        if self.direction not in PROBES:
            raise EntangleError(f"direction of a measurement is one of {', '.join(PROBES)}, not {self.direction!r}")
        if self.concept in self.others:
            raise EntangleError(f"two concepts are named {self.concept!r}: rename one")

    def heads(self, of: int) -> int:
        """How many heads ITI moves in a model that has so many."""
        return self.top_k or min(MOST_HEADS, max(1, of // 4))

    def load(self, root: Path, held_out: list[str]) -> MeasuredTexts:
        """Every text; relative paths are taken from `root`.

        Args:
            root: where relative paths start.
            held_out: the recipe's clean documents that no model sees.
        """
        return MeasuredTexts(
            labelled=self.labelled.load(root),
            others={name: source.load(root) for name, source in self.others.items()},
            prompts={name: source.prompts(root) for name, source in self.prompts.items()},
            clean=held_out[: self.clean_documents or None],
        )


@dataclass(frozen=True)
class MeasuredTexts:
    """The texts of a measurement."""

    labelled: LabelledTexts
    others: Mapping[str, LabelledTexts]
    prompts: Mapping[str, list[str]]
    clean: list[str]

    def by_name(self) -> dict[str, list[str]]:
        """The texts a model must not have been trained on, by what they are for."""
        others = {f"{name} concept": data.texts for name, data in self.others.items()}
        prompts = {f"{name} prompt": texts for name, texts in self.prompts.items()}
        return {"labelled": self.labelled.texts, **others, **prompts}
