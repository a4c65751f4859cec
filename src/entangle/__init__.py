"""How entangled is a concept in a model, and what does it cost to steer it out?"""

from entangle import composition, data, interventions, metrics, probes, toy
from entangle.activations import Activations, Turn, collect
from entangle.concepts import EntanglementReport, entanglement_report
from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.evaluation import (
    ClassifierScorer,
    JudgeScorer,
    LinearToxicityScorer,
    Tradeoff,
    strength_for,
    tradeoff,
)
from entangle.examples import Example, example
from entangle.forecast import Contrast, NaturalShift, ShiftMetric
from entangle.interventions import (
    ITI,
    Ablate,
    AddDirection,
    Affine,
    Clamp,
    Compose,
    Edit,
    Erase,
    GaussianTransport,
    Hold,
    KeepNorm,
    LinearTransport,
    OracleErase,
    Rotate,
    SAEFeature,
    Scale,
    Set,
    When,
    load_baked,
    steer,
)
from entangle.learning import Learned, learn
from entangle.metrics import entanglement
from entangle.models import Atlas, AtlasError
from entangle.moved import understand_old_paths
from entangle.probes import (
    LDAProbe,
    LinearSVMProbe,
    LogisticProbe,
    MeanDifferenceProbe,
    ProbeGrid,
    RidgeProbe,
    fit_probes,
)
from entangle.study import Study, study
from entangle.verify import VerifyReport, verify

__version__ = "0.2.0.dev0"

understand_old_paths()

__all__ = [
    "ITI",
    "Ablate",
    "Activations",
    "AddDirection",
    "Affine",
    "Atlas",
    "AtlasError",
    "Clamp",
    "ClassifierScorer",
    "Compose",
    "Contrast",
    "Directions",
    "Edit",
    "EntangleError",
    "EntanglementReport",
    "Erase",
    "Example",
    "GaussianTransport",
    "Hold",
    "JudgeScorer",
    "KeepNorm",
    "LDAProbe",
    "Learned",
    "LinearSVMProbe",
    "LinearToxicityScorer",
    "LinearTransport",
    "LogisticProbe",
    "MeanDifferenceProbe",
    "NaturalShift",
    "OracleErase",
    "ProbeGrid",
    "RidgeProbe",
    "Rotate",
    "SAEFeature",
    "Scale",
    "Set",
    "ShiftMetric",
    "Study",
    "Tradeoff",
    "Turn",
    "VerifyReport",
    "When",
    "collect",
    "composition",
    "data",
    "entanglement",
    "entanglement_report",
    "example",
    "fit_probes",
    "interventions",
    "learn",
    "load_baked",
    "metrics",
    "probes",
    "steer",
    "strength_for",
    "study",
    "toy",
    "tradeoff",
    "verify",
]
