"""What steering buys against what it costs: methods, the sweep over strengths, its table and its ratios."""

from entangle.evaluation.price.baselines import baseline_methods
from entangle.evaluation.price.choice import chosen
from entangle.evaluation.price.comparing import Matched, matched, pareto
from entangle.evaluation.price.methods import AtStrengths, Checkpoint, Prompt, SelfDebias
from entangle.evaluation.price.places import caa_places, iti_places
from entangle.evaluation.price.removed import removed_per_nat
from entangle.evaluation.price.result import Tradeoff
from entangle.evaluation.price.strength import strength_for
from entangle.evaluation.price.sweep import SweepError, tradeoff

__all__ = [
    "AtStrengths",
    "Checkpoint",
    "Matched",
    "Prompt",
    "SelfDebias",
    "SweepError",
    "Tradeoff",
    "baseline_methods",
    "caa_places",
    "chosen",
    "iti_places",
    "matched",
    "pareto",
    "removed_per_nat",
    "strength_for",
    "tradeoff",
]
