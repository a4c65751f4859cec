"""Ways of steering: directions, heads, prompts, other decoding and other checkpoints, handed out by name."""

from entangle.evaluation.methods.baselines import Methods, baseline_methods
from entangle.evaluation.methods.decoding import ANTI_PROMPT, ContrastiveDecoding, DExperts, SelfDebias
from entangle.evaluation.methods.directions import DirectionSet, concept_directions, feature_direction
from entangle.evaluation.methods.given import INSTRUCTION, AtStrengths, Checkpoint, Prompt, Scoped
from entangle.evaluation.methods.heads import CausalHeads, causal_heads
from entangle.evaluation.methods.places import caa_places, iti_places

__all__ = [
    "ANTI_PROMPT",
    "INSTRUCTION",
    "AtStrengths",
    "CausalHeads",
    "Checkpoint",
    "ContrastiveDecoding",
    "DExperts",
    "DirectionSet",
    "Methods",
    "Prompt",
    "Scoped",
    "SelfDebias",
    "baseline_methods",
    "caa_places",
    "causal_heads",
    "concept_directions",
    "feature_direction",
    "iti_places",
]
