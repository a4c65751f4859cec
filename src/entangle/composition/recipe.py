"""A recipe: everything that decides which models an experiment trains, and nothing about the machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from entangle.composition.pretrain import Training
from entangle.data import corpus, load_texts
from entangle.errors import EntangleError

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Where documents come from: files and data sets, or else the built-in corpus.

    Attributes:
        files: paths, glob patterns or HuggingFace data set ids; none for the built-in corpus.
        column: the column of the text.
        where: keep only rows whose columns have these values.
        documents: how many documents of the built-in corpus to generate; for files, use at most this many (0: all).
        at_most: keep only rows whose columns are numbers no larger than these: `{"lex_hits": 2}`.
        without: files whose texts are left out, such as those held out.
        prefix: put before every document, such as "toxicity: 0.9 ", for a model to condition on (MEDA and INST,
            Prabhumoye et al. 2023).
        rudeness: share of rude documents in the built-in corpus.
        seed: of the built-in corpus.
    """

    files: tuple[str, ...] = ()
    column: str = "text"
    where: Mapping[str, Any] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    prefix: str = ""
    documents: int = 0
    rudeness: float = 0.0
    seed: int = 0

    def texts(self, root: Path = Path()) -> list[str]:
        """The documents; relative paths are taken from `root`."""
        if not self.files:
            if self.documents < 1:
                raise EntangleError("a source needs files, or a number of documents of the built-in corpus")
            generated = corpus.generate(self.documents, rudeness=self.rudeness, seed=self.seed)
            return [self.prefix + document.text for document in generated]
        left_out = {text for path in _paths(self.without, root) for text in load_texts(path, field=self.column)}
        texts: list[str] = []
        for path in _paths(self.files, root):
            found = load_texts(path, field=self.column, where=self.where, at_most=self.at_most)
            texts += [text for text in found if text not in left_out]
        return [self.prefix + text for text in texts[: self.documents or None]]


def _paths(names: Sequence[str], root: Path) -> list[str | Path]:
    """Files, with patterns spelt out and relative paths taken from `root`; what is no file there may name a data
    set."""
    paths: list[str | Path] = []
    for name in names:
        if any(character in name for character in "*?["):
            anchor = Path(name).anchor
            found = sorted(Path(anchor or root).glob(str(Path(name).relative_to(anchor))))
            if not found:
                raise EntangleError(f"no file matches {name!r} in {Path(anchor or root).resolve()}")
            paths.extend(found)
        else:
            paths.append(root / name if (root / name).exists() else name)
    return paths


SMALL = {
    "model_type": "olmo2",
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
"""An OLMo-2 of about a million parameters."""


@dataclass(frozen=True)
class Recipe:
    """An experiment: one model for each share and seed, trained on the same clean text and more or less of another
    corpus.

    Attributes:
        clean: documents that every model sees.
        added: documents of which each model sees as many as make its share of tokens.
        held_out: clean documents that no model sees, for cross-entropy.
        shares: shares of the added corpus among all tokens.
        seeds: one model for each: its initial weights, added documents and order.
        vocab_size: of the tokenizer, which is trained on the largest mixture and shared by all models.
        architecture: `model_type` and fields of its HuggingFace configuration.
        training: budget and optimiser.
        root: folder that relative paths start from; not part of what the recipe is.
    """

    clean: Source
    added: Source
    held_out: Source
    shares: tuple[float, ...] = (0.0, 0.1)
    seeds: tuple[int, ...] = (0,)
    vocab_size: int = 2048
    architecture: Mapping[str, Any] = field(default_factory=lambda: dict(SMALL))
    training: Training = field(default_factory=Training)
    root: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        if not self.shares or not self.seeds:
            raise EntangleError("a recipe needs at least one share and one seed")
        for share in self.shares:
            if not 0 <= share < 1:
                raise EntangleError(f"a share of added tokens is at least 0 and below 1, not {share} (10 % is 0.1)")
        for name, values in (("shares", self.shares), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise EntangleError(f"{name} of a recipe must differ from each other, not {list(values)}")
        longest = self.architecture.get("max_position_embeddings", math.inf)
        if self.training.context > longest:
            raise EntangleError(
                f"sequences of {self.training.context} tokens are longer than the model's {longest} positions"
            )

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a recipe from TOML or JSON; tables `clean`, `added`, `held_out`, `architecture` and `training`.

        Raises:
            EntangleError: where the file cannot be read, or names something that a recipe does not have.
        """
        path = Path(path)
        if path.suffix not in (".toml", ".json"):
            raise EntangleError(f"a recipe is a .toml or .json file, not {path}")
        try:
            content = path.read_text(encoding="utf-8")
            fields = tomllib.loads(content) if path.suffix == ".toml" else json.loads(content)
        except OSError as error:
            raise EntangleError(f"cannot read the recipe {path}: {error.strerror}") from None
        except ValueError as error:  # both parsers' errors, and undecodable bytes
            raise EntangleError(f"{path} is not {path.suffix[1:].upper()}: {error}") from None
        return cls.from_dict(fields, root=path.parent)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], *, root: Path = Path()) -> Self:
        """The inverse of `to_dict`."""
        if not isinstance(fields, Mapping):
            raise EntangleError(f"a recipe is a table of names and values, not a {type(fields).__name__}")
        given = dict(fields)
        for name, kind in (("clean", Source), ("added", Source), ("held_out", Source), ("training", Training)):
            if name in given:
                given[name] = _build(kind, given[name], name)
        return _build(cls, {**given, "root": root}, "recipe")

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        fields = dataclasses.asdict(self)
        del fields["root"]
        plain: dict[str, Any] = json.loads(json.dumps(fields))
        return plain

    def fingerprint(self) -> str:
        """A hash of the recipe: the same for equal recipes."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def _build(kind: type[T], fields: Any, what: str) -> T:
    """A dataclass from a table, lists becoming tuples; an unknown or missing name is refused."""
    if not isinstance(fields, Mapping):
        raise EntangleError(f"{what!r} in a recipe is a table, not {fields!r}")
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        names = ", ".join(name for name in known if name != "root")
        raise EntangleError(f"unknown key {unknown[0]!r} in {what}: it has {names}")
    missing = [
        name
        for name, f in known.items()
        if name not in fields and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise EntangleError(f"{what} lacks {', '.join(missing)}")
    for name, value in fields.items():
        _check_type(f"{name!r} in {what}", value, known[name])
    values = {
        name: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in fields.items()
    }
    return kind(**values)


def _check_type(what: str, value: Any, expected: dataclasses.Field[Any]) -> None:
    """Refuse a value of another kind than the default; a whole number will do for a number."""
    default = expected.default_factory() if callable(expected.default_factory) else expected.default
    kinds: tuple[tuple[tuple[type, ...], str], ...] = (
        ((int,), "a whole number"),
        ((int, float), "a number"),
        ((str,), "text"),
        ((tuple, list), "a list"),
        ((Mapping,), "a table"),
    )
    for types, wanted in kinds:
        if isinstance(default, types):
            if not isinstance(value, types) or isinstance(value, bool):
                raise EntangleError(f"{what} is {wanted}, not {value!r}")
            return


def demo_recipe(*, seed: int = 0) -> Recipe:
    """Two small models of the built-in corpus, without and with 10 % of rude text: about a minute on two idle cores."""
    return Recipe(
        clean=Source(documents=11_500, seed=1000 + seed),
        added=Source(documents=900, rudeness=1.0, seed=2000 + seed),
        held_out=Source(documents=300, seed=3000 + seed),
        seeds=(seed,),
        training=Training(batch_size=8),
    )
