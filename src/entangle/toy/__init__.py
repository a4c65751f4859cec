"""Models small enough to know the truth: superposition, rare data, and planted concepts."""

from entangle.toy.autoencoders.features import BagOfWords, SparseFeatures
from entangle.toy.autoencoders.geometry import Geometry, Polytope, geometry
from entangle.toy.autoencoders.study import SuperpositionStudy, superposition_study
from entangle.toy.autoencoders.superposition import SuperpositionModel
from entangle.toy.autoencoders.sweeps import (
    PhaseDiagram,
    dimension_plateaus,
    phase_diagram,
    polytope_census,
    rare_feature,
)
from entangle.toy.chains.definitions import LITERAL, MOTIVATED
from entangle.toy.chains.ensemble import StackedGPT2
from entangle.toy.chains.markov import MarkovMixture
from entangle.toy.chains.study import data_share_study
from entangle.toy.chains.table import DataShareStudy
from entangle.toy.planted import PlantedConcepts, PlantedSample, balanced_examples, recover, recovery_curve

__all__ = [
    "LITERAL",
    "MOTIVATED",
    "BagOfWords",
    "DataShareStudy",
    "Geometry",
    "MarkovMixture",
    "PhaseDiagram",
    "PlantedConcepts",
    "PlantedSample",
    "Polytope",
    "SparseFeatures",
    "StackedGPT2",
    "SuperpositionModel",
    "SuperpositionStudy",
    "balanced_examples",
    "data_share_study",
    "dimension_plateaus",
    "geometry",
    "phase_diagram",
    "polytope_census",
    "rare_feature",
    "recover",
    "recovery_curve",
    "superposition_study",
]
