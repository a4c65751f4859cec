"""Paths that modules and names had before version 0.2: they still import; of modules, as the same, with a warning.

Promised names never had another path than `entangle` itself; this is for code that reached further in.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "activations.batching": "models.rows",
    "activations.chat": "activations.inputs.chat",
    "activations.columns": "activations.inputs.columns",
    "activations.examples": "activations.inputs.examples",
    "activations.shards": "activations.disk.shards",
    "activations.store": "activations.disk.store",
    "activations.tokens": "activations.inputs.tokens",
    "composition.attack": "composition.measuring.attack",
    "composition.checkpoint": "composition.training.checkpoint",
    "composition.comparison": "composition.comparing.comparison",
    "composition.corpus": "composition.training.corpus",
    "composition.fitted": "composition.measuring.fitted",
    "composition.intervals": "composition.comparing.intervals",
    "composition.measure": "composition.measuring.measure",
    "composition.measurement": "composition.recipe.measurement",
    "composition.metadata": "composition.training.metadata",
    "composition.pairs": "composition.recipe.pairs",
    "composition.posttrained": "composition.measuring.pairs",
    "composition.posttraining": "composition.training.posttraining",
    "composition.processes": "composition.training.processes",
    "composition.red_teaming": "composition.comparing.attacks",
    "composition.sources": "composition.recipe.sources",
    "composition.stream": "composition.training.stream",
    "composition.tables": "storage.tables",
    "composition.tokenizer": "composition.training.tokenizer",
    "evaluation.baselines": "evaluation.methods.baselines",
    "evaluation.bench": "evaluation.price.bench",
    "evaluation.choice": "evaluation.price.choice",
    "evaluation.classifier": "evaluation.scoring.classifier",
    "evaluation.context": "models.rows",
    "evaluation.crosstalk": "concepts.crosstalk",
    "evaluation.digest": "storage.digest",
    "evaluation.entanglement": "concepts.report",
    "evaluation.entanglement_result": "concepts.result",
    "evaluation.estimates": "evaluation.price.estimates",
    "evaluation.fluency": "evaluation.language.fluency",
    "evaluation.front": "evaluation.price.comparing",
    "evaluation.functional": "concepts.functional",
    "evaluation.generation": "evaluation.language.generation",
    "evaluation.interaction": "concepts.interaction",
    "evaluation.intervals": "concepts.noise",
    "evaluation.linear": "evaluation.scoring.linear",
    "evaluation.places": "evaluation.methods.places",
    "evaluation.preference": "concepts.preference",
    "evaluation.price.baselines": "evaluation.methods.baselines",
    "evaluation.price.methods": "evaluation.methods",
    "evaluation.price.places": "evaluation.methods.places",
    "evaluation.quality": "evaluation.language.quality",
    "evaluation.reading": "evaluation.language.reading",
    "evaluation.record": "evaluation.price.conditions",
    "evaluation.refits": "concepts.refits",
    "evaluation.results": "evaluation.price.result",
    "evaluation.scorers": "evaluation.scoring.scorers",
    "evaluation.subject": "evaluation.language.subject",
    "evaluation.subspaces": "concepts.subspaces",
    "evaluation.tasks": "evaluation.language.tasks",
    "files": "storage.files",
    "interventions.affine": "interventions.forms",
    "interventions.carried": "interventions.weights.carried",
    "interventions.compile": "interventions.weights.bake",
    "interventions.conditional": "interventions.edits.when",
    "interventions.constant": "interventions.hooks.constant",
    "interventions.erase": "interventions.edits.erase",
    "interventions.iti": "interventions.edits.iti",
    "interventions.sae": "interventions.edits.sae",
    "interventions.scope": "interventions.hooks.scope",
    "interventions.store": "interventions.files",
    "models.batching": "models.rows",
    "models.context": "models.rows",
    "models.probe": "models.probe_inputs",
    "probes.baselines": "probes.judging.baselines",
    "probes.calibration": "probes.judging.calibration",
    "probes.closed_form": "probes.solving.closed_form",
    "probes.control": "probes.judging.control",
    "probes.files": "storage.record",
    "probes.losses": "probes.solving.losses",
    "probes.mdl": "probes.judging.mdl",
    "probes.null": "probes.judging.null",
    "probes.reliability": "probes.judging.reliability",
    "probes.scores": "probes.judging.scores",
    "probes.solvers": "probes.solving.solvers",
    "report.cache": "study.cache",
    "report.composition_attack": "report.composition.attacks",
    "report.composition_figures": "report.composition.figures",
    "report.composition_posttraining": "report.composition.posttraining",
    "report.drawing": "study.page.drawing",
    "report.figures": "study.page.figures",
    "report.numbers": "study.numbers",
    "report.page": "study.page.page",
    "report.settings": "study.settings",
    "report.steps": "study.steps",
    "toy.datashare": "toy.chains.study",
    "toy.definitions": "toy.chains.definitions",
    "toy.elhage": "toy.autoencoders.study",
    "toy.ensemble": "toy.chains.ensemble",
    "toy.features": "toy.autoencoders.features",
    "toy.markov": "toy.chains.markov",
    "toy.sharetable": "toy.chains.table",
    "toy.superposition": "toy.autoencoders.superposition",
    "toy.sweeps": "toy.autoencoders.sweeps",
}
# Modules whose name is also that of a function of their room: importing them must not put the module in its place.
NAMESAKES = {
    "composition.claims": "composition.comparing.claims",
    "composition.displacement": "composition.comparing.displacement",
    "evaluation.gcg": "evaluation.language.gcg",
    "evaluation.tradeoff": "evaluation.price.sweep",
    "interventions.export": "interventions.weights.export",
    "interventions.steer": "interventions.hooks.steer",
    "metrics.ranking": "metrics.intervals.ranking",
    "probes.compare": "probes.judging.compare",
    "toy.geometry": "toy.autoencoders.geometry",
}
# Names that a room showed before, which are in another room now, or have another name.
NAMES = {
    **{
        f"evaluation.{name}": f"concepts.{name}"
        for name in (
            *("CrossTalk", "EntanglementReport", "FunctionalImportance", "Reconstruct", "cross_talk"),
            *("entanglement_report", "functional_importance", "interaction_gradients", "nullspace_subspace"),
            *("preference_ches", "subspace_projection"),
        )
    },
    "probes.Comparison": "probes.GridComparison",
}
PREFIX = "entangle."


class _OldPaths(MetaPathFinder, Loader):
    """Finds a moved module under its old path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.removeprefix(PREFIX) not in MOVED or not fullname.startswith(PREFIX):
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = PREFIX + MOVED[spec.name.removeprefix(PREFIX)]
        warnings.warn(f"{spec.name} is now {new}; the old path goes with version 0.3", DeprecationWarning, stacklevel=2)
        module = import_module(new)
        spec.loader_state = module.__spec__  # the import system writes its own over it
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def understand_old_paths() -> None:
    """Let the old paths be imported, once a process."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(_OldPaths())
    for old, new in NAMESAKES.items():
        sys.modules.setdefault(PREFIX + old, sys.modules[PREFIX + new])
    for old, new in NAMES.items():
        (room, name), (owner, now) = (path.rsplit(".", 1) for path in (old, new))
        setattr(sys.modules[PREFIX + room], name, getattr(sys.modules[PREFIX + owner], now))
