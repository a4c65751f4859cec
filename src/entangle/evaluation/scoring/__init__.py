"""Scorers of text, and of answers beside their prompts: from labelled texts, classifiers, judges and rules."""

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
    "AnswerScorer",
    "CachedScorer",
    "ClassifierScorer",
    "DistinctScorer",
    "HarmonicMeanScorer",
    "JudgeScorer",
    "LanguageScorer",
    "LengthScorer",
    "LinearToxicityScorer",
    "ProbeScorer",
    "RefusalScorer",
    "Scorer",
    "score",
    "scorer_agreement",
    "scorer_key",
    "scorer_name",
    "sees_prompts",
]
