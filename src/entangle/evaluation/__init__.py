"""What steering buys and what it costs: scorers, sampled continuations, language, and the trade-off between them."""

from entangle.evaluation.baselines import baseline_methods
from entangle.evaluation.choice import chosen
from entangle.evaluation.classifier import ClassifierScorer
from entangle.evaluation.crosstalk import CrossTalk, cross_talk
from entangle.evaluation.entanglement import entanglement_report
from entangle.evaluation.entanglement_result import EntanglementReport
from entangle.evaluation.front import Matched, matched, pareto
from entangle.evaluation.functional import (
    FunctionalImportance,
    Reconstruct,
    functional_importance,
    subspace_projection,
)
from entangle.evaluation.gcg import Suffix, gcg
from entangle.evaluation.generation import continuations
from entangle.evaluation.interaction import interaction_gradients
from entangle.evaluation.language import PerDocument, cross_entropy, kl, language_shift
from entangle.evaluation.linear import LinearToxicityScorer
from entangle.evaluation.methods import AtStrengths, Checkpoint, Prompt, SelfDebias
from entangle.evaluation.places import caa_places, iti_places
from entangle.evaluation.preference import preference_ches
from entangle.evaluation.price import removed_per_nat
from entangle.evaluation.quality import degenerate_share, distinct_n, is_degenerate
from entangle.evaluation.reading import LanguageShift
from entangle.evaluation.results import Tradeoff
from entangle.evaluation.scorers import CachedScorer, Scorer, score, scorer_agreement
from entangle.evaluation.subject import Method, Subject
from entangle.evaluation.subspaces import nullspace_subspace
from entangle.evaluation.tasks import task_scores
from entangle.evaluation.tradeoff import SweepError, tradeoff

__all__ = [
    "AtStrengths",
    "CachedScorer",
    "Checkpoint",
    "ClassifierScorer",
    "CrossTalk",
    "EntanglementReport",
    "FunctionalImportance",
    "LanguageShift",
    "LinearToxicityScorer",
    "Matched",
    "Method",
    "PerDocument",
    "Prompt",
    "Reconstruct",
    "Scorer",
    "SelfDebias",
    "Subject",
    "Suffix",
    "SweepError",
    "Tradeoff",
    "baseline_methods",
    "caa_places",
    "chosen",
    "continuations",
    "cross_entropy",
    "cross_talk",
    "degenerate_share",
    "distinct_n",
    "entanglement_report",
    "functional_importance",
    "gcg",
    "interaction_gradients",
    "is_degenerate",
    "iti_places",
    "kl",
    "language_shift",
    "matched",
    "nullspace_subspace",
    "pareto",
    "preference_ches",
    "removed_per_nat",
    "score",
    "scorer_agreement",
    "subspace_projection",
    "task_scores",
    "tradeoff",
]
