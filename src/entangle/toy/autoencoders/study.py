"""The study of toy autoencoders: geometry, phases, plateaus, and what rarity does to a feature (Elhage et al. 2022)."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from entangle.metrics import wilson_interval
from entangle.toy.autoencoders import figures
from entangle.toy.autoencoders.sweeps import (
    PhaseDiagram,
    dimension_plateaus,
    phase_diagram,
    polytope_census,
    rare_feature,
)
from entangle.toy.files import check_place, write_study


@dataclass(frozen=True)
class SuperpositionStudy:
    """What the autoencoders did.

    Attributes:
        census: A row per model size and random start; see `polytope_census`.
        phases: The phase diagram over sparsity and importance.
        plateaus: A row per density and feature; see `dimension_plateaus`.
        rarity: A row per share and random start; see `rare_feature`.
        settings: Everything needed to repeat it, and the seconds it took.

    Example:
        >>> study = en.toy.superposition_study(n_instances=2, n_cells=2, steps=2, progress=False)
        >>> study.rarity_table().shape[0], study.phases.to_frame().shape[0]  # shares of the rare feature; cells
        (7, 4)
    """

    census: pd.DataFrame
    phases: PhaseDiagram
    plateaus: pd.DataFrame
    rarity: pd.DataFrame
    settings: dict[str, Any]

    def geometry_table(self) -> pd.DataFrame:
        """Per model size: the share of random starts that found the optimum, its interval, and the best one."""
        rows = []
        for (n_features, n_hidden, expected), group in self.census.groupby(["n_features", "n_hidden", "expected"]):
            share = wilson_interval(int(group["at_optimum"].sum()), len(group))
            best = group.iloc[int(group["loss"].argmin())]
            rows.append(
                {
                    "n_features": n_features,
                    "n_hidden": n_hidden,
                    "expected": expected,
                    "lowest_loss": best["found"],
                    "at_optimum": share.value,
                    "low": share.low,
                    "high": share.high,
                    "n_instances": len(group),
                    "dimensionality": best["dimensionality"],
                    "entanglement": best["entanglement"],
                }
            )
        return pd.DataFrame(rows)

    def rarity_table(self) -> pd.DataFrame:
        """Means over random starts for each share; `entanglement_if_kept` over those that kept the feature."""
        return self.rarity.groupby("share").mean().reset_index()

    def answer(self) -> list[str]:
        """What the random starts found, a sentence per model size."""
        return [
            f"{row['n_features']} features in {row['n_hidden']} dimensions: {100 * row['at_optimum']:.0f} % "
            f"[{100 * row['low']:.0f}, {100 * row['high']:.0f}] of {row['n_instances']} random starts end in the best "
            f"arrangement known ({row['expected']}); the one of the lowest loss has E {row['entanglement']:.3f}."
            for row in self.geometry_table().to_dict("records")
        ]

    def save(self, out: str | os.PathLike[str]) -> None:
        """Write tables as JSON and figures as PNG into the directory `out`."""
        tables = {
            "geometry": self.geometry_table(),
            "phases": self.phases.to_frame(),
            "plateaus": self.plateaus,
            "rarity": self.rarity_table(),
        }
        record = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        drawings = {
            "geometry.png": figures.geometry_census(self.geometry_table()),
            "phase_diagram.png": figures.phases(self.phases),
            "plateaus.png": figures.plateaus(self.plateaus),
            "rarity.png": figures.rarity(self.rarity),
        }
        write_study(out, "superposition", {"settings": self.settings} | record, drawings)


def superposition_study(
    *,
    n_instances: int = 50,
    n_cells: int = 20,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    out: Path | None = None,
) -> SuperpositionStudy:
    """Train the toy autoencoders of Elhage et al. 2022 and one with a rare feature.

    Args:
        n_instances: Random starts per model size and per share of the rare feature.
        n_cells: Densities and importances of the phase diagram, each with 10 random starts.
        steps: Training steps of every model; by default 1,000 for the phase diagram and 2,000 for the others.
        seed: Seed of everything random.
        progress: Show progress bars.
        out: Write tables, figures and JSON to this directory.

    Returns:
        The study.

    Example:
        >>> study = en.toy.superposition_study(n_instances=2, n_cells=2, steps=2, progress=False)  # far too few steps
        >>> study.geometry_table()["expected"].tolist()
        ['antipodal pair', 'pentagon', 'octahedron', 'square antiprism']
    """
    if out is not None:
        check_place(out, "superposition")
    started = time.perf_counter()
    options: dict[str, Any] = {"seed": seed, "progress": progress, **({} if steps is None else {"steps": steps})}
    study = SuperpositionStudy(
        census=polytope_census(n_instances=n_instances, **options),
        phases=phase_diagram(n_cells=n_cells, **options),
        plateaus=dimension_plateaus(**options),
        rarity=rare_feature(n_instances=n_instances, **options),
        settings={"n_instances": n_instances, "n_cells": n_cells, "steps": steps, "seed": seed},
    )
    study.settings["seconds"] = round(time.perf_counter() - started, 1)
    if out is not None:
        study.save(out)
    return study
