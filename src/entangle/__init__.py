"""How entangled is a concept in a model, and what does it cost to steer it out?"""

from entangle import composition, data, metrics, probes, toy
from entangle.activations import Activations, collect
from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.evaluation import (
    ClassifierScorer,
    EntanglementReport,
    LinearToxicityScorer,
    Tradeoff,
    entanglement_report,
    tradeoff,
)
from entangle.interventions import ITI, Ablate, AddDirection, Clamp, Erase, When, steer
from entangle.metrics import entanglement
from entangle.models import Atlas, AtlasError
from entangle.probes import (
    LDAProbe,
    LinearSVMProbe,
    LogisticProbe,
    MeanDifferenceProbe,
    ProbeGrid,
    RidgeProbe,
    fit_probes,
)
from entangle.verify import VerifyReport, verify

__version__ = "0.1.0"

__all__ = [
    "ITI",
    "Ablate",
    "Activations",
    "AddDirection",
    "Atlas",
    "AtlasError",
    "Clamp",
    "ClassifierScorer",
    "Directions",
    "EntangleError",
    "EntanglementReport",
    "Erase",
    "LDAProbe",
    "LinearSVMProbe",
    "LinearToxicityScorer",
    "LogisticProbe",
    "MeanDifferenceProbe",
    "ProbeGrid",
    "RidgeProbe",
    "Tradeoff",
    "VerifyReport",
    "When",
    "collect",
    "composition",
    "data",
    "entanglement",
    "entanglement_report",
    "fit_probes",
    "metrics",
    "probes",
    "steer",
    "toy",
    "tradeoff",
    "verify",
]
