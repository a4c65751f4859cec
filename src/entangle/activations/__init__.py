"""Texts to activations."""

from entangle.activations.activations import Activations
from entangle.activations.chat import Turn
from entangle.activations.collect import collect

__all__ = ["Activations", "Turn", "collect"]
