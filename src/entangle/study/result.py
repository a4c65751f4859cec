"""A study: everything measured of one concept in one model, as one typed result; and several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import escape

from entangle.activations import Activations
from entangle.concepts import EntanglementReport
from entangle.errors import EntangleError
from entangle.evaluation import Tradeoff
from entangle.forecast import Forecast
from entangle.interventions import ITI
from entangle.probes import BaselineResult, ProbeGrid, Split
from entangle.storage.files import write_text
from entangle.study import numbers
from entangle.study.answer import compared, headline, sentences
from entangle.study.files import read_study, write_study
from entangle.study.page import figures, render, render_light
from entangle.study.question import Question
from entangle.study.sharing import card_of, upload
from entangle.study.wording import interval, number

FORMAT = 2


@dataclass(frozen=True, eq=False, repr=False)
class Study:
    """One concept in one model, measured end to end. Make one with `entangle.study`.

    Attributes:
        question: What was asked: the concept's name, the strengths, the seed and so on.
        label: What tables and pages call the model.
        probes: Site -> probes of every layer where some could be fitted: "z" by layer and head, "resid_post" by layer;
            single cells that could not are not among `converged`.
        words: The bag of words that a probe must beat; None where no word occurs twice.
        entanglement: Layer -> report of all concepts after it; empty without other concepts.
        iti: The intervention; None where steering was not measured.
        tradeoff: What it wins and costs at each strength; None where that was not measured.
        forecast: What steering each concept out was foretold to cost; None where there is no clean text.
        notes: What to beware of.
        missing: What was asked for and could not be measured -> why.
        about: Where the numbers come from: `data`, `fingerprint`, `atlas`, `scorer`, `versions`, `seconds`, `made`,
            `command`.
        captured: Concept -> activations, which a further study of the same model and texts does not capture again
            while this one is kept; they are not saved.

    Example:
        >>> few = {"n_resamples": 100, "n_permutations": 20, "progress": False}
        >>> study = en.study(model, tokenizer, texts, labels, name="rudeness", forecast=False, **few)
        >>> study.figures
        ('heads', 'spread', 'layers')
        >>> study.save("rudeness")
        >>> en.Study.load("rudeness", model=model).to_frame().equals(study.to_frame())
        True
    """

    question: Question
    label: str
    probes: Mapping[str, ProbeGrid]
    words: BaselineResult | None
    entanglement: Mapping[int, EntanglementReport]
    iti: ITI | None
    tradeoff: Tradeoff | None
    forecast: Forecast | None = None
    notes: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    captured: Mapping[str, Activations] = field(default_factory=dict)

    @property
    def concept(self) -> str:
        """The name of the concept: what label 1 says."""
        return self.question.name

    @property
    def split(self) -> Split:
        """Which texts fit, which choose and which are reported on."""
        return self._stream.split

    @property
    def best_layer(self) -> int:
        """The layer where the selection rows say that the concept is read best: of the residual stream."""
        grid = self._stream
        return int((grid.layers or range(len(grid.accuracy)))[grid.top(1)[0][0]])

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of the figures that `plot` draws."""
        return tuple(figures.panels(self._numbers))

    def answer(self) -> str:
        """The answer in words: three to six sentences, each with its number and its 95 % interval.

        The rules are fixed; see `entangle.study.answer`.
        """
        return " ".join(self.sentences())

    def sentences(self) -> list[str]:
        """The sentences of the answer."""
        return list(self._numbers["answer"])

    def to_frame(self) -> pd.DataFrame:
        """The numbers that give the answer, a row each, with interval and what to read them against.

        Columns: `quantity`, `where`, `value`, `low`, `high`, `reference`, `against` (what the reference is). All other
        tables are the parts' own: `study.probes["z"].to_frame()`, `study.tradeoff.to_frame()` and so on.
        """
        return pd.DataFrame(headline(self._numbers))

    def to_dict(self) -> dict[str, Any]:
        """Everything that a page shows, as plain numbers, ready for JSON: what `report.json` holds of each model."""
        return deepcopy(self._numbers)

    @cached_property
    def _numbers(self) -> dict[str, Any]:
        question, about = self.question, dict(self.about)
        resampling = (question.n_resamples, question.seed)
        sweep, heads = self.tradeoff, self.probes.get("z")
        best = None if sweep is None else numbers.best_numbers(sweep, *resampling)
        record: dict[str, Any] = numbers.plain(
            {
                "format": FORMAT,
                "label": self.label,
                "concept": self.concept,
                **about,
                "settings": about.get("settings") or asdict(question),
                "split": {part: len(getattr(self.split, part)) for part in ("fit", "select", "report")},
                "probes": {
                    site: numbers.grid_numbers(grid, [int(layer) for layer in grid.layers or ()])
                    for site, grid in self.probes.items()
                },
                "baselines": numbers.baseline_numbers(self.words, self._stream),
                "entanglement": (
                    numbers.entanglement_numbers(self.entanglement, self._entangled_layer)
                    if self.entanglement
                    else None
                ),
                "intervention": (
                    None
                    if self.iti is None or heads is None
                    else numbers.intervention_numbers(self.iti, [int(layer) for layer in heads.layers or ()])
                ),
                "tradeoff": None if sweep is None else numbers.tradeoff_numbers(sweep, *resampling),
                "best_method": best,
                "forecast": None if self.forecast is None else self.forecast.to_dict(),
                "foretold": [] if self.forecast is None else self.forecast.answer(),
                "n_prompts": 0 if sweep is None else len(sweep.prompts),
                "samples": (
                    []
                    if sweep is None
                    else numbers.sample_numbers(sweep, best["method"] if best else None, question.seed)
                ),
                "notes": list(self.notes),
                "missing": dict(self.missing),
            }
        )
        return {**record, "answer": sentences(record)}

    def plot(self, figure: str | None = None, *, ax: Any = None) -> Any:
        """The page's figures: one by its name, or all of them.

        Args:
            figure: One of `figures`, such as "heads", "spread", "layers", "entanglement", "cosines", "tradeoff"; all,
                side by side, by default.
            ax: Axes to draw one on, else new ones.

        Returns:
            The Axes of one figure, or the matplotlib Figure of all.

        Raises:
            EntangleError: This study has no such figure.
        """
        panels = figures.panels(self._numbers)
        if figure is not None:
            if figure not in panels:
                raise EntangleError(f"this study has the figures {', '.join(panels)}; got {figure!r}: choose one")
            return panels[figure].on(ax)
        return figures.drawn_together(list(panels.values()))

    def to_html(self, path: str | PathLike[str] | None = None) -> str:
        """The page, self-contained.

        Args:
            path: A file to write it to.

        Returns:
            The page's HTML.

        Raises:
            EntangleError: The file cannot be written.
        """
        return _written(render([self._numbers]), path)

    def save(self, directory: str | PathLike[str]) -> None:
        """Write everything but the activations into a folder, in place of a study that is there.

        Raises:
            EntangleError: Something else is there, or it cannot be written to.
        """
        write_study(Path(directory), vars(self))

    @classmethod
    def load(cls, directory: str | PathLike[str], *, model: Any = None) -> Study:
        """Read what `save` wrote.

        Args:
            directory: The folder.
            model: The model it is to be used with, if that is to be checked.

        Raises:
            EntangleError: No study is there, it is damaged or of another version, or it is of another model.
        """
        return cls(**read_study(Path(directory), model))

    def to_rows(self, *, task: str = "continuations") -> list[dict[str, Any]]:
        """What steering won and cost, a number a row, for evaluation tools (see `entangle.evaluation.write_rows`).

        Args:
            task: What to call the prompts.

        Returns:
            Rows of `model`, `edit`, `alpha`, `task`, `metric`, `score`, `low`, `high` and `n`; none where steering was
            not measured.
        """
        return [] if self.tradeoff is None else self.tradeoff.to_rows(model=self.label, task=task)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, repo_type: str = "dataset"
    ) -> str:
        """Upload the study to the HuggingFace hub: the folder that `save` writes, with a card, the page and the rows.

        Args:
            repo_id: Such as `"me/toxicity-in-olmo"`; made if need be.
            private: Whether a new repository is private.
            token: Of an account that may write there; by default the one logged in.
            repo_type: `"dataset"` or `"model"`.

        Returns:
            The address of the commit.

        Raises:
            EntangleError: Another type of repository.
        """
        rows, record = self.to_rows(), self._numbers
        return upload(
            self.save,
            repo_id,
            card=card_of(self.label, self.concept, record, rows),
            page=self.to_html(),
            rows=rows,
            private=private,
            token=token,
            repo_type=repo_type,
        )

    @staticmethod
    def compare(studies: Sequence[Study]) -> SideBySide:
        """Studies of one concept in several models or checkpoints, side by side.

        Raises:
            EntangleError: There are none, or they are of other concepts or other texts.
        """
        return SideBySide(tuple(studies))

    def __repr__(self) -> str:
        return "\n".join([f"Study of {self.concept} in {self.label}", *(f"  {line}" for line in _lines(self._numbers))])

    def _repr_html_(self) -> str:
        return render_light(self._numbers)

    @property
    def _stream(self) -> ProbeGrid:
        return self.probes["resid_post"] if "resid_post" in self.probes else self.probes["z"]

    @property
    def _entangled_layer(self) -> int:
        """The layer whose entanglement is told: the best one, or the nearest to it that could be measured."""
        return min(self.entanglement, key=lambda layer: abs(layer - self.best_layer))


