"""Activations and labels to linear probes, leak-free, with a null beside every number."""

from entangle.probes.baselines import BaselineResult, bag_of_words
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
from entangle.probes.splits import Split, three_way

__all__ = [
    "BaselineResult",
    "LDAProbe",
    "LinearProbe",
    "LinearSVMProbe",
    "LogisticProbe",
    "MeanDifferenceProbe",
    "ProbeGrid",
    "RidgeProbe",
    "Split",
    "bag_of_words",
    "fit_probes",
    "three_way",
]
