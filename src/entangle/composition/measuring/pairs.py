"""A finished model of a recipe trained further on its pairs, and what that did to them."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from entangle.composition.comparing.displacement import changes, ches_scores, likelihoods
from entangle.composition.plan import Plan
from entangle.composition.recipe.recipe import Cell
from entangle.composition.training.posttraining import PostTraining, posttrain
from entangle.errors import EntangleError
from entangle.models import load
from entangle.storage.digest import digest, folder_digest
from entangle.storage.sealed import read_sealed

METRICS = "metrics.json"


def is_current(plan: Plan, cell: Cell, folder: Path) -> bool:
    """Whether a folder holds the model that its settings, its pairs and the model it starts from make."""
    if not (folder / METRICS).exists():
        return False
    return bool(read_metrics(folder).get("key", "") == _key(plan, cell, folder.with_name(cell.base)))


def read_metrics(folder: Path) -> dict[str, Any]:
    """The numbers of a finished model.

    Raises:
        EntangleError: There are none, or they are damaged.
    """
    return read_sealed(folder / METRICS, "a trained model", remedy="delete its folder, and it is trained again")


def train_on_pairs(
    plan: Plan, cell: Cell, base: Path, device: str, progress: bool = True
) -> tuple[Any, dict[str, Any]]:
    """Train the model of a share and a seed further.

    Args:
        plan: The recipe with its texts.
        cell: One of its models that has posttraining.
        base: Folder of the model to start from.
        device: To train on.
        progress: Show a progress bar.

    Returns:
        The model, and its numbers: `method`, `steps`, `n_pairs` that it was trained on, `losses`, and `pairs`: for
        those trained on (as many as are held out) and those held out, by pair, CHES before training and the
        log-likelihood of both sides before and after.
    """
    settings = _settings(cell)
    model: Any
    model, tokenizer = load(base, device=device)
    pairs = plan.preferences.within(tokenizer, settings.max_length)
    trained = settings.drawn(pairs.trained, cell.seed)
    groups = {"trained on": trained[: len(pairs.held_out)], "held out": pairs.held_out}
    numbers: dict[str, dict[str, list[float]]] = {}
    for name, group in groups.items():
        before = {f"{side}_before": values for side, values in likelihoods(model, tokenizer, group).items()}
        numbers[name] = {"ches": ches_scores(model, tokenizer, group), **before}
    began = time.perf_counter()
    losses = posttrain(
        model, tokenizer, pairs.trained, settings, seed=cell.seed, progress=progress, description=cell.name
    )
    seconds = time.perf_counter() - began
    for name, group in groups.items():
        after = likelihoods(model, tokenizer, group)
        numbers[name] |= {f"{side}_after": values for side, values in after.items()}
    summary = changes(numbers["held out"])
    metrics = {
        "key": _key(plan, cell, base),
        "share": read_metrics(base)["share"],
        "seed": cell.seed,
        "method": settings.method,
        "steps": len(losses),
        "n_pairs": len(trained),
        "seconds": seconds,
        "final_loss": float(np.mean(losses[-20:])),
        **{name: summary[name] for name in ("chosen", "margin")},
        "losses": losses,
        "pairs": numbers,
    }
    return model, metrics


def _settings(cell: Cell) -> PostTraining:
    if cell.posttraining is None:
        raise EntangleError(f"{cell.name} is not trained on pairs")
    return cell.posttraining


def _key(plan: Plan, cell: Cell, base: Path) -> str:
    """A hash of all that decides the model."""
    settings = {name: value for name, value in asdict(_settings(cell)).items() if name not in ("shares", "seeds")}
    began = (base / METRICS).read_text() if (base / METRICS).exists() else ""
    return digest([settings, plan.preferences.key(), began, folder_digest(base)])
