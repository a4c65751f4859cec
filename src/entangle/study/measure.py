"""The report's measurement from end to end; its numbers go into one dictionary, which is `report.json`."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from entangle.models import fingerprint
from entangle.probes import bag_of_words
from entangle.study.result import (
    baseline_numbers,
    data_numbers,
    entanglement_numbers,
    grid_numbers,
    intervention_numbers,
    plain,
    sample_numbers,
    tradeoff_numbers,
)
from entangle.study.settings import Settings
from entangle.study.steps import Subject, bos_note, data_notes, entangle, noise_note, probe, read, split_of, steer_out

FORMAT = 1
PACKAGES = ("entangle", "torch", "transformers", "tokenizers", "scikit-learn", "numpy", "scipy")


def measure(
    settings: Settings, *, cache: Path | None = None, label: str | None = None, progress: bool = True
) -> dict[str, Any]:
    """Measure one concept in one model.

    Args:
        settings: What, on what, and how.
        cache: Where captured activations are kept between runs; nowhere by default.
        label: What to call the model on the page; by default the last part of its path.
        progress: Whether to show bars.

    Returns:
        The numbers of the report, JSON-able: what `render` draws and `write` writes.

    Raises:
        EntangleError: One line that says what was wrong with the input and what to do.
    """
    settings.check()
    clock = _Clock()
    with clock("load"):
        inputs = read(settings)
        subject = Subject.of(settings, cache, progress)
        subject.check(inputs)
    with clock("capture"):
        activations = subject.activations(inputs.data, "z", "resid_post")
        others = {name: (subject.activations(data, "resid_post"), data) for name, data in inputs.concepts.items()}
    with clock("probe"):
        split = split_of(inputs.data, settings.seed)
        grids = {site: probe(site, activations, inputs.data, split, subject) for site in ("z", "resid_post")}
        words = bag_of_words(
            inputs.data.texts, inputs.data.labels, split, n_resamples=settings.resamples, seed=settings.seed
        )
    probes = {site: grid_numbers(grid, activations.layers(site)) for site, grid in grids.items()}
    numbers: dict[str, Any] = {"intervention": None, "scorer": None, "tradeoff": None, "samples": [], "notes": []}
    numbers["notes"] += data_notes(inputs, settings.seed)
    if not subject.model.can_generate():
        numbers["notes"] += ["This model does not generate text, so the price of steering is not measured."]
    with clock("entangle"):
        reports = entangle({settings.concept: (activations, inputs.data), **others}, settings) if others else None
    best_layer = probes["resid_post"]["best"]["layer"]
    if reports:
        numbers["notes"] += noise_note(reports, best_layer)
    if settings.steers:
        with clock("steer"):
            steered = steer_out(activations, grids["z"], inputs, split, subject)
            numbers |= {
                "intervention": intervention_numbers(steered.iti, activations.layers("z")),
                "scorer": {"name": steered.scorer.name, **getattr(steered.scorer, "report", {})},
                "tradeoff": tradeoff_numbers(steered.tradeoff, settings.resamples, settings.seed),
                "samples": sample_numbers(steered.tradeoff, settings.seed),
            }
            numbers["notes"] += bos_note(inputs, subject)
    table = subject.atlas.table()
    sources = [(settings.concept, settings.data, inputs.data)]
    sources += [(name, settings.concepts[name], data) for name, data in inputs.concepts.items()]
    found: dict[str, Any] = plain(
        {
            "format": FORMAT,
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "label": label or Path(settings.model).name,
            "concept": settings.concept,
            "settings": settings.to_dict(),
            "command": settings.command(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "seconds": clock.seconds,
            "fingerprint": fingerprint(subject.model),
            "atlas": {"columns": list(table.columns), "rows": table.to_numpy().tolist()},
            "data": [data_numbers(*source) for source in sources],
            "split": {part: len(getattr(split, part)) for part in ("fit", "select", "report")},
            "probes": probes,
            "baselines": baseline_numbers(words, torch.from_numpy(inputs.data.labels), split),
            "entanglement": reports and entanglement_numbers(reports, best_layer),
            **numbers,
        }
    )
    return found


class _Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[step] = round(time.perf_counter() - began, 2)
