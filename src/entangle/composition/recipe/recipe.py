"""A recipe: everything that decides which models an experiment trains, and nothing about the machine."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from entangle.composition.recipe.measurement import Measurement
from entangle.composition.recipe.pairs import Pairs
from entangle.composition.recipe.sources import Source
from entangle.composition.recipe.training import Training
from entangle.composition.training.corpus import check_share
from entangle.composition.training.metadata import Prefix
from entangle.composition.training.posttraining import PostTraining
from entangle.errors import EntangleError
from entangle.storage.digest import digest
from entangle.storage.names import check_distinct, check_name
from entangle.storage.tables import as_json, build
from entangle.study.question import check_seed

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
DESIGNS = ("added", "replaced")


@dataclass(frozen=True)
class Variant:
    """A baseline that is trained: the mixture of one share, changed.

    Attributes:
        name: What the report calls it.
        share: Share of the added corpus.
        clean_prefix: Put before every clean document, such as "toxicity: 0.0 " (MEDA, Prabhumoye et al. 2023); the
            model is measured after it, as a model that is told what to write. `{source}` in it is what the column
            `source` says of a document, and likewise any column; a brace that is meant is doubled.
        added_prefix: Put before every document of the added corpus, such as "toxicity: 0.9 ".
        cooldown: Metadata conditioning then cooldown (MeCo, Gao et al. 2025): this share of all tokens, at the end,
            is trained on without the prefixes, and no loss is taken over prefixes. Such a model is measured as every
            other one is, and also after `told`. 0 has prefixes throughout, and a loss over them.
        told: The prefix that the model is measured after, where it is not `clean_prefix`.
        keep_below: Filtering: leave out documents that a linear scorer of the measured concept gives this or more; 1
            keeps all.
        seeds: One model for each; none for those of the recipe.

    Example:
        >>> prefixes = {"clean_prefix": "toxicity: 0.0 ", "added_prefix": "toxicity: 0.9 "}
        >>> en.composition.Variant("told", share=0.1, **prefixes).measured_after
        'toxicity: 0.0 '
    """

    name: str
    share: float
    clean_prefix: str = ""
    added_prefix: str = ""
    cooldown: float = 0.0
    told: str = ""
    keep_below: float = 1.0
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name, "a variant")
        if not 0 <= self.share < 1:
            raise EntangleError(f"the share of variant {self.name!r} is at least 0 and below 1, not {self.share}")
        if not 0 < self.keep_below <= 1:
            raise EntangleError(f"keep_below of variant {self.name!r} is a score up to 1, not {self.keep_below}")
        columns = Prefix(self.clean_prefix).columns
        Prefix(self.added_prefix)
        if not 0 <= self.cooldown < 1:
            raise EntangleError(f"cooldown of variant {self.name!r} is at least 0 and below 1, not {self.cooldown}")
        if self.cooldown and not (self.clean_prefix or self.added_prefix):
            raise EntangleError(
                f"variant {self.name!r} cools down from nothing: give it a clean_prefix or an added_prefix"
            )
        if columns and not self.told and not self.cooldown:
            raise EntangleError(
                f"variant {self.name!r} is measured after its clean_prefix, but {{{columns[0]}}} in it differs between "
                'documents: say what to measure it after, such as told = "..."'
            )

    @property
    def measured_after(self) -> str:
        """What is said before everything that it is measured on: `told`, or its clean prefix."""
        prefix = Prefix(self.clean_prefix)
        return self.told or ("" if prefix.columns else prefix.before({}))

    def of_each_model(self) -> dict[str, Any]:
        """What decides a model of it, other than the seed."""
        return {name: value for name, value in as_json(self).items() if name not in ("told", "seeds")}


@dataclass(frozen=True)
class Cell:
    """One model of a recipe: a share and a seed, or a variant and a seed, or what was trained on pairs after.

    Example:
        >>> en.composition.Cell(0.1, seed=0).name
        'share-0.1-seed-0'
    """

    share: float
    seed: int
    variant: Variant | None = None
    posttraining: PostTraining | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        if self.posttraining:
            return f"{self.posttraining.name}-{self.base}"
        share = f"{self.share:g}" if float(f"{self.share:g}") == self.share else repr(self.share)
        return f"{self.variant.name if self.variant else f'share-{share}'}-seed-{self.seed}"

    @property
    def label(self) -> str:
        """The name of its variant or posttraining; "" for the mixture as it is."""
        named = self.variant or self.posttraining
        return named.name if named else ""

    @property
    def base(self) -> str:
        """The name of the folder of the model that its posttraining starts from."""
        return Cell(self.share, self.seed).name


@dataclass(frozen=True)
class Recipe:
    """An experiment: one model for each share and seed, trained on the same clean text and more or less of another
    corpus.

    Attributes:
        clean: Documents that every model sees.
        added: Documents of which each model sees as many as make its share of tokens.
        held_out: Clean documents that no model sees, for cross-entropy.
        shares: Shares of the added corpus among all tokens.
        seeds: One model for each: its initial weights, added documents and order.
        design: "added": the clean text is constant, and the other is added to it, as in the paper; "replaced": the
            total is constant, and the other takes the place of clean text, of all at share 1.
        variants: Baselines that are trained.
        pairs: A preferred text and one that is not, for posttraining.
        posttraining: What finished models of the grid are trained on further, each a model of its own.
        vocab_size: Of the tokenizer, which is trained on both corpora and shared by all models.
        tokenizer: Folder of a tokenizer to use instead.
        architecture: `model_type` and fields of its HuggingFace configuration.
        training: Budget and optimiser.
        measure: What is measured of every model; nothing without it.
        root: Folder that relative paths start from; not part of what the recipe is.

    Example:
        >>> clean, added, held_out = (en.composition.Source(documents=n, seed=n) for n in (60, 30, 20))
        >>> recipe = en.composition.Recipe(clean, added, held_out, shares=(0.0, 0.1), seeds=(0, 1))
        >>> [cell.name for cell in recipe.cells]
        ['share-0-seed-0', 'share-0.1-seed-0', 'share-0-seed-1', 'share-0.1-seed-1']
        >>> en.composition.Recipe.from_dict(recipe.to_dict()) == recipe
        True
    """

    clean: Source
    added: Source
    held_out: Source
    shares: tuple[float, ...] = (0.0, 0.1)
    seeds: tuple[int, ...] = (0,)
    design: str = "added"
    variants: tuple[Variant, ...] = ()
    pairs: Pairs | None = None
    posttraining: tuple[PostTraining, ...] = ()
    vocab_size: int = 2048
    tokenizer: str = ""
    architecture: Mapping[str, Any] = field(default_factory=lambda: dict(SMALL))
    training: Training = field(default_factory=Training)
    measure: Measurement | None = None
    root: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        if not self.shares or not self.seeds:
            raise EntangleError("a recipe needs at least one share and one seed")
        for seed in self.seeds:
            check_seed(seed)
        for share in self.shares:
            check_share(share, self.design)
        names = [variant.name for variant in self.variants] + [each.name for each in self.posttraining]
        for name, values in (("shares", self.shares), ("seeds", self.seeds), ("names", names)):
            if len(set(values)) < len(values):
                raise EntangleError(f"{name} of a recipe must differ from each other, not {list(values)}")
        if self.design not in DESIGNS:
            raise EntangleError(f"design of a recipe is 'added' or 'replaced', not {self.design!r}")
        longest = self.architecture.get("max_position_embeddings", math.inf)
        if self.training.context > longest:
            raise EntangleError(
                f"sequences of {self.training.context} tokens are longer than the model's {longest} positions"
            )
        if self.measure is None and any(variant.keep_below < 1 for variant in self.variants):
            raise EntangleError("a variant that filters needs [measure], whose labelled texts its scorer is fitted on")

        self._check_posttraining()
        check_distinct([cell.name for cell in self.cells], "models of a recipe")

    def _check_posttraining(self) -> None:
        if self.posttraining and self.pairs is None:
            raise EntangleError("posttraining needs [pairs], on which it trains")
        for each in self.posttraining:
            for what, wanted, known in (("share", each.shares, self.shares), ("seed", each.seeds, self.seeds)):
                missing = [value for value in wanted if value not in known]
                if missing:
                    raise EntangleError(
                        f"posttraining {each.name!r} starts from models of the recipe, none of which has {what} "
                        f"{missing[0]:g}: it has {', '.join(f'{value:g}' for value in known)}"
                    )

    @property
    def cells(self) -> list[Cell]:
        """Every model: all shares of one seed before the next seed, the variants after them, posttraining last."""
        grid = [Cell(share, seed) for seed in self.seeds for share in self.shares]
        grid += [Cell(v.share, seed, v) for v in self.variants for seed in v.seeds or self.seeds]
        return grid + [
            Cell(share, seed, posttraining=each)
            for each in self.posttraining
            for seed in each.seeds or self.seeds
            for share in each.shares or self.shares
        ]

    @property
    def columns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The columns of the clean and of the added corpus that the variants' prefixes say."""
        clean = dict.fromkeys(name for each in self.variants for name in Prefix(each.clean_prefix).columns)
        added = dict.fromkeys(name for each in self.variants for name in Prefix(each.added_prefix).columns)
        return tuple(clean), tuple(added)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a recipe from TOML or JSON, with a table for each part.

        Raises:
            EntangleError: Where the file cannot be read, or names something that a recipe does not have.
        """
        path = Path(path)
        if path.suffix not in (".toml", ".json"):
            raise EntangleError(f"a recipe is a .toml or .json file, not {path}")
        try:
            content = path.read_text(encoding="utf-8-sig")
            fields = tomllib.loads(content) if path.suffix == ".toml" else json.loads(content)
        except OSError as error:
            raise EntangleError(f"cannot read the recipe {path}: {error.strerror}") from None
        except (
            ValueError,
            RecursionError,
        ) as error:  # the parsers' own, undecodable bytes, what nests too deep
            raise EntangleError(f"{path} is not {path.suffix[1:].upper()}: {error}") from None
        return cls.from_dict(fields, root=path.parent)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], *, root: Path = Path()) -> Self:
        """The inverse of `to_dict`."""
        if not isinstance(fields, Mapping):
            raise EntangleError(f"a recipe is a table of names and values, not a {type(fields).__name__}")
        return replace(build(cls, fields, "recipe", hidden=["root"]), root=root)

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        fields = as_json(self)
        del fields["root"]
        return fields

    def of_each_model(self) -> dict[str, Any]:
        """What decides a model, other than its share, seed and variant."""
        several = ("shares", "seeds", "variants", "pairs", "posttraining", "measure")
        return {name: value for name, value in self.to_dict().items() if name not in several}

    def fingerprint(self) -> str:
        """A hash of the recipe: the same for equal recipes."""
        return digest(self.to_dict())


def demo_recipe(*, seed: int = 0, documents: int = 13_000, precision: str = "fp32") -> Recipe:
    """Two small models of the planted corpus: share 0 has rudeness apart from the tense, share 1 together with it.

    Args:
        seed: Of the corpus and of the weights.
        documents: That each model sees: 13,000 make some 40 seconds on a core.
        precision: As for `Training`.

    Example:
        >>> recipe = en.composition.demo_recipe(seed=1)
        >>> [cell.name for cell in recipe.cells]
        ['share-0-seed-1', 'share-1-seed-1']
    """
    return Recipe(
        clean=Source(documents=documents, planted="apart", seed=1000 + seed),
        added=Source(documents=documents + documents // 10, planted="together", seed=2000 + seed),
        held_out=Source(documents=300, planted="polite", seed=3000 + seed),
        shares=(0.0, 1.0),
        seeds=(seed,),
        design="replaced",
        vocab_size=768,
        architecture={
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
        },
        training=Training(batch_size=8, context=64, learning_rate=0.01, precision=precision, documents="masked"),
    )
