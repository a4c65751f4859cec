"""What is asked of a model, on whatever texts: everything that decides a study's numbers but the texts themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from entangle.errors import EntangleError
from entangle.evaluation import RECIPES
from entangle.probes.estimators import PROBES

MOST_HEADS = 30  # what Li et al. 2025 take of 384
METHODS = ("ITI", "random heads", "random directions", "CAA", "ablation", "LEACE", "prompting", "self-debias")
AT_HAND = {"model", "tokenizer", "texts", "words"}
ON_CLEAN = {"clean", "metric"}
OF_MODELS = {"checkpoint", "expert"}
MORE = tuple(
    name
    for name, recipe in RECIPES.items()
    if set(recipe.needs) <= AT_HAND | ON_CLEAN | OF_MODELS and name not in METHODS
)
FROM_ROWS = tuple(
    name for name in (*METHODS, *MORE) if set(RECIPES[name].needs) <= AT_HAND and name != "contrastive decoding"
)
"""Methods that are wholly made of the labelled texts and the model, as ITI is."""
MOST_ALPHA = 1_000_000  # far beyond what leaves any language, and far below what overflows
MOST_SEED = 2**32 - 1  # what every generator that is seeded takes
LEAST = {
    "top_k": 1,
    "samples": 1,
    "max_new_tokens": 1,
    "max_length": 1,
    "batch_tokens": 1,
    "n_resamples": 100,
    "n_permutations": 20,
}

LayerChoice = Literal["all", "best"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What to measure, and how.

    Attributes:
        name: What label 1 says; what steering moves away from.
        direction: The estimator of the concepts' directions: "mean_difference", which a mass-mean intervention moves
            along, or the normal of a "logistic", "lda", "ridge" or "svm" probe.
        layers: After which layers entanglement is measured: "all", or the "best" for the concept alone.
        alphas: Strengths of the interventions, in standard deviations; 0, no steering, is always measured.
        costs: Prices to measure at instead of `alphas`, in nats per token of clean text: each method's strength is
            solved for them on every other clean document, and the rest tell what is paid.
        methods: Which interventions, of `METHODS` and `MORE`; "ITI" is among them. Where one is fitted on clean text,
            it has a share of the documents as large as each of the others.
        forecast: Whether the price of steering is foretold from clean text (see `entangle.forecast.foretell`).
        top_k: Heads that the intervention moves; by default a quarter of them, at most 30.
        samples: Continuations per prompt.
        max_new_tokens: Tokens per continuation.
        turns: Where clean text is conversations: the role whose turns language is measured on, such as "assistant"; by
            default all that the chat template writes.
        max_length: Cut texts and documents to this many tokens; by default longer ones than the context are refused.
        prepend_bos: Put the beginning-of-text token before every text.
        batch_tokens: Tokens per batch, padding included.
        n_resamples: Bootstrap resamples of every interval.
        n_permutations: Label permutations of the null.
        seed: Seed of every random draw.

    Raises:
        EntangleError: One line that names the setting and what to do.

    Example:
        >>> from entangle.study import Question
        >>> question = Question(name="rudeness", alphas=(4.0, 8.0))
        >>> question.heads(384), question.heads(8)  # a quarter of the heads, at most 30
        (30, 2)
    """

    name: str = "concept"
    direction: str = "mean_difference"
    layers: LayerChoice = "all"
    alphas: tuple[float, ...] = (0.0, 4.0, 8.0, 12.0)
    costs: tuple[float, ...] = ()
    methods: tuple[str, ...] = ("ITI",)
    forecast: bool = False
    top_k: int | None = None
    samples: int = 1
    max_new_tokens: int = 20
    turns: str | None = None
    max_length: int | None = None
    prepend_bos: bool = False
    batch_tokens: int = 8192
    n_resamples: int = 1000
    n_permutations: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise EntangleError("a concept needs a name; got an empty one: say what label 1 says")
        if not self.alphas:
            raise EntangleError("alphas needs a strength at least; got none: give some, such as 0, 4, 8, 12")
        if not all(math.isfinite(cost) and cost > 0 for cost in self.costs):
            raise EntangleError(f"costs are positive numbers of nats per token; got {list(self.costs)}: give .1 or so")
        bad = [alpha for alpha in self.alphas if not math.isfinite(alpha) or abs(alpha) > MOST_ALPHA]
        if bad:
            raise EntangleError(
                f"alphas must be finite numbers of at most {MOST_ALPHA:,} standard deviations; got {bad[0]}: give some "
                "such as 0, 4, 8, 12"
            )
        if self.direction not in PROBES:
            raise EntangleError(f"direction must be one of {', '.join(PROBES)}; got {self.direction!r}: choose one")
        if self.layers not in ("all", "best"):
            raise EntangleError(f'layers must be "all" or "best"; got {self.layers!r}: choose one')
        check_methods(self.methods)
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise EntangleError(f"{name} must be at least {least}; got {value}: give more, or leave it out")
        check_seed(self.seed)

    @property
    def on_clean(self) -> tuple[str, ...]:
        """Those of the methods that are fitted on clean text, of which their price is then not read."""
        return tuple(name for name in self.methods if ON_CLEAN & set(RECIPES[name].needs))

    @property
    def of_models(self) -> tuple[str, ...]:
        """Those of the methods that need another model."""
        return tuple(name for name in self.methods if OF_MODELS & set(RECIPES[name].needs))

    def heads(self, of: int) -> int:
        """How many heads the intervention moves in a model that has so many.

        Raises:
            EntangleError: More are asked for than there are.
        """
        if self.top_k is not None and self.top_k > of:
            raise EntangleError(f"top_k {self.top_k} is more than the model's {of} heads: choose fewer")
        return self.top_k or min(MOST_HEADS, max(1, of // 4))


def check_methods(methods: Sequence[str]) -> None:
    """Refuse interventions that are not known, or that leave ITI out.

    Raises:
        EntangleError: One line that names the method.
    """
    known = (*METHODS, *MORE)
    unknown = [method for method in methods if method not in known]
    if unknown or "ITI" not in methods:
        wrong = repr(unknown[0]) if unknown else "no ITI among them"
        raise EntangleError(f"methods must be of {', '.join(known)}, with ITI; got {wrong}: choose from these")


def check_seed(seed: int) -> None:
    """Refuse a seed that some generator does not take.

    Raises:
        EntangleError: It is not a whole number from 0 to 2**32 - 1.

    Example:
        >>> from entangle.study import check_seed
        >>> try:
        ...     check_seed(-1)
        ... except en.EntangleError as error:
        ...     print(error)
        seed must be a whole number from 0 to 4294967295; got -1: choose another
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST_SEED:
        raise EntangleError(f"seed must be a whole number from 0 to {MOST_SEED}; got {seed!r}: choose another")
