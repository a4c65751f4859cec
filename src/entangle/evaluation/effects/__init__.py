"""What else moved: behaviours plain and steered, one number with its null, and how often a concept occurs."""

from entangle.evaluation.effects.measure import BehavioursError, behaviours
from entangle.evaluation.effects.null import random_like
from entangle.evaluation.effects.prevalence import Flags, Prevalences, prevalence
from entangle.evaluation.effects.result import Behaviours, Measured
from entangle.evaluation.effects.tasks import Harness, Language, Read, Said, Task, Witness

__all__ = [
    "Behaviours",
    "BehavioursError",
    "Flags",
    "Harness",
    "Language",
    "Measured",
    "Prevalences",
    "Read",
    "Said",
    "Task",
    "Witness",
    "behaviours",
    "prevalence",
    "random_like",
]
