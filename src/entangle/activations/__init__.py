"""Texts to activations."""

from entangle.activations.activations import Activations
from entangle.activations.capture import capture, model_device
from entangle.activations.collect import Inputs, collect, read_inputs
from entangle.activations.inputs.answering import answer_ends, before_conversation, prompt_tokens, turn_mask
from entangle.activations.inputs.chat import Conversations, Turn, read_conversations
from entangle.activations.inputs.examples import Examples, SignalExamples
from entangle.activations.inputs.reading import reads_decoder
from entangle.activations.inputs.tokens import select, turn_positions

__all__ = [
    "Activations",
    "Conversations",
    "Examples",
    "Inputs",
    "SignalExamples",
    "Turn",
    "answer_ends",
    "before_conversation",
    "capture",
    "collect",
    "model_device",
    "prompt_tokens",
    "read_conversations",
    "read_inputs",
    "reads_decoder",
    "select",
    "turn_mask",
    "turn_positions",
]
