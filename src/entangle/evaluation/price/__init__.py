"""What steering buys against what it costs: the sweep over strengths, its table and its ratios."""

from entangle.evaluation.price.choice import chosen
from entangle.evaluation.price.comparing import Matched, matched, pareto
from entangle.evaluation.price.removed import removed_per_nat
from entangle.evaluation.price.result import Tradeoff
from entangle.evaluation.price.strength import strength_for
from entangle.evaluation.price.sweep import SweepError, tradeoff

__all__ = [
    "Matched",
    "SweepError",
    "Tradeoff",
    "chosen",
    "matched",
    "pareto",
    "removed_per_nat",
    "strength_for",
    "tradeoff",
]
