"""What a sweep keeps of each condition, and where: one file a condition, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import numpy as np
from jaxtyping import Float

from entangle.errors import EntangleError
from entangle.evaluation.language.reading import LanguageShift
from entangle.storage.files import on_disk, tidy
from entangle.storage.names import check_distinct
from entangle.storage.sealed import decoding, read_sealed, write_sealed

FORMAT = 3
LONGEST_FILE_NAME = 200  # bytes; file systems take 255
REMEDY = "save to another directory"

Location: TypeAlias = tuple[str, int | None, int | None]


@dataclass(frozen=True)
class Condition:
    """Everything measured of one method at one strength; every table and plot is computed from these.

    Args:
        method: Name of the method; "" for the plain model.
        alpha: Its strength; 0 for the plain model.
        digest: Hash of the method's content.
        continuations: Samples of each prompt; none where the changed model broke.
        shift: Cross-entropy and KL of each document; None where the changed model broke.
        packed: The same of each document's tokens, read end to end in chunks, where that was asked for.
        places: Site, layer and head of everything an edit touches.
        fluency: Nats and tokens of each continuation as the plain model reads it after its prompt.
        scores: Scorer name -> score of each continuation.
        scored_by: Scorer name -> what that scorer was (`scorer_key`), where scores are kept on disk.
        error: Why the changed model could not be measured, else "".
        cost: The price that the strength was solved for, in nats per token; None where the strength was given.
        solved_on: Digest of the documents it was solved on.

    Example:
        >>> condition = en.evaluation.Condition("ITI", 4.0, "", [["a gem"], ["a pal"]], None)
        >>> condition.with_scores("mine", np.array([[0.2], [0.4]])).scored("mine").shape  # [prompt, sample]
        (2, 1)
    """

    method: str
    alpha: float
    digest: str
    continuations: list[list[str]]
    shift: LanguageShift | None
    packed: LanguageShift | None = None
    places: Sequence[Location] = ()
    fluency: tuple[list[list[float]], list[list[int]]] = ([], [])
    scores: dict[str, list[list[float]]] = field(default_factory=dict)
    error: str = ""
    scored_by: dict[str, str] = field(default_factory=dict)
    cost: float | None = None
    solved_on: str = ""

    def scored(self, scorer: str) -> Float[np.ndarray, "prompt sample"]:
        """Scores of one scorer."""
        return np.array(self.scores[scorer], dtype=np.float64)

    def with_scores(self, scorer: str, scores: Float[np.ndarray, "prompt sample"], key: str = "") -> Condition:
        """The same with the scores of one scorer, known by its key, added."""
        return replace(self, scores={**self.scores, scorer: scores.tolist()}, scored_by={**self.scored_by, scorer: key})

    def has_scores(self, scorer: str, key: str, directory: Path | None) -> bool:
        """Whether a scorer, known by its name and key, has scored this before.

        Raises:
            EntangleError: Another scorer of its name has.
        """
        if scorer in self.scores and self.scored_by.get(scorer, "") != key:
            raise EntangleError(
                f"{directory} holds scores of another scorer called {scorer!r}; save to another directory, or give "
                "this scorer another name"
            )
        return scorer in self.scores

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings; floats come back exactly."""
        shifts = {"shift": self.shift, "packed": self.packed}
        plain = {
            name: None if shift is None else {k: v.tolist() for k, v in shift._asdict().items()}
            for name, shift in shifts.items()
        }
        return {**asdict(replace(self, shift=None, packed=None)), **plain}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Condition:
        """What `to_json` gave."""
        shifts = {
            name: None if saved[name] is None else LanguageShift(**{k: np.array(v) for k, v in saved[name].items()})
            for name in ("shift", "packed")
        }
        return cls(**{**saved, **shifts, "places": [tuple(place) for place in saved["places"]]})


class ConditionStore:
    """Conditions of one sweep, in memory and, where a directory is given, in it.

    Args:
        directory: Where to keep them; what is there already is taken up again.
        settings: What every condition was measured with; a directory of other settings is refused.

    Raises:
        EntangleError: The directory holds a sweep of other settings or of another format.
    """

    def __init__(self, directory: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.directory = None if directory is None else Path(directory)
        self.conditions: dict[tuple[str, float], Condition] = {}
        self.settings = json.loads(json.dumps({"format": FORMAT, **settings}))
        if self.directory is None:
            return
        file = self.directory / "settings.json"
        if self.directory.exists() and not self.directory.is_dir():
            raise EntangleError(f"a sweep is kept in a directory, but {self.directory} is a file: give a directory")
        with on_disk(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            tidy(self.directory)
        if os.path.lexists(file):
            _check_settings(read_sealed(file, "a sweep", remedy=REMEDY), self.settings, self.directory)
        else:
            write_sealed(file, self.settings, indent=None)
        for path in sorted(self.directory.glob("condition-*.json")):
            saved = read_sealed(path, "a sweep", remedy=f"delete it, and it is measured again; or {REMEDY}")
            with decoding(path, "a condition of a sweep", remedy=f"delete it, and it is measured again; or {REMEDY}"):
                condition = Condition.from_json(saved)
                if _file_name(condition.method, condition.alpha) != path.name:
                    raise EntangleError(f"{path} holds {condition.method!r} at {condition.alpha!r}: {REMEDY}")
            self.conditions[condition.method, condition.alpha] = condition

    def find(self, method: str, alpha: float, digest: str) -> Condition | None:
        """The condition, if it was measured.

        Raises:
            EntangleError: It was, but with a method of other content; or the name is too long for a file's, or
                differs from another method's in capitals alone, which some file systems take for the same.
        """
        if self.directory is not None:
            name = _file_name(method, alpha)
            if len(name) > LONGEST_FILE_NAME:
                raise EntangleError(f"a method's name becomes a file's, but {method[:40]!r}... is too long: shorten it")
            check_distinct({*(other for other, _ in self.conditions), method}, "methods")
        condition = self.conditions.get((method, alpha))
        if condition is not None and condition.digest != digest:
            raise EntangleError(
                f"{self.directory} holds {method} of other content at alpha={alpha:g}; save to another directory, or "
                "give this method another name"
            )
        return condition

    def solved(self, method: str, cost: float, solved_on: str, digest: str) -> float | None:
        """The strength at which a method was measured for this price, if it was."""
        wanted = (method, cost, solved_on, digest)
        for each in self.conditions.values():
            if (each.method, each.cost, each.solved_on, each.digest) == wanted:
                return each.alpha
        return None

    def keep(self, condition: Condition) -> Condition:
        """Keep a condition, in place of an earlier one of its name."""
        self.conditions[condition.method, condition.alpha] = condition
        if self.directory is not None:
            name = _file_name(condition.method, condition.alpha)
            write_sealed(self.directory / name, condition.to_json(), indent=None)
        return condition


def _file_name(method: str, alpha: float) -> str:
    return f"condition-{quote(method, safe='')}@{alpha!r}.json"


def _check_settings(saved: Mapping[str, Any], now: Mapping[str, Any], directory: Path) -> None:
    different = [key for key in now if saved.get(key) != now[key]]
    if different:
        raise EntangleError(
            f"{directory} holds a sweep with other settings ({', '.join(different)} differ); save to another directory"
        )
