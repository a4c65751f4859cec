"""Scorers of text, from labelled texts or from a classifier."""

from entangle.evaluation.scoring.classifier import ClassifierScorer
from entangle.evaluation.scoring.linear import LinearToxicityScorer
from entangle.evaluation.scoring.scorers import CachedScorer, Scorer, score, scorer_agreement, scorer_key

__all__ = [
    "CachedScorer",
    "ClassifierScorer",
    "LinearToxicityScorer",
    "Scorer",
    "score",
    "scorer_agreement",
    "scorer_key",
]
