"""How concepts stand to one another in a model: their entanglement with its nulls, cross-talk, subspaces, functions."""

from entangle.concepts.crosstalk import CrossTalk, cross_talk
from entangle.concepts.functional import (
    FunctionalImportance,
    Reconstruct,
    functional_importance,
    subspace_projection,
)
from entangle.concepts.interaction import interaction_gradients
from entangle.concepts.preference import preference_ches
from entangle.concepts.report import entanglement_report
from entangle.concepts.result import EntanglementReport
from entangle.concepts.subspaces import nullspace_subspace

__all__ = [
    "CrossTalk",
    "EntanglementReport",
    "FunctionalImportance",
    "Reconstruct",
    "cross_talk",
    "entanglement_report",
    "functional_importance",
    "interaction_gradients",
    "nullspace_subspace",
    "preference_ches",
    "subspace_projection",
]
