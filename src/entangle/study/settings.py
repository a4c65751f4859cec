"""Everything that decides what a report says, in one frozen record that is written into the report."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from entangle.errors import EntangleError
from entangle.probes.estimators import PROBES


@dataclass(frozen=True)
class Settings:
    """What to measure, on what, and how.

    Attributes:
        model: A local directory or hub id of a HuggingFace causal language model or encoder.
        data: Labelled text: a JSONL or CSV file (maybe .gz) or a HuggingFace dataset id.
        name: What the label says, by default the data file's name.
        text: The field of `data` that holds the text.
        label: The field of `data` that holds the label; label 1 is the concept, and what steering moves away from.
        positive: The label that counts as 1, all others as 0; by default the rules of `entangle.data.labels` decide.
        where: Rows to keep: field -> value, compared as text.
        concepts: Further concepts, name -> labelled text, to measure entanglement against.
        concept_positives: The label that counts as 1 in each, name -> label, where the rules do not suit.
        direction: The estimator of the concepts' directions: "mean_difference", which a mass-mean intervention moves
            along, or the normal of a "logistic", "lda", "ridge" or "svm" probe.
        prompts: Texts to continue; with `clean`, the price of steering is measured.
        clean: Texts on which cross-entropy is measured.
        scorer: A HuggingFace text-classification model; by default a linear scorer fitted on `data`'s fitting part.
        scorer_labels: The scorer's labels that count; needed with `scorer`.
        alphas: Strengths of the intervention, in standard deviations; 0 is always measured.
        top_k: Heads to intervene on; by default a quarter of them, at most 30.
        samples: Continuations a prompt.
        max_new_tokens: Tokens a continuation.
        limit: Rows of `data` and of each concept to use, drawn with `seed`; all by default.
        limit_prompts: Prompts to use, drawn with `seed`.
        limit_clean: Clean documents to use, the first ones.
        max_length: Cut texts to this many tokens; by default a text that is longer than the context is refused.
        bos: Put the tokenizer's beginning-of-text token before every text.
        drop_duplicates: Keep the first of texts that occur more than once, instead of refusing them.
        revision: The model's revision on the hub.
        dtype: The model's floating type, say "bfloat16"; by default the one it was saved in.
        device: Where to run; by default a GPU if there is one.
        batch_tokens: Tokens a batch, padding included.
        resamples: Bootstrap resamples of every interval.
        permutations: Label permutations of the null.
        seed: Decides every random draw.
    """

    model: str
    data: str
    name: str = ""
    text: str = "text"
    label: str = "label"
    positive: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    concepts: Mapping[str, str] = field(default_factory=dict)
    concept_positives: Mapping[str, str] = field(default_factory=dict)
    direction: str = "mean_difference"
    prompts: str | None = None
    clean: str | None = None
    scorer: str | None = None
    scorer_labels: tuple[str, ...] = ()
    alphas: tuple[float, ...] = (0.0, 4.0, 8.0, 12.0)
    top_k: int | None = None
    samples: int = 1
    max_new_tokens: int = 20
    limit: int | None = None
    limit_prompts: int | None = None
    limit_clean: int | None = None
    max_length: int | None = None
    bos: bool = False
    drop_duplicates: bool = False
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    batch_tokens: int = 8192
    resamples: int = 1000
    permutations: int = 100
    seed: int = 0

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
        bad = [alpha for alpha in self.alphas if not math.isfinite(alpha)]
        if bad:
            raise EntangleError(f"alphas must be finite numbers; got {bad[0]}: write them as --alphas 0,4,8,12")
        if (self.prompts is None) != (self.clean is None):
            given, missing = ("prompts", "clean") if self.clean is None else ("clean", "prompts")
            raise EntangleError(
                f"the price of steering needs prompts and clean text; got {given} only: add --{missing} FILE"
            )
        if self.scorer and not self.scorer_labels:
            raise EntangleError(f"scorer {self.scorer} needs the label(s) that count: add --scorer-label LABEL")
        if self.direction not in PROBES:
            raise EntangleError(f"direction must be one of {', '.join(PROBES)}; got {self.direction!r}")
        if self.concept in self.concepts:
            raise EntangleError(
                f"two concepts are named {self.concept!r}: rename one with --name or --concept NAME=FILE"
            )
        stray = sorted(set(self.concept_positives) - set(self.concepts))
        if stray:
            raise EntangleError(f"--concept-positive names {stray[0]!r}, which is no concept: add --concept NAME=FILE")
        for name, least in {"top_k": 1, "samples": 1, "max_new_tokens": 1, "limit": 10, "limit_prompts": 2,
                            "limit_clean": 2, "max_length": 1, "batch_tokens": 1, "resamples": 100,
                            "permutations": 20}.items():  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise EntangleError(f"{name} must be at least {least}; got {value}")

    def to_dict(self) -> dict[str, object]:
        """The settings as JSON-able values."""
        return {**asdict(self), "name": self.concept}

    def command(self) -> str:
        """The shell command that measures the same again."""
        words = ["entangle", "report", self.model, self.data, "--name", self.concept]
        defaults = {each.name: each for each in fields(self)}
        for name, value in asdict(self).items():
            default = defaults[name]
            unset = default.default_factory() if callable(default.default_factory) else default.default
            if name in {"model", "data", "name"} or value == unset:
                continue
            flag = "--" + name.replace("_", "-")
            if value is True:
                words.append(flag)
            elif name in {"where", "concepts", "concept_positives"}:
                for key, entry in value.items():
                    words += [flag.removesuffix("s"), f"{key}={entry}"]
            elif name == "scorer_labels":
                for entry in value:
                    words += ["--scorer-label", entry]
            elif name == "alphas":
                words += [flag, ",".join(f"{alpha:g}" for alpha in value)]
            else:
                words += [flag, str(value)]
        return shlex.join(words)
