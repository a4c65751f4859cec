"""A study on disk: a folder with each of its parts in a folder of its own, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from entangle.concepts import EntanglementReport
from entangle.errors import EntangleError
from entangle.evaluation import Tradeoff
from entangle.evaluation.price.conditions import Condition
from entangle.forecast import Forecast
from entangle.interventions import ITI
from entangle.metrics import Estimate
from entangle.models import check_fingerprint
from entangle.probes import BaselineResult, ProbeGrid
from entangle.storage import folder as folders
from entangle.storage.folder import Kind
from entangle.storage.record import read, write
from entangle.storage.sealed import decoding, read_object
from entangle.study.question import Question

STUDY = "study.json"
KIND = Kind("a study", STUDY, "Study", remedy="save it again, to another folder")
WORDS, PROBES, ENTANGLEMENT, INTERVENTION, TRADEOFF = "words", "probes", "entanglement", "iti", "tradeoff.json"
FORECAST = "forecast.json"
SEVERAL = ("alphas", "costs", "methods")  # fields of a question that hold several


def write_study(folder: Path, parts: Mapping[str, Any]) -> None:
    """Write a study's fields into a folder, in place of a study that is there.

    Args:
        folder: Where; made if need be.
        parts: The fields of `Study`.

    Raises:
        EntangleError: Something else than a study is there, or it cannot be written to.
    """
    if folder.exists() and not (folder / STUDY).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise EntangleError(f"{folder} holds something else than a study: save to another folder")
    sweep: Tradeoff | None = parts["tradeoff"]
    words: BaselineResult | None = parts["words"]

    def fill(new: Path) -> None:
        for site, grid in parts["probes"].items():
            grid.save(new / PROBES / site)
        for layer, report in parts["entanglement"].items():
            report.save(new / ENTANGLEMENT / str(layer))
        if parts["iti"] is not None:
            parts["iti"].save_pretrained(new / INTERVENTION)
        if words is not None:
            ends = {"accuracy": list(map(float, words.accuracy)), "auroc": list(map(float, words.auroc))}
            write(new / WORDS, "BaselineResult", 1, {"scores": words.scores}, {"name": words.name, **ends})
        if sweep is not None:
            conditions = [condition.to_json() for condition in (sweep.plain, *sweep.changed)]
            rest = {"prompts": sweep.prompts, "scorers": sweep.scorers, "settings": dict(sweep.settings)}
            (new / TRADEOFF).write_text(json.dumps({"conditions": conditions, **rest}))
        if parts["forecast"] is not None:
            (new / FORECAST).write_text(json.dumps(parts["forecast"].to_dict()))

    own = {
        "question": asdict(parts["question"]),
        **{name: parts[name] for name in ("label", "notes", "missing", "about")},
        "sites": list(parts["probes"]),
        "layers": list(parts["entanglement"]),
    }
    folders.write(folder, KIND, own, fill)


def read_study(folder: Path, model: Any = None) -> dict[str, Any]:
    """The fields of a study that `write_study` wrote.

    Args:
        folder: Where.
        model: The model it is to be used with, if that is to be checked.

    Raises:
        EntangleError: No study is there, it is damaged or of another version, or it is of another model.
    """
    own = folders.read(folder, KIND)
    with decoding(folder, KIND.what, remedy=KIND.remedy):
        return _parts(folder, own, model)


def _parts(folder: Path, own: Mapping[str, Any], model: Any) -> dict[str, Any]:
    sweep = read_object(folder / TRADEOFF, "a sweep", remedy=KIND.remedy) if (folder / TRADEOFF).exists() else None
    foretold = folder / FORECAST
    if model is not None:
        check_fingerprint(own["about"]["fingerprint"], model, what=f"the study in {folder}")
    words = None
    if (folder / WORDS).exists():
        tensors, meta = read(folder / WORDS, "BaselineResult", 1)
        words = BaselineResult(meta["name"], Estimate(*meta["accuracy"]), Estimate(*meta["auroc"]), tensors["scores"])
    return {
        "question": Question(
            **{**own["question"], **{k: tuple(own["question"][k]) for k in ("alphas", "costs", "methods")}}
        ),
        "label": own["label"],
        "probes": {site: ProbeGrid.load(folder / PROBES / site) for site in own["sites"]},
        "words": words,
        "entanglement": {layer: EntanglementReport.load(folder / ENTANGLEMENT / str(layer)) for layer in own["layers"]},
        "iti": ITI.from_pretrained(folder / INTERVENTION) if (folder / INTERVENTION).exists() else None,
        "tradeoff": None if sweep is None else _tradeoff(sweep),
        "forecast": (
            Forecast.from_dict(read_object(foretold, "a forecast", remedy=KIND.remedy)) if foretold.exists() else None
        ),
        "notes": tuple(own["notes"]),
        "missing": own["missing"],
        "about": own["about"],
    }


def _tradeoff(saved: Mapping[str, Any]) -> Tradeoff:
    plain, *changed = (Condition.from_json(condition) for condition in saved["conditions"])
    return Tradeoff(plain, tuple(changed), tuple(saved["prompts"]), tuple(saved["scorers"]), saved["settings"])
