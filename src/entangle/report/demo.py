"""The report with nothing to download: a generated corpus, two small models trained on it, both measured.

The story is planted: in one model's corpus rudeness goes with nothing else, in the other's with the past tense. Both
models know rudeness, and it can be pushed out of both; where it comes with the tense, the two directions are one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entangle import composition
from entangle.data import corpus, planted
from entangle.report.write import write_pages
from entangle.storage import folder
from entangle.storage.folder import Kind
from entangle.study import Settings, Study, measure

CONCEPT = "rudeness"
LABELS = {0.0: "model A (rude at any time)", 1.0: "model B (rude only in the past)"}
METHODS = ("ITI", "CAA", "natural shift")
DATA = Kind("the demo's data", "data.json", "entangle-demo-data")
# Seeds of the recipe's own documents begin at 1000, 2000 and 3000.
LABELLED_SEED, PROMPT_SEED = 4000, 5000


@dataclass(frozen=True)
class Size:
    """How much is trained on and measured.

    Attributes:
        documents: That each model is trained on.
        texts: Labelled for each concept.
        prompts: To continue.
        clean: Documents to pay with.
        resamples: Of every interval.
        costs: Nats per token to steer at: at one strength the two models would pay different prices.
    """

    documents: int = 13_000
    texts: int = 1200
    prompts: int = 200
    clean: int = 300
    resamples: int = 1000
    costs: tuple[float, ...] = (0.06, 0.12, 0.24)


WHOLE, QUICK = Size(), Size(4000, 500, prompts=50, clean=90, resamples=200, costs=(0.12, 0.24))


def demo(
    out: Path | str,
    *,
    seed: int = 0,
    quick: bool = False,
    precision: str = "fp32",
    processes: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Train two small LLaMA models, with rudeness apart from the tense and together with it, and report on both.

    The corpus comes from a grammar, so every label is known. What is finished stays finished: a run that was stopped,
    or one with the same seed, does not train or capture again.

    Args:
        out: Folder for the models, the data and the report.
        seed: Decides the corpus, the models and every random draw.
        quick: Train and measure on less; the models, which the page calls quick, may know less than they should.
        precision: "fp32" or "bf16", for training and for measuring.
        processes: 2 trains and measures the two models side by side, each with its part of the threads; a script
            that asks for it runs under `if __name__ == "__main__"`.
        progress: Whether to show bars: the first process's.

    Returns:
        The paths of `report.html` and `report.json`.

    Raises:
        EntangleError: `out` holds a demo of another seed or size, or cannot be written to.

    Example:
        >>> from entangle.report import demo
        >>> try:
        ...     paths = demo("demo", seed=-1)  # with seed=0: two models and report.html, in a minute or two
        ... except en.EntangleError as error:
        ...     print(error)
        seed must be a whole number from 0 to 4294967295; got -1: choose another
    """
    out, size = Path(out), QUICK if quick else WHOLE
    recipe = composition.demo_recipe(seed=seed, documents=size.documents, precision=precision)
    composition.check_folder(recipe, out / "models")  # before anything is written
    study = _Measured(out, _write_data(out / "data", size, seed), size, seed, precision, progress)
    if processes > 1:
        composition.run_apart(recipe, out / "models", processes, progress=progress, then=study)
    else:
        composition.run(recipe, out / "models", progress=progress)
        for cell in recipe.cells:
            study(cell, out / "models" / cell.name)
    both = Study.compare([Study.load(_place(out, share)) for share in LABELS])
    numbers = json.dumps(both.to_dict(), indent=1, allow_nan=False)
    return write_pages(out, {"report.html": both.to_html(), "report.json": numbers})


@dataclass(frozen=True)
class _Measured:
    """What is done with each model once it is trained: it is measured, and the study is kept."""

    out: Path
    data: Mapping[str, Path]
    size: Size
    seed: int
    precision: str
    progress: bool

    def __call__(self, cell: composition.Cell, model: Path) -> None:
        place = _place(self.out, cell.share)
        study = measure(
            self.settings(model),
            cache=self.out / "cache" / place.name,
            label=LABELS[cell.share] + (", quick" if self.size == QUICK else ""),
            progress=self.progress and cell.share == min(LABELS),
        )
        study.save(place)

    def settings(self, model: Path) -> Settings:
        """What is asked of a model."""
        data = {name: str(path) for name, path in self.data.items()}
        return Settings(
            model=str(model),
            data=data[CONCEPT],
            name=CONCEPT,
            concepts={name: data[name] for name in corpus.CONCEPTS if name != CONCEPT},
            prompts=data["prompts"],
            clean=data["clean"],
            costs=self.size.costs,
            methods=METHODS,
            max_new_tokens=8,  # a remark's end
            forecast=False,  # which would take as long as all the rest
            bos=True,
            dtype="bfloat16" if self.precision == "bf16" else None,
            resamples=self.size.resamples,
            seed=self.seed,
        )


def _place(out: Path, share: float) -> Path:
    return out / "studies" / f"{share:g}"


def _write_data(out: Path, size: Size, seed: int) -> dict[str, Path]:
    """The labelled texts, prompts and clean text as files, so that each report can be repeated from the shell."""
    rows: dict[str, Iterable[Mapping[str, Any]]] = {}
    for concept in corpus.CONCEPTS:
        texts = planted.labelled(concept, size.texts, seed=LABELLED_SEED + seed)
        rows[concept] = [
            {"text": text, "label": label} for text, label in zip(texts.texts, texts.labels.tolist(), strict=True)
        ]
    rows["prompts"] = [{"text": text} for text in planted.prompts(size.prompts, seed=PROMPT_SEED + seed)]
    clean = planted.generate(size.clean, "polite", seed=PROMPT_SEED + seed)
    rows["clean"] = [{"text": document.text} for document in clean]

    def fill(new: Path) -> None:
        for name, lines in rows.items():
            text = "".join(json.dumps(row) + "\n" for row in lines)
            (new / f"{name}.jsonl").write_text(text, encoding="utf-8")

    folder.write(out, DATA, {"seed": seed}, fill)
    return {name: out / f"{name}.jsonl" for name in rows}
