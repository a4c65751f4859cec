"""What steering buys and what it costs: scorers, sampled continuations, language, and the trade-off between them."""

from entangle.evaluation.language.documents import PerDocument, cross_entropy, document_rows, kl, language_shift
from entangle.evaluation.language.gcg import Suffix, gcg
from entangle.evaluation.language.generation import Sampling, continuations, prompt_rows
from entangle.evaluation.language.quality import degenerate_share, distinct_n, is_degenerate
from entangle.evaluation.language.reading import LanguageShift
from entangle.evaluation.language.subject import Method, NotFiniteError, Subject, applied
from entangle.evaluation.language.tasks import task_scores
from entangle.evaluation.price.baselines import baseline_methods
from entangle.evaluation.price.choice import chosen
from entangle.evaluation.price.comparing import Matched, matched, pareto
from entangle.evaluation.price.conditions import Condition
from entangle.evaluation.price.logs import write_rows
from entangle.evaluation.price.methods import ANTI_PROMPT, INSTRUCTION, AtStrengths, Checkpoint, Prompt, SelfDebias
from entangle.evaluation.price.places import caa_places, iti_places
from entangle.evaluation.price.removed import removed_per_nat
from entangle.evaluation.price.result import Tradeoff
from entangle.evaluation.price.strength import strength_for
from entangle.evaluation.price.sweep import SweepError, tradeoff
from entangle.evaluation.scoring.classifier import ClassifierScorer
from entangle.evaluation.scoring.linear import LinearToxicityScorer
from entangle.evaluation.scoring.scorers import CachedScorer, Scorer, score, scorer_agreement, scorer_key

__all__ = [
    "ANTI_PROMPT",
    "INSTRUCTION",
    "AtStrengths",
    "CachedScorer",
    "Checkpoint",
    "ClassifierScorer",
    "Condition",
    "LanguageShift",
    "LinearToxicityScorer",
    "Matched",
    "Method",
    "NotFiniteError",
    "PerDocument",
    "Prompt",
    "Sampling",
    "Scorer",
    "SelfDebias",
    "Subject",
    "Suffix",
    "SweepError",
    "Tradeoff",
    "applied",
    "baseline_methods",
    "caa_places",
    "chosen",
    "continuations",
    "cross_entropy",
    "degenerate_share",
    "distinct_n",
    "document_rows",
    "gcg",
    "is_degenerate",
    "iti_places",
    "kl",
    "language_shift",
    "matched",
    "pareto",
    "prompt_rows",
    "removed_per_nat",
    "score",
    "scorer_agreement",
    "scorer_key",
    "strength_for",
    "task_scores",
    "tradeoff",
    "write_rows",
]
