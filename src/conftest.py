"""What the examples in docstrings find at hand; `pytest --doctest-modules src` runs them. No part of the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import entangle as en
from entangle.models import fingerprint


@pytest.fixture(scope="session")
def at_hand() -> dict[str, Any]:
    """The names that every example may use, made once; docs/architecture.md lists them."""
    names = en.example()._asdict()
    model, tokenizer, texts, labels = (names[name] for name in ("model", "tokenizer", "texts", "labels"))
    acts = en.collect(model, tokenizer, texts, sites=["z", "resid_post"], progress=False)
    grid = en.fit_probes(acts["z"], labels, progress=False)
    concepts = {name: en.data.corpus.labelled(name, 64) for name in ("tense", "sentiment")}
    vectors = {"rudeness": difference(acts["resid_post"][:, -1], labels)}
    for name, data in concepts.items():
        other = en.collect(model, tokenizer, data.texts, sites="resid_post", layers=-1, progress=False)
        vectors[name] = difference(other["resid_post"][:, 0], data.labels)
    directions = en.Directions(torch.stack(list(vectors.values())), tuple(vectors), site="resid_post", layer=1)
    iti = en.ITI.fit(acts["z"], labels, top_k=2)
    return {
        **names,
        "en": en,
        "np": np,
        "Path": Path,
        "torch": torch,
        "acts": acts,
        "grid": grid,
        "concepts": concepts,
        "directions": directions,
        "iti": iti,
    }


def difference(x: torch.Tensor, labels: Any) -> torch.Tensor:
    """The mean of the examples labelled 1 less that of the others."""
    return x[torch.as_tensor(labels) == 1].mean(0) - x[torch.as_tensor(labels) == 0].mean(0)


@pytest.fixture(autouse=True)
def _as_a_reader_has_it(
    doctest_namespace: dict[str, Any], at_hand: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """An example runs in an empty folder, from seed 0, and leaves the model as it was."""
    doctest_namespace.update(at_hand)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    before = fingerprint(at_hand["model"])
    yield
    assert fingerprint(at_hand["model"]) == before, "the example left its model changed"
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")
