"""Edits of a running model: what to do, where, how far, and to which tokens."""

from entangle.interventions.affine import AffineForm, Form, FunctionForm
from entangle.interventions.carried import load_baked
from entangle.interventions.compile import bake
from entangle.interventions.conditional import When
from entangle.interventions.edit import Edit
from entangle.interventions.edits import Ablate, AddDirection, Affine, Clamp, Compose, Scale, Set
from entangle.interventions.erase import Erase, OracleErase
from entangle.interventions.export import export, transformer_lens_hooks
from entangle.interventions.iti import ITI
from entangle.interventions.sae import SAEFeature
from entangle.interventions.steer import Steering, steer

__all__ = [
    "ITI",
    "Ablate",
    "AddDirection",
    "Affine",
    "AffineForm",
    "Clamp",
    "Compose",
    "Edit",
    "Erase",
    "Form",
    "FunctionForm",
    "OracleErase",
    "SAEFeature",
    "Scale",
    "Set",
    "Steering",
    "When",
    "bake",
    "export",
    "load_baked",
    "steer",
    "transformer_lens_hooks",
]
