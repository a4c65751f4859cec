"""What is measured of every model of a recipe, and the texts that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from entangle.composition.recipe.attack import Attack
from entangle.composition.recipe.sources import Labelled, Source
from entangle.errors import EntangleError
from entangle.study import Question, StudyTexts
from entangle.study.question import METHODS


@dataclass(frozen=True)
class Measurement:
    """What is measured of every model.

    Attributes:
        concept: What label 1 of `labelled` says, and what steering moves away from.
        labelled: Texts to probe, and to fit the interventions and the scorer on.
        prompts: Sets of texts to continue, by name.
        others: Further concepts, by name, to measure entanglement against.
        alphas: Strengths of the interventions, in standard deviations; 0 is always measured.
        methods: The interventions: of "ITI", "random heads", "random directions", "CAA", "ablation", "LEACE",
            "prompting" and "self-debias".
        top_k: Heads that ITI moves; 0 is a quarter of them, at most 30.
        direction: The estimator of the concepts' directions.
        forecast: Whether to foretell, at every layer, what steering each concept out costs at least and what a shift
            buys of it at most (see `entangle.forecast.foretell`): a few backward passes per text.
        clean_documents: Held-out documents on which cross-entropy is measured; 0 is all.
        samples: Continuations per prompt.
        max_new_tokens: Tokens a continuation.
        max_length: Cut texts and documents to this many tokens.
        permutations: Label permutations of the probes' null.
        resamples: Bootstrap resamples of the intervals within a model.
        seed: Decides every random draw.
        attack: Red-teaming of the models of every share and seed; none by default. It is saved apart from the rest.

    Example:
        >>> prompts = {"quarrels": en.composition.Source(documents=20)}
        >>> measure = en.composition.Measurement(en.composition.Labelled(concept="rudeness", documents=200), prompts)
        >>> measure.concept, measure.alphas
        ('toxicity', (4.0, 8.0, 12.0))
    """

    labelled: Labelled
    prompts: Mapping[str, Source]
    concept: str = "toxicity"
    others: Mapping[str, Labelled] = field(default_factory=dict)
    alphas: tuple[float, ...] = (4.0, 8.0, 12.0)
    methods: tuple[str, ...] = METHODS
    top_k: int = 0
    direction: str = "mean_difference"
    forecast: bool = False
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
        if not all(alpha > 0 for alpha in self.alphas):
            raise EntangleError(f"alphas of a measurement are positive numbers, not {list(self.alphas)}")
        if self.concept in self.others:
            raise EntangleError(f"two concepts are named {self.concept!r}: rename one")
        if self.clean_documents < 0 or self.clean_documents == 1:
            raise EntangleError(
                f"clean_documents of a measurement is 0 (all) or 2 and more, not {self.clean_documents}"
            )
        try:
            self.question()
        except EntangleError as error:
            raise EntangleError(f"in [measure], {error}") from None

    def question(self, *, prepend_bos: bool = False) -> Question:
        """What is asked of every model.

        Args:
            prepend_bos: Whether the models' tokenizer has a token that begins a text.
        """
        return Question(
            name=self.concept,
            direction=self.direction,
            layers="best",
            alphas=self.alphas,
            methods=self.methods,
            forecast=self.forecast,
            top_k=self.top_k or None,
            samples=self.samples,
            max_new_tokens=self.max_new_tokens,
            max_length=self.max_length,
            prepend_bos=prepend_bos,
            n_resamples=self.resamples,
            n_permutations=self.permutations,
            seed=self.seed,
        )

    def load(self, root: Path, held_out: list[str]) -> StudyTexts:
        """Every text; relative paths are taken from `root`.

        Args:
            root: Where relative paths start.
            held_out: The recipe's clean documents that no model sees.
        """
        return StudyTexts(
            labelled=self.labelled.load(root),
            concepts={name: source.load(root) for name, source in self.others.items()},
            prompts={name: source.prompts(root) for name, source in self.prompts.items()},
            clean=held_out[: self.clean_documents or None],
        )


def texts_by_use(texts: StudyTexts) -> dict[str, list[str]]:
    """The texts that a model must not have been trained on, by what they are for."""
    others = {f"{name} concept": data.texts for name, data in texts.concepts.items()}
    prompts = {f"{name} prompt": list(map(str, prompts)) for name, prompts in texts.prompts.items()}
    return {"labelled": texts.labelled.texts, **others, **prompts}
