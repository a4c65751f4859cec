"""Texts to activations."""

from entangle.activations.activations import Activations
from entangle.activations.capture import capture, model_device
from entangle.activations.collect import Inputs, collect, read_inputs
from entangle.activations.inputs.chat import Turn
from entangle.activations.inputs.examples import Examples, SignalExamples
from entangle.activations.inputs.reading import reads_decoder
from entangle.activations.inputs.tokens import select

__all__ = [
    "Activations",
    "Examples",
    "Inputs",
    "SignalExamples",
    "Turn",
    "capture",
    "collect",
    "model_device",
    "read_inputs",
    "reads_decoder",
    "select",
]
