"""What methods are made of: one concept's activations and labels, and what of the model, texts and metrics is at hand.

Directions and scales are made of the fitting rows, heads and layers are chosen on the selection rows, and the report
rows are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entangle.activations import Activations
from entangle.data import read_labels
from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.evaluation.methods.directions import DirectionSet, concept_directions
from entangle.evaluation.methods.heads import CausalHeads, causal_heads
from entangle.evaluation.methods.places import shift_of_means
from entangle.evaluation.methods.words import telling_tokens
from entangle.forecast import Contrast, ShiftMetric
from entangle.interventions import ITI
from entangle.models import own_tokenizer, underlying
from entangle.models.rows import context_length
from entangle.probes import PROBES, LDAProbe, ProbeGrid, Split, fit_probes

MOST_TEXTS = 256
"""Texts of each class that a contrast is fitted on, at most."""
MOST_TESTED = 64
"""Texts of each class that heads are tested on, at most."""
LONGEST = 128
"""Tokens that are read of a text, at most."""
N_WORDS = 20
"""Tokens of each class in a set of telling words."""


@dataclass(frozen=True, eq=False)
class Ingredients:
    """What there is to make methods of; what is None was not given.

    Attributes:
        acts: Activations with "z" and "resid_post", one row per text.
        y: The class of each row, 0 or 1.
        toward: The class that is steered to.
        grid: Probes of `acts`' "z", or of some of its layers; its split is everybody's.
        groups: A group for each row.
        top_k: Heads to steer.
        seed: Of whatever is drawn.
        model: The plain model.
        tokenizer: Its tokenizer.
        texts: The text of each row.
        sources: Where each row comes from.
        pairs: A name for each row, shared by rows that are a pair.
        clean: Clean documents, none of `texts`.
        given_metric: Prices of shifts at "resid_post".
        words: A direction of a set of words, up for the class that is steered to.
        autoencoders: Sparse autoencoders at "resid_post".
        others: Concepts to hold: name -> activations with "resid_post", and their labels.
        expert: A model of what is wanted, or where it lies.
        anti_expert: A model of what is unwanted.
        amateur: A model to decode against.
        wanted: Methods that are asked for: directions of others are not made.
        progress: Show progress bars.
    """

    acts: Activations
    y: Int[Tensor, " example"]
    toward: int
    grid: ProbeGrid
    groups: Sequence[Any] | None = None
    top_k: int = 30
    seed: int = 0
    model: Any = None
    tokenizer: Any = None
    texts: Sequence[str] | None = None
    sources: Sequence[Any] | None = None
    pairs: Sequence[Any] | None = None
    clean: Sequence[str] | None = None
    given_metric: ShiftMetric | None = None
    words: Directions | None = None
    autoencoders: Sequence[Any] | None = None
    others: Mapping[str, tuple[Activations, Any]] | None = None
    expert: Any = None
    anti_expert: Any = None
    amateur: Any = None
    wanted: frozenset[str] = frozenset()
    progress: bool = False

    def has(self, name: str) -> bool:
        """Whether something that a method needs was given."""
        match name:
            case "metric":
                return self.given_metric is not None or (self.clean is not None and self.model is not None)
            case "checkpoint":
                return self.anti_expert is not None or self.expert is not None
            case "words":
                return self.words is not None or (self.texts is not None and self.model is not None)
            case "others":
                return bool(self.others)
            case _:
                return getattr(self, name) is not None

    @property
    def split(self) -> Split:
        """Which rows fit, which choose and which are left for the report."""
        return self.grid.split

    @property
    def target(self) -> Bool[Tensor, " example"]:
        """Which rows are of the class that is steered to."""
        return self.y == self.toward

    @cached_property
    def layers(self) -> list[int]:
        """Layers whose heads were probed."""
        return [int(layer) for layer in (self.acts.layers("z") if self.grid.layers is None else self.grid.layers)]

    @cached_property
    def z(self) -> Float[Tensor, "example layer head d_head"]:
        """Head outputs at these layers."""
        there = self.acts.layers("z")
        z = self.acts["z"]
        return z if self.layers == there else z[:, [there.index(layer) for layer in self.layers]]

    def iti(self, **options: Any) -> ITI:
        """ITI of these rows, with other options of `ITI.fit`."""
        usual: dict[str, Any] = {"grid": self.grid, "top_k": self.top_k, "toward": self.toward, "layers": self.layers}
        return ITI.fit(self.z, self.y, **{**usual, "seed": self.seed, **options})

    @cached_property
    def layer_index(self) -> int:
        """Where among `acts`' layers one residual-stream vector separates the selection rows best."""
        options: dict[str, Any] = {"split": self.split, "seed": self.seed, "n_permutations": 0, "progress": False}
        probes = fit_probes(self.acts["resid_post"], self.y, probe="mean_difference", **options)
        return int(probes.top(1)[0][0])

    @property
    def place(self) -> dict[str, Any]:
        """That place, as edits take it."""
        return {"site": "resid_post", "layer": self.acts.layers("resid_post")[self.layer_index]}

    @property
    def fitting(self) -> tuple[Float[Tensor, "row d_model"], Int[Tensor, " row"]]:
        """Activations of the fitting rows there, and their classes."""
        return self.acts["resid_post"][self.split.fit, self.layer_index], self.y[self.split.fit]

    @cached_property
    def shift(self) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
        """One standard deviation along the fitting rows' difference of means there, and their mean."""
        x, y = self.fitting
        return shift_of_means(x, y == self.toward)

    @cached_property
    def held_normals(self) -> Float[Tensor, "concept d_model"]:
        """Normals of the probes of the concepts to hold, there."""
        normals = []
        for name, (acts, labels) in (self.others or {}).items():
            layer = self.place["layer"]
            if layer not in acts.layers("resid_post"):
                raise EntangleError(
                    f"{name} is held after layer {layer}, but has no activations there: collect all layers"
                )
            x = acts["resid_post"][:, acts.layers("resid_post").index(layer)].double()
            normals.append(torch.as_tensor(LDAProbe().fit(x, read_labels(labels, len(x), two=True).codes).coef_[0]))
        return torch.stack(normals).float()

    @cached_property
    def directions(self) -> DirectionSet:
        """The directions of the methods that are asked for, and those that cost nothing."""
        shifts = "natural shift" in self.wanted
        return concept_directions(
            self.acts,
            self.y,
            toward=self.toward,
            groups=self.groups,
            split=self.split,
            pairs=self.pairs,
            sources=self.sources if "CAA by source" in self.wanted else None,
            contrast=self.contrast("fit") if shifts or "contrast gradient" in self.wanted else None,
            metric=self.metric if shifts else None,
            selection=self.contrast("select") if shifts else None,
            words=self.telling if "logit lens" in self.wanted else None,
            autoencoders=self.autoencoders or (),
            probes=[name for name in PROBES if f"{name} probe" in self.wanted],
            seed=self.seed,
        )

    @cached_property
    def length(self) -> int:
        """Tokens that are read of a text, at most."""
        return min(LONGEST, context_length(underlying(self.model), own_tokenizer(self.model, self.tokenizer)))

    @cached_property
    def metric(self) -> ShiftMetric:
        """Prices of shifts of the residual stream, given or fitted on the clean documents."""
        if self.given_metric is not None:
            return self.given_metric
        layers = self.acts.layers("resid_post")
        return ShiftMetric.fit(
            self.model,
            self.tokenizer,
            self.clean or (),
            layers=layers,
            max_length=self.length,
            seed=self.seed,
            progress=False,
        )

    @cached_property
    def telling(self) -> Directions:
        """The direction that raises the words of the one class over those of the other."""
        if self.words is not None:
            return self.words
        up, down = telling_tokens(
            own_tokenizer(self.model, self.tokenizer),
            [self.text(i) for i in self.split.fit.tolist()],
            self.target[self.split.fit],
            n=N_WORDS,
        )
        return Directions.from_unembedding(underlying(self.model), self.tokenizer, {"telling words": (up, down)})

    def contrast(self, part: str) -> Contrast:
        """The contrast of the texts of one part of the split, toward the class that is steered to."""
        if part not in self._contrasts:
            toward, away = ([self.text(i) for i in rows] for rows in self.sides(part, MOST_TEXTS))
            layers = self.acts.layers("resid_post")
            self._contrasts[part] = Contrast.fit(
                self.model, self.tokenizer, toward, away, layers=layers, max_length=self.length, progress=self.progress
            )
        return self._contrasts[part]

    @cached_property
    def causal(self) -> CausalHeads:
        """The test of ITI's heads, on texts of the selection rows."""
        rows = self.sides("select", MOST_TESTED)
        toward, away = ([self.text(i) for i in side] for side in rows)
        groups = None if self.groups is None else tuple([self.groups[i] for i in side] for side in rows)
        return causal_heads(
            self.model,
            self.tokenizer,
            self.iti(),
            toward=toward,
            away=away,
            groups=groups,  # type: ignore[arg-type]
            max_length=self.length,
            seed=self.seed,
            progress=self.progress,
        )

    def sides(self, part: str, most: int) -> tuple[list[int], list[int]]:
        """Rows of a part of the split, of the class that is steered to and of the other, in random order."""
        rows = getattr(self.split, part)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))
        mixed = rows[order]
        one, other = mixed[self.target[mixed]].tolist(), mixed[~self.target[mixed]].tolist()
        return one[:most], other[:most]

    def text(self, row: int) -> str:
        """The text of a row."""
        if self.texts is None:
            raise EntangleError("a method reads the texts of the rows, but none are there: pass texts=")
        return self.texts[row]

    @cached_property
    def _contrasts(self) -> dict[str, Contrast]:
        return {}
