"""Edits of a running model: what to do, where, how far, and to which tokens."""

from entangle.interventions.base import finite_vector
from entangle.interventions.edit import Edit
from entangle.interventions.edits.directions import Ablate, AddDirection, Affine, Clamp, Compose, Scale, Set
from entangle.interventions.edits.erase import Erase, OracleErase
from entangle.interventions.edits.hold import Hold
from entangle.interventions.edits.iti import ITI
from entangle.interventions.edits.norms import KeepNorm, Rotate
from entangle.interventions.edits.sae import SAEFeature, TranscoderFeature
from entangle.interventions.edits.transport import GaussianTransport, LinearTransport
from entangle.interventions.edits.when import When
from entangle.interventions.foreign.autoencoders import Autoencoder, Transcoder
from entangle.interventions.foreign.read import read
from entangle.interventions.forms import AffineForm, Form, FunctionForm, merged
from entangle.interventions.hooks.steer import Steering, steer
from entangle.interventions.landing import Landing, landings
from entangle.interventions.weights.bake import bake
from entangle.interventions.weights.carried import load_baked
from entangle.interventions.weights.export import export, transformer_lens_hooks

__all__ = [
    "ITI",
    "Ablate",
    "AddDirection",
    "Affine",
    "AffineForm",
    "Autoencoder",
    "Clamp",
    "Compose",
    "Edit",
    "Erase",
    "Form",
    "FunctionForm",
    "GaussianTransport",
    "Hold",
    "KeepNorm",
    "Landing",
    "LinearTransport",
    "OracleErase",
    "Rotate",
    "SAEFeature",
    "Scale",
    "Set",
    "Steering",
    "Transcoder",
    "TranscoderFeature",
    "When",
    "bake",
    "export",
    "finite_vector",
    "landings",
    "load_baked",
    "merged",
    "read",
    "steer",
    "transformer_lens_hooks",
]
