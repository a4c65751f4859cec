"""Activations and labels to linear probes, leak-free, with a null beside every number."""

from entangle.probes.estimators import (
    PROBES,
    LDAProbe,
    LinearSVMProbe,
    LogisticProbe,
    MeanDifferenceProbe,
    RidgeProbe,
    make_probe,
)
from entangle.probes.exporting import FittedProbe
from entangle.probes.fit import fit_probes
from entangle.probes.grid import ProbeGrid
from entangle.probes.inputs import encode_groups
from entangle.probes.judging.baselines import (
    BaselineResult,
    bag_of_words,
    majority_class,
    mean_embeddings,
    random_direction,
)
from entangle.probes.judging.calibration import expected_calibration_error
from entangle.probes.judging.compare import GridComparison, compare
from entangle.probes.judging.control import Selectivity, control_labels, selectivity
from entangle.probes.judging.mdl import CodeLength, online_mdl
from entangle.probes.judging.null import permuted_within
from entangle.probes.judging.reliability import split_half
from entangle.probes.judging.scores import correct, separation
from entangle.probes.linear import LinearProbe
from entangle.probes.solving.losses import LogisticLoss
from entangle.probes.solving.solvers import Design, minimise, warn_unconverged
from entangle.probes.splits import Split, named_split, three_way

__all__ = [
    "PROBES",
    "BaselineResult",
    "CodeLength",
    "Design",
    "FittedProbe",
    "GridComparison",
    "LDAProbe",
    "LinearProbe",
    "LinearSVMProbe",
    "LogisticLoss",
    "LogisticProbe",
    "MeanDifferenceProbe",
    "ProbeGrid",
    "RidgeProbe",
    "Selectivity",
    "Split",
    "bag_of_words",
    "compare",
    "control_labels",
    "correct",
    "encode_groups",
    "expected_calibration_error",
    "fit_probes",
    "majority_class",
    "make_probe",
    "mean_embeddings",
    "minimise",
    "named_split",
    "online_mdl",
    "permuted_within",
    "random_direction",
    "selectivity",
    "separation",
    "split_half",
    "three_way",
    "warn_unconverged",
]
