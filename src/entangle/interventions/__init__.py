"""Edits of a running model: what to do, where, how far, and to which tokens."""

from entangle.interventions.affine import AffineForm, Form, FunctionForm
from entangle.interventions.base import Edit
from entangle.interventions.edits import Ablate, AddDirection, Affine, Clamp, Compose, Scale, Set
from entangle.interventions.iti import ITI
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
    "Form",
    "FunctionForm",
    "Scale",
    "Set",
    "Steering",
    "steer",
]