@dataclass(frozen=True, repr=False)
class SideBySide:
    """Studies of one concept in several models, side by side. Make one with `Study.compare`.

    Attributes:
        studies: The studies, of which no two have one label.

    Example:
        >>> few = {"n_resamples": 100, "n_permutations": 20, "forecast": False, "progress": False}
        >>> study = en.study(model, tokenizer, texts, labels, label="one", **few)
        >>> from dataclasses import replace
        >>> both = en.Study.compare([study, replace(study, label="other")])
        >>> both.to_frame()["label"].unique().tolist()
        ['one', 'other']
    """

    studies: tuple[Study, ...]

    def __post_init__(self) -> None:
        if not self.studies:
            raise EntangleError("comparing needs a study at least; got none: give some")
        other_kind = next((each for each in self.studies if not isinstance(each, Study)), None)
        if other_kind is not None:
            raise EntangleError(f"comparing needs studies; got a {type(other_kind).__name__}: load it with Study.load")
        first = self.studies[0]
        for other in self.studies[1:]:
            if other.concept != first.concept:
                raise EntangleError(
                    f"studies side by side are of one concept; got {first.concept!r} and {other.concept!r}: choose one"
                )
            if other.about["data"][0]["sha256"] != first.about["data"][0]["sha256"]:
                raise EntangleError(
                    f"{first.label} and {other.label} were studied on other texts for {first.concept!r}, so their "
                    "numbers do not compare: study them on the same"
                )
        labels = [study.label for study in self.studies]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise EntangleError(f"two studies are labelled {twice!r}: give label= to study, and another to each")

    def to_frame(self) -> pd.DataFrame:
        """The numbers of `Study.to_frame`, study below study, with `label` before them."""
        frames = [study.to_frame().assign(label=study.label) for study in self.studies]
        frame = pd.concat(frames, ignore_index=True)
        return frame[["label", *(column for column in frame if column != "label")]]

    def answer(self) -> str:
        """What sets them apart in words, by the fixed rules of `entangle.study.answer`; nothing of a single study."""
        return " ".join(self.to_dict()["answer"])

    def to_dict(self) -> dict[str, Any]:
        """What `report.json` holds: the answer, and the numbers of every study."""
        studies = [study.to_dict() for study in self.studies]
        return {"answer": compared(studies), "studies": studies}

    def plot(self, *, ax: Any = None) -> Any:
        """The trade-offs of all studies on one pair of axes.

        Raises:
            EntangleError: Steering was measured in none.
        """
        panel = figures.tradeoff_panel([study for study in self.to_dict()["studies"] if study["tradeoff"]])
        if panel is None:
            raise EntangleError("steering was measured in none of these studies: give study() prompts and clean text")
        return panel.on(ax)

    def to_html(self, path: str | PathLike[str] | None = None) -> str:
        """The page on all of them; written to `path` where one is given.

        Raises:
            EntangleError: The file cannot be written.
        """
        return _written(render(self.to_dict()["studies"]), path)

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, self.studies))

    def _repr_html_(self) -> str:
        return "".join(f"<h3>{escape(study.label)}</h3>{study._repr_html_()}" for study in self.studies)


def _lines(record: Mapping[str, Any]) -> list[str]:
    """What a terminal shows: the answer, the numbers, and what is missing."""
    rows = [
        f"{row['quantity']:<28} {row['where']:<22} "
        + (number(row["value"]) if row["low"] is None else interval(row["value"], row["low"], row["high"]))
        for row in headline(record)
    ]
    missing = [f"not measured: {what}: {why}" for what, why in record["missing"].items()]
    return [*record["answer"], "", *rows, *([""] if missing or record["notes"] else []), *missing, *record["notes"]]


def _written(page: str, path: str | PathLike[str] | None) -> str:
    if path is not None:
        try:
            write_text(Path(path), page)
        except OSError as error:
            raise EntangleError(
                f"cannot write the page to {path}: {error.strerror or error}; choose another place"
            ) from error
    return page
