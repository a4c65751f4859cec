"""Models small enough to know the truth: superposition, rare data, and planted concepts."""

from entangle.toy.datashare import data_share_study
from entangle.toy.elhage import SuperpositionStudy, superposition_study
from entangle.toy.ensemble import StackedGPT2
from entangle.toy.features import BagOfWords, SparseFeatures
from entangle.toy.geometry import Geometry, Polytope, geometry
from entangle.toy.markov import MarkovMixture
from entangle.toy.planted import PlantedConcepts, PlantedSample, balanced_examples, recover, recovery_curve
from entangle.toy.sharetable import LITERAL, MOTIVATED, DataShareStudy
from entangle.toy.superposition import SuperpositionModel
from entangle.toy.sweeps import PhaseDiagram, dimension_plateaus, phase_diagram, polytope_census, rare_feature

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
