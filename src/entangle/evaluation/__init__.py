"""What steering buys and what it costs: scorers, sampled continuations, language, and the trade-off between them."""

from entangle.evaluation.effects.measure import BehavioursError, behaviours
from entangle.evaluation.effects.null import random_like
from entangle.evaluation.effects.prevalence import Flags, Prevalences, prevalence
from entangle.evaluation.effects.result import Behaviours, Measured
from entangle.evaluation.effects.tasks import Harness, Language, Read, Said, Task, Witness
from entangle.evaluation.language.documents import PerDocument, cross_entropy, document_rows, kl, language_shift
from entangle.evaluation.language.gcg import Suffix, gcg
from entangle.evaluation.language.generation import Sampling, continuations, prompt_rows
from entangle.evaluation.language.quality import degenerate_share, distinct_n, is_degenerate
from entangle.evaluation.language.reading import LanguageShift, row_nats
from entangle.evaluation.language.subject import Method, NotFiniteError, Subject, applied
from entangle.evaluation.language.tasks import task_scores
from entangle.evaluation.methods.baselines import CONTROLS, RECIPES, Methods, baseline_methods
from entangle.evaluation.methods.decoding import ANTI_PROMPT, ContrastiveDecoding, DExperts, SelfDebias
from entangle.evaluation.methods.directions import DirectionSet, concept_directions, feature_direction
from entangle.evaluation.methods.given import INSTRUCTION, AtStrengths, Checkpoint, Prompt, Scoped
from entangle.evaluation.methods.heads import CausalHeads, causal_heads
from entangle.evaluation.methods.pairs import agreement, leading_component, paired_rows
from entangle.evaluation.methods.places import caa_places, iti_places
from entangle.evaluation.methods.words import telling_tokens
from entangle.evaluation.price.choice import best_method, chosen
from entangle.evaluation.price.comparing import Matched, matched, pareto
from entangle.evaluation.price.conditions import Condition
from entangle.evaluation.price.logs import write_rows
from entangle.evaluation.price.removed import removed_per_nat
from entangle.evaluation.price.result import Tradeoff
from entangle.evaluation.price.strength import strength_for
from entangle.evaluation.price.sweep import SweepError, tradeoff
from entangle.evaluation.scoring.classifier import ClassifierScorer
from entangle.evaluation.scoring.combined import HarmonicMeanScorer
from entangle.evaluation.scoring.distinct import DistinctScorer
from entangle.evaluation.scoring.judge import JudgeScorer
from entangle.evaluation.scoring.linear import LinearToxicityScorer
from entangle.evaluation.scoring.probe import ProbeScorer
from entangle.evaluation.scoring.rules import LanguageScorer, LengthScorer, RefusalScorer
from entangle.evaluation.scoring.scorers import (
    AnswerScorer,
    CachedScorer,
    Scorer,
    score,
    scorer_agreement,
    scorer_key,
    scorer_name,
    sees_prompts,
)

__all__ = [
    "ANTI_PROMPT",
    "CONTROLS",
    "INSTRUCTION",
    "RECIPES",
    "AnswerScorer",
    "AtStrengths",
    "Behaviours",
    "BehavioursError",
    "CachedScorer",
    "CausalHeads",
    "Checkpoint",
    "ClassifierScorer",
    "Condition",
    "ContrastiveDecoding",
    "DExperts",
    "DirectionSet",
    "DistinctScorer",
    "Flags",
    "HarmonicMeanScorer",
    "Harness",
    "JudgeScorer",
    "Language",
    "LanguageScorer",
    "LanguageShift",
    "LengthScorer",
    "LinearToxicityScorer",
    "Matched",
    "Measured",
    "Method",
    "Methods",
    "NotFiniteError",
    "PerDocument",
    "Prevalences",
    "ProbeScorer",
    "Prompt",
    "Read",
    "RefusalScorer",
    "Said",
    "Sampling",
    "Scoped",
    "Scorer",
    "SelfDebias",
    "Subject",
    "Suffix",
    "SweepError",
    "Task",
    "Tradeoff",
    "Witness",
    "agreement",
    "applied",
    "baseline_methods",
    "behaviours",
    "best_method",
    "caa_places",
    "causal_heads",
    "chosen",
    "concept_directions",
    "continuations",
    "cross_entropy",
    "degenerate_share",
    "distinct_n",
    "document_rows",
    "feature_direction",
    "gcg",
    "is_degenerate",
    "iti_places",
    "kl",
    "language_shift",
    "leading_component",
    "matched",
    "paired_rows",
    "pareto",
    "prevalence",
    "prompt_rows",
    "random_like",
    "removed_per_nat",
    "row_nats",
    "score",
    "scorer_agreement",
    "scorer_key",
    "scorer_name",
    "sees_prompts",
    "strength_for",
    "task_scores",
    "telling_tokens",
    "tradeoff",
    "write_rows",
]
