"""The edits: what each does, as forms."""

from entangle.interventions.edits.directions import Ablate, AddDirection, Affine, Clamp, Compose, Scale, Set
from entangle.interventions.edits.erase import Erase, OracleErase
from entangle.interventions.edits.hold import Hold
from entangle.interventions.edits.iti import ITI
from entangle.interventions.edits.norms import KeepNorm, Rotate
from entangle.interventions.edits.sae import SAEFeature
from entangle.interventions.edits.transport import GaussianTransport, LinearTransport
from entangle.interventions.edits.when import When

__all__ = [
    "ITI",
    "Ablate",
    "AddDirection",
    "Affine",
    "Clamp",
    "Compose",
    "Erase",
    "GaussianTransport",
    "Hold",
    "KeepNorm",
    "LinearTransport",
    "OracleErase",
    "Rotate",
    "SAEFeature",
    "Scale",
    "Set",
    "When",
]
