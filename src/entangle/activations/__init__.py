"""Texts to activations."""

from entangle.activations.activations import Activations
from entangle.activations.collect import collect

__all__ = ["Activations", "collect"]
