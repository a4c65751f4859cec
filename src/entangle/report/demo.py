"""The report with nothing to download: a generated corpus, two small models trained on it, both measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from entangle import composition
from entangle.data import corpus
from entangle.report.write import write
from entangle.storage import folder
from entangle.storage.folder import Kind
from entangle.study import Settings, measure

CONCEPT = "rudeness"
TEXTS, PROMPTS = 3000, 200
DATA = Kind("the demo's data", "data.json", "entangle-demo-data")
# Seeds of the recipe's own documents begin at 1000, 2000 and 3000.
LABELLED_SEED, PROMPT_SEED = 4000, 5000


def demo(out: Path | str, *, seed: int = 0, progress: bool = True) -> list[Path]:
    """Train two small OLMo-2 models, without and with rude text, and report on both, side by side.

    The corpus comes from a grammar, so every label is known. What is finished stays finished: a run that was stopped,
    or one with the same seed, does not train or capture again.

    Args:
        out: Folder for the models, the data and the report.
        seed: Decides the corpus, the models and every random draw.
        progress: Whether to show bars.

    Returns:
        The paths of `report.html` and `report.json`.

    Raises:
        EntangleError: `out` holds a demo of another seed, or cannot be written to.

    Example:
        >>> from entangle.report import demo
        >>> try:
        ...     paths = demo("demo", seed=-1)  # with seed=0: two models and report.html, in some minutes
        ... except en.EntangleError as error:
        ...     print(error)
        seed must be a whole number from 0 to 4294967295; got -1: choose another
    """
    out = Path(out)
    recipe = composition.demo_recipe(seed=seed)
    trained = composition.run(recipe, out / "models", progress=progress)
    data = _write_data(out / "data", recipe, seed)
    studies = []
    for model in trained.models:
        settings = Settings(
            model=str(model.path),
            data=str(data[CONCEPT]),
            name=CONCEPT,
            concepts={name: str(data[name]) for name in corpus.CONCEPTS if name != CONCEPT},
            direction="logistic",  # steadier than a difference of means on as few texts
            prompts=str(data["prompts"]),
            clean=str(data["clean"]),
            forecast=False,  # which would take as long as all the rest
            bos=True,
            seed=seed,
        )
        label = f"{model.share:.0%} rude text"
        studies.append(measure(settings, cache=out / "cache", label=label, progress=progress))
    return write(studies, out)


def _write_data(out: Path, recipe: composition.Recipe, seed: int) -> dict[str, Path]:
    """The labelled texts, prompts and clean text as files, so that each report can be repeated from the shell."""
    rows: dict[str, Iterable[Mapping[str, Any]]] = {}
    for concept in corpus.CONCEPTS:
        texts = corpus.labelled(concept, TEXTS, seed=LABELLED_SEED + seed)
        rows[concept] = [
            {"text": text, "label": label} for text, label in zip(texts.texts, texts.labels.tolist(), strict=True)
        ]
    rows["prompts"] = [{"text": text} for text in corpus.prompts(PROMPTS, seed=PROMPT_SEED + seed)]
    rows["clean"] = [{"text": text} for text in recipe.held_out.texts()]

    def fill(new: Path) -> None:
        for name, lines in rows.items():
            text = "".join(json.dumps(row) + "\n" for row in lines)
            (new / f"{name}.jsonl").write_text(text, encoding="utf-8")

    folder.write(out, DATA, {"seed": seed}, fill)
    return {name: out / f"{name}.jsonl" for name in rows}
