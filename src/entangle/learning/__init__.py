"""Vectors found by gradient through the model: learned under a budget, or pulled back from a later layer."""

from entangle.learning.fit import Learned, learn
from entangle.learning.lineas import lineas
from entangle.learning.pullback import pulled_back

__all__ = ["Learned", "learn", "lineas", "pulled_back"]
