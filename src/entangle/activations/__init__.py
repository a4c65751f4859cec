"""Texts to activations."""

from entangle.activations.activations import Activations
from entangle.activations.collect import collect
from entangle.activations.inputs.chat import Turn

__all__ = ["Activations", "Turn", "collect"]
