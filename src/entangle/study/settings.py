"""A study as the shell or a file asks for it: paths and options, written once.

The fields of `Settings` are the options of `entangle report`, the keys of its `--config FILE.toml`, and what a report
writes down so that it can be repeated.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from entangle.data import load_labelled, load_prompts
from entangle.errors import EntangleError
from entangle.evaluation import ClassifierScorer, Scorer
from entangle.storage.tables import build
from entangle.study.question import Question
from entangle.study.texts import StudyTexts

WHAT, STEERING, ROWS, READING, NUMBERS = "What", "Steering", "Which rows", "Reading the model", "How sure"


def option(default: Any, says: str, *, group: str = WHAT, flag: str = "") -> Any:
    """A field that is an option too.

    Args:
        default: Its default; a dict stands for no entries.
        says: One sentence for the help.
        group: Under which heading of the help.
        flag: The option's name where it is not the field's: that of a single entry of several.
    """
    metadata = {"help": says, "group": group, "flag": flag}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """What to measure, on what, and how.

    Example:
        >>> from entangle.study import Settings
        >>> settings = Settings(model="models/mine", data="rudeness.jsonl", alphas=(4.0, 8.0))
        >>> settings.command()
        'entangle report models/mine rudeness.jsonl --name rudeness --alphas 4,8'
        >>> Settings.from_dict(settings.to_dict()).concept
        'rudeness'
    """

    model: str = option(MISSING, "Directory or hub id of a HuggingFace causal language model or encoder.")
    data: str = option(MISSING, "JSONL or CSV (maybe .gz) with text and label, or a dataset id.")
    name: str = option("", "What label 1 says; by default the data file's name.")
    text: str = option("text", "The field of DATA that holds the text.")
    label: str = option("label", "The field of DATA that holds the label; steering moves away from label 1.")
    positive: str | None = option(None, "The label of DATA that counts as 1, all others as 0.")
    where: Mapping[str, str] = option({}, "FIELD=VALUE: rows of DATA to keep; repeatable.", group=ROWS)
    concepts: Mapping[str, str] = option({}, "NAME=FILE: a further concept; repeatable.", flag="--concept")
    concept_positives: Mapping[str, str] = option(
        {}, "NAME=LABEL: the label of that concept that counts as 1; repeatable.", flag="--concept-positive"
    )
    direction: str = option(Question.direction, "Estimator of the concepts' directions.")
    prompts: str | None = option(
        None, "Texts to continue or conversations (messages) to answer, with and without steering.", group=STEERING
    )
    clean: str | None = option(None, "Clean text or conversations, on which the price is measured.", group=STEERING)
    turns: str | None = option(
        None, "Of clean conversations, measure only what this role says, such as assistant.", group=STEERING
    )
    scorer: str | None = option(None, "A HuggingFace text classifier; else a linear scorer.", group=STEERING)
    scorer_labels: tuple[str, ...] = option(
        (), "The scorer's label that counts; repeatable.", group=STEERING, flag="--scorer-label"
    )
    alphas: tuple[float, ...] = option(
        Question.alphas, "Strengths in standard deviations; 0 is always measured.", group=STEERING
    )
    costs: tuple[float, ...] = option(
        (), "Prices to steer at instead, in nats per token; on every other clean document.", group=STEERING
    )
    methods: tuple[str, ...] = option(
        Question.methods,
        "An intervention to measure, such as ITI, CAA, LEACE or prompting; repeatable, with ITI.",
        group=STEERING,
        flag="--method",
    )
    forecast: bool = option(True, "Foretell the price of steering from clean text.", group=STEERING)
    top_k: int | None = option(None, "Heads to steer; by default a quarter, at most 30.", group=STEERING)
    samples: int = option(Question.samples, "Continuations per prompt.", group=STEERING)
    max_new_tokens: int = option(Question.max_new_tokens, "Tokens per continuation.", group=STEERING)
    limit: int | None = option(None, "Rows of each labelled file to use, drawn with the seed.", group=ROWS)
    limit_prompts: int | None = option(None, "Prompts to use, drawn with the seed.", group=ROWS)
    limit_clean: int | None = option(None, "Clean documents to use, the first ones.", group=ROWS)
    max_length: int | None = option(None, "Cut texts to this many tokens.", group=READING)
    bos: bool = option(False, "Put the beginning-of-text token before every text.", group=READING)
    drop_duplicates: bool = option(False, "Keep the first of equal texts instead of refusing them.", group=ROWS)
    revision: str | None = option(None, "The model's revision on the hub.", group=READING)
    dtype: str | None = option(None, "The model's floating type, say bfloat16.", group=READING)
    device: str | None = option(None, "Where to run; by default a GPU if there is one.", group=READING)
    batch_tokens: int = option(Question.batch_tokens, "Tokens per batch, padding included.", group=READING)
    resamples: int = option(Question.n_resamples, "Bootstrap resamples of every interval.", group=NUMBERS)
    permutations: int = option(Question.n_permutations, "Label permutations of the null.", group=NUMBERS)
    seed: int = option(Question.seed, "Seed of every random draw.", group=NUMBERS)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], what: str = "the settings") -> Settings:
        """Settings from a table of their names.

        Raises:
            EntangleError: A name that is not known, a value of another kind, or one that is missing.
        """
        return build(cls, values, what, file="the settings")

    @property
    def concept(self) -> str:
        """The name of the concept that `data` labels."""
        return self.name or Path(self.data).name.split(".")[0].removeprefix("probe_").removeprefix("concept_")

    @property
    def steers(self) -> bool:
        """Whether the price of steering is measured."""
        return self.prompts is not None

    def check(self) -> None:
        """Refuse settings that cannot be meant, before anything is loaded.

        Raises:
            EntangleError: One line that names the setting and what to do.
        """
        for name, what in (("model", "a directory or a hub id"), ("data", "a file or a dataset id")):
            if not getattr(self, name).strip():
                raise EntangleError(f"{name.upper()} must be {what}; got an empty word: say which")
        if self.steers and self.clean is None:
            raise EntangleError(
                "the price of steering needs prompts and clean text; got prompts only: add --clean FILE"
            )
        if self.scorer and not self.scorer_labels:
            raise EntangleError(f"scorer {self.scorer} needs the label(s) that count: add --scorer-label LABEL")
        if self.concept in self.concepts:
            raise EntangleError(
                f"two concepts are named {self.concept!r}: rename one with --name or --concept NAME=FILE"
            )
        stray = sorted(set(self.concept_positives) - set(self.concepts))
        if stray:
            raise EntangleError(f"--concept-positive names {stray[0]!r}, which is no concept: add --concept NAME=FILE")
        for name, least in {"limit": 10, "limit_prompts": 2, "limit_clean": 2}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise EntangleError(f"{name} must be at least {least}; got {value}: give more, or leave it out")
        self.question()

    def question(self) -> Question:
        """What is asked of the model."""
        return Question(
            name=self.concept,
            direction=self.direction,
            alphas=self.alphas,
            costs=self.costs,
            methods=self.methods,
            forecast=self.forecast,
            top_k=self.top_k,
            samples=self.samples,
            max_new_tokens=self.max_new_tokens,
            turns=self.turns,
            max_length=self.max_length,
            prepend_bos=self.bos,
            batch_tokens=self.batch_tokens,
            n_resamples=self.resamples,
            n_permutations=self.permutations,
            seed=self.seed,
        )

    def read(self) -> tuple[StudyTexts, Scorer | None]:
        """Load every text and the scorer, before the model, so that a wrong file costs nothing.

        Raises:
            EntangleError: One line that names file and row, for anything that cannot be used.
        """
        rows: dict[str, Any] = {"limit": self.limit, "seed": self.seed, "drop_duplicates": self.drop_duplicates}
        columns: dict[str, Any] = {"text": self.text, "label": self.label, "positive": self.positive}
        data = load_labelled(self.data, where=self.where, **columns, **rows)
        concepts = {
            name: load_labelled(source, positive=self.concept_positives.get(name), **rows)
            for name, source in self.concepts.items()
        }
        prompts = load_prompts(self.prompts) if self.prompts is not None else []
        if self.limit_prompts is not None and self.limit_prompts < len(prompts):
            drawn = np.random.default_rng(self.seed).permutation(len(prompts))[: self.limit_prompts]
            prompts = [prompts[i] for i in sorted(drawn)]
        clean = load_prompts(self.clean, limit=self.limit_clean) if self.clean is not None else []
        scorer = ClassifierScorer(self.scorer, labels=list(self.scorer_labels)) if self.scorer else None
        sources = {self.concept: self.data, **self.concepts}
        return StudyTexts(data, concepts, {"prompts": prompts} if prompts else {}, clean, sources), scorer

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        return {**asdict(self), "name": self.concept}

    def command(self) -> str:
        """The shell command that measures the same again: what the command line reads these settings from."""
        words: list[str] = []
        for each in fields(self):
            value = self.concept if each.name == "name" else getattr(self, each.name)
            if value != default_of(each) and each.name not in ("model", "data"):
                words += _written(flag_of(each), value)
        # A path that begins with a dash is one only after two dashes.
        stop = ["--"] if any(word.startswith("-") for word in (self.model, self.data)) else []
        ends = [*stop, self.model, self.data]
        return shlex.join(["entangle", "report", *([*words, *ends] if stop else [*ends, *words])])


def read_config(path: Path) -> dict[str, Any]:
    """The table of a `--config` file, whose keys are the names of `Settings`.

    Raises:
        EntangleError: No such file, or it is no TOML.

    Example:
        >>> from pathlib import Path
        >>> from entangle.study import read_config
        >>> n_characters = Path("report.toml").write_text("alphas = [4, 8]")
        >>> read_config(Path("report.toml"))
        {'alphas': [4, 8]}
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise EntangleError(f"cannot read {path}: {error.strerror or error}; give --config a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise EntangleError(f"{path} is no TOML file ({reason}); write lines such as seed = 1") from error
    known = [each.name for each in fields(Settings)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise EntangleError(f"unknown key {unknown[0]!r} in {path}: it has {', '.join(known)}")
    return values


def default_of(each: Field[Any]) -> Any:
    """A field's default; MISSING where it has none.

    Example:
        >>> from dataclasses import fields
        >>> from entangle.study import Settings, default_of
        >>> {each.name: default_of(each) for each in fields(Settings)}["alphas"]
        (0.0, 4.0, 8.0, 12.0)
    """
    return each.default if each.default_factory is MISSING else each.default_factory()


def flag_of(each: Field[Any]) -> str:
    """The option that sets a field.

    Example:
        >>> from dataclasses import fields
        >>> from entangle.study import Settings, flag_of
        >>> {each.name: flag_of(each) for each in fields(Settings)}["max_new_tokens"]
        '--max-new-tokens'
    """
    return str(each.metadata["flag"]) or "--" + each.name.replace("_", "-")


def _written(flag: str, value: Any) -> list[str]:
    """The words that set an option; a value that looks like an option itself is written behind an equals sign."""
    if isinstance(value, bool):
        return [flag]
    if isinstance(value, Mapping):
        entries = [f"{key}={entry}" for key, entry in value.items()]
    elif isinstance(value, tuple) and all(isinstance(entry, float | int) for entry in value):
        entries = [",".join(repr(entry).removesuffix(".0") for entry in value)]
    else:
        entries = [str(entry) for entry in (value if isinstance(value, tuple) else (value,))]
    return [word for entry in entries for word in ([f"{flag}={entry}"] if entry[:1] in ("-", "") else [flag, entry])]
