"""Activations and labels to linear probes, leak-free, with a null beside every number."""

from entangle.probes.estimators import (
    LDAProbe,
    LinearProbe,
    LinearSVMProbe,
    LogisticProbe,
    MeanDifferenceProbe,
    RidgeProbe,
)
from entangle.probes.fit import fit_probes
from entangle.probes.grid import ProbeGrid
from entangle.probes.judging.baselines import (
    BaselineResult,
    bag_of_words,
    majority_class,
    mean_embeddings,
    random_direction,
)
from entangle.probes.judging.compare import Comparison, compare
from entangle.probes.judging.control import Selectivity, control_labels, selectivity
from entangle.probes.judging.mdl import CodeLength, online_mdl
from entangle.probes.judging.reliability import split_half
from entangle.probes.splits import Split, named_split, three_way

__all__ = [
    "BaselineResult",
    "CodeLength",
    "Comparison",
    "LDAProbe",
    "LinearProbe",
    "LinearSVMProbe",
    "LogisticProbe",
    "MeanDifferenceProbe",
    "ProbeGrid",
    "RidgeProbe",
    "Selectivity",
    "Split",
    "bag_of_words",
    "compare",
    "control_labels",
    "fit_probes",
    "majority_class",
    "mean_embeddings",
    "named_split",
    "online_mdl",
    "random_direction",
    "selectivity",
    "split_half",
    "three_way",
]
