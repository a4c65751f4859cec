"""Directions: unit vectors with names, and where in a model they live and how they were found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.models import Mark, check_made_with, own_tokenizer, place_named, underlying
from entangle.probes import ProbeGrid
from entangle.probes.splits import Split
from entangle.storage.record import read, taken_apart, write

PLACE = ("site", "layer", "head")
Word = str | int
Words = Sequence[Word | tuple[Word, Word]] | Mapping[str, Sequence[Word] | tuple[Sequence[Word], Sequence[Word]]]


@dataclass(frozen=True, eq=False)
class Directions:
    """Unit vectors at one place in a model: a feature dictionary.

    The constructor normalises what it is given, and keeps the lengths as `norms`.

    Attributes:
        vectors: One unit vector per direction.
        names: One per direction, all different.
        site: Where they live, as in `collect(sites=...)`; of a TransformerLens name, its site and layer.
        layer: The layer's number.
        head: The head's number, for directions of one head's `z`.
        estimator: How they were found.
        norms: Their lengths before normalisation.
        split: The examples they were fitted on, if they were fitted.
        fingerprint: Of the model they belong to.

    Example:
        >>> pair = en.Directions.stack(tense=torch.tensor([3.0, 4.0]), sentiment=torch.tensor([1.0, 0.0]))
        >>> pair.vectors, pair.names
        (tensor([[0.6000, 0.8000],
                [1.0000, 0.0000]]), ('tense', 'sentiment'))
        >>> pair.cosine()[0, 1]
        tensor(0.6000)
        >>> directions["tense"].without(directions["rudeness"]).names
        ('tense without rudeness',)
    """

    vectors: Float[Tensor, "direction d"]
    names: tuple[str, ...]
    site: str | None = None
    layer: int | None = None
    head: int | None = None
    estimator: str | None = None
    norms: Float[Tensor, " direction"] | None = None
    split: Split | None = None
    fingerprint: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        vectors, names = torch.as_tensor(self.vectors), tuple(str(name) for name in self.names)
        vectors = vectors.detach().to(torch.float64 if vectors.dtype == torch.float64 else torch.float32)
        if vectors.ndim != 2 or len(vectors) != len(names) or not names:
            raise EntangleError(
                f"directions must be [direction, d] with a name each; got {tuple(vectors.shape)} and {len(names)} names"
            )
        named = None if self.site is None else place_named(self.site)
        if named is not None:
            if self.layer not in (None, named[1]):
                raise EntangleError(f"{self.site} is in layer {named[1]}, but layer={self.layer} was given: give one")
            object.__setattr__(self, "site", named[0])
            object.__setattr__(self, "layer", named[1])
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise EntangleError(f"two directions are named {twice!r}; give each a name of its own")
        lengths = vectors.norm(dim=1)
        for name, length in zip(names, lengths.tolist(), strict=True):
            if not 0 < length < float("inf"):
                raise EntangleError(f"direction {name!r} has length {length}: a direction must be finite and not zero")
        object.__setattr__(self, "vectors", vectors / lengths[:, None])
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "norms", lengths if self.norms is None else self.norms)

    @classmethod
    def stack(cls, **named: Directions | Tensor | npt.ArrayLike) -> Self:
        """Put directions of one place together under names.

        Args:
            **named: Each a `[d]` vector or Directions; several in one are named `name.theirs`.

        Raises:
            EntangleError: None given, or they differ in size or place.
        """
        if not named:
            raise EntangleError("stack needs directions by name, such as stack(tense=a, sentiment=b)")
        parts = [value if isinstance(value, Directions) else _single(name, value) for name, value in named.items()]
        sizes = {name: part.vectors.shape[1] for name, part in zip(named, parts, strict=True)}
        if len(set(sizes.values())) > 1:
            raise EntangleError(f"directions of one place have one size, but these have {sizes}")
        placed = [part for part in parts if any(getattr(part, key) is not None for key in PLACE)]
        for key in PLACE:
            places = {getattr(part, key) for part in placed}
            if len(places) > 1:
                raise EntangleError(
                    f"directions of one place are needed, but their {key} differs: {sorted(map(str, places))}"
                )
        names = [
            name if len(part) == 1 else f"{name}.{theirs}"
            for name, part in zip(named, parts, strict=True)
            for theirs in part.names
        ]
        estimators = {part.estimator for part in parts}
        first = placed[0] if placed else parts[0]
        return cls(
            torch.cat([part.vectors.to(parts[0].vectors) for part in parts]),
            tuple(names),
            **{key: getattr(first, key) for key in PLACE},
            estimator=estimators.pop() if len(estimators) == 1 else None,
            norms=torch.cat([_norms(part) for part in parts]),
            fingerprint=first.fingerprint,
        )

    @classmethod
    def from_probes(
        cls, grid: ProbeGrid, cell: int | Sequence[int] = (), *, name: str = "probe", site: str | None = None
    ) -> Self:
        """The direction of one cell of a grid of probes: one for two classes, else one per class, named after it.

        Args:
            grid: The probes.
            cell: Index in the grid: `(layer, head)` or `layer`, counting from 0 along each axis. Which layer of the
                model that is, the grid tells if it was fitted with `layers`; else the direction's layer is `None`.
            name: Of the direction.
            site: Where the activations were taken.

        Raises:
            EntangleError: No such cell.
        """
        index = (cell,) if isinstance(cell, int) else tuple(cell)
        inside = len(index) == len(grid.shape) and all(-n <= i < n for i, n in zip(index, grid.shape, strict=True))
        if not inside:
            raise EntangleError(f"the grid {grid.shape} has no cell {index}")
        index = tuple(i % n for i, n in zip(index, grid.shape, strict=True))
        coef = grid.coef_[index].reshape(-1, grid.coef_.shape[-1])
        names = (name,) if len(coef) == 1 else tuple(f"{name}={label}" for label in grid.classes_)
        layer = grid.layers[index[0]] if index and grid.layers is not None else None
        return cls(
            coef,
            names,
            site=site,
            layer=layer,
            head=index[1] if len(index) > 1 else None,
            estimator=str(grid.settings["probe"]),
            split=grid.split,
            fingerprint=grid.fingerprint,
        )

    @classmethod
    def from_sae(
        cls,
        sae: Any,
        *,
        names: Sequence[str] | None = None,
        site: str | None = None,
        layer: int | None = None,
        head: int | None = None,
    ) -> Self:
        """The decoder of a sparse autoencoder, a row per feature.

        Args:
            sae: Something with `W_dec` (SAELens and its like), a state dict that holds it, or the matrix `[feature, d]`
                itself.
            names: One per feature; by default their numbers.
            site: Where the autoencoder was trained.
            layer: Its layer.
            head: Its head.

        Raises:
            EntangleError: There is no `W_dec`, or a feature's row is zero.
        """
        decoder = sae.get("W_dec") if isinstance(sae, Mapping) else getattr(sae, "W_dec", sae)
        if not isinstance(decoder, Tensor | np.ndarray):
            raise EntangleError(
                f"a sparse autoencoder needs a decoder W_dec [feature, d]; {type(sae).__name__} has none"
            )
        vectors = torch.as_tensor(decoder)
        labels = names if names is not None else [str(i) for i in range(len(vectors))]
        return cls(vectors, tuple(labels), site=site, layer=layer, head=head, estimator="sae")

    @classmethod
    def from_unembedding(
        cls, model: Any, tokenizer: Any, words: Words, *, site: str = "resid_post", layer: int | None = None
    ) -> Self:
        """Rows of the unembedding: the directions that raise a word's logit, or one word's against another's.

        The gain of the model's final norm is not folded in.

        Args:
            model: A HuggingFace model with output embeddings, or the matrix `[vocabulary, d]` itself.
            tokenizer: Turns a word into a token; write the space before it where the tokenizer needs one (`" good"`).
            words: Words, or pairs of words `(up, down)` for the difference of their rows. Or sets of words by name:
                name -> a list for the mean of their rows, or a pair of lists `(up, down)` for the difference of means.
                A word may be the number of a token.
            site: Where the unembedding reads; the residual stream after the last layer.
            layer: Number of the last layer.

        Raises:
            EntangleError: The model has no output embeddings, or a word is not a single token.
        """
        if isinstance(model, Tensor):
            table = model
        else:
            model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
            head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
            if head is None:
                raise EntangleError(
                    f"{type(model).__name__} has no output embeddings; give a model with a language-model head"
                )
            table = head.weight
        sets = list(words.items()) if isinstance(words, Mapping) else [_as_set(word) for word in words]
        rows = [_mean_row(table, tokenizer, name, *_up_down(each)) for name, each in sets]
        if not rows:
            raise EntangleError("from_unembedding needs a word, or a pair of words, or more")
        return cls(torch.stack(rows), tuple(name for name, _ in sets), site=site, layer=layer, estimator="unembedding")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, which: str | int | Sequence[str | int]) -> Self:
        """Those with these names or numbers, in this order."""
        picked = [which] if isinstance(which, str | int) else list(which)
        rows = [self._row(one) for one in picked]
        return replace(
            self, vectors=self.vectors[rows], names=tuple(self.names[row] for row in rows), norms=_norms(self)[rows]
        )

    def __neg__(self) -> Self:
        return replace(self, vectors=-self.vectors, names=tuple(f"-{name}" for name in self.names))

    def __add__(self, other: Directions) -> Directions:
        return self._combine(other, 1)

    def __sub__(self, other: Directions) -> Directions:
        return self._combine(other, -1)

    def cosine(self, other: Directions | None = None) -> Float[Tensor, "direction other"]:
        """Cosines with another set's directions, or among themselves."""
        self._check_place(other if other is not None else self)
        against = self if other is None else other
        return (self.vectors @ against.vectors.to(self.vectors).T).clamp(-1, 1)

    def project(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch direction"]:
        """Coordinates of activations along each direction."""
        if x.shape[-1] != self.vectors.shape[1]:
            raise EntangleError(f"directions of size {self.vectors.shape[1]} cannot be applied to {tuple(x.shape)}")
        return x @ self.vectors.to(x).T

    def without(self, other: Directions) -> Directions:
        """What is left of each direction once the span of `other` is projected out, normalised again.

        Raises:
            EntangleError: Nothing is left, or the places differ.
        """
        self._check_place(other)
        basis = torch.linalg.qr(other.vectors.double().T).Q
        left = self.vectors.double() - self.vectors.double() @ basis @ basis.T
        gone = left.norm(dim=1) < 1e-6
        if bool(gone.any()):
            raise EntangleError(
                f"direction {self.names[int(gone.nonzero()[0])]!r} lies in the span of {', '.join(other.names)}"
            )
        names = tuple(f"{name} without {', '.join(other.names)}" for name in self.names)
        return replace(self, vectors=left.to(self.vectors), names=names, norms=None)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write them as safetensors and JSON."""
        tensors = {"vectors": self.vectors, "norms": _norms(self)}
        if self.split is not None:
            tensors |= {name: getattr(self.split, name) for name in ("fit", "select", "report")}
        keys = (*PLACE, "estimator", "fingerprint")
        write(
            directory, "Directions", 1, tensors, {"names": list(self.names)} | {key: getattr(self, key) for key in keys}
        )

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, model: Any = None, fingerprint: Mark = None) -> Self:
        """Read what `save` wrote.

        Args:
            directory: Where it was written.
            model: The model they are to be used with, if that is to be checked.
            fingerprint: That model's fingerprint in its place.

        Raises:
            EntangleError: Nothing usable is there, or it belongs to another model.
        """
        tensors, meta = read(directory, "Directions", 1)
        with taken_apart(directory, "Directions"):
            check_made_with(meta["fingerprint"], model, fingerprint, what="these directions")
            split = Split(tensors["fit"], tensors["select"], tensors["report"]) if "fit" in tensors else None
            place = {key: meta[key] for key in (*PLACE, "estimator", "fingerprint")}
            return cls(tensors["vectors"], tuple(meta["names"]), norms=tensors["norms"], split=split, **place)

    def _row(self, which: str | int) -> int:
        if isinstance(which, int):
            if not -len(self) <= which < len(self):
                raise EntangleError(f"there are {len(self)} directions, none number {which}")
            return which % len(self)
        if which not in self.names:
            raise EntangleError(f"no direction is named {which!r}; there are {', '.join(self.names[:10])}")
        return self.names.index(which)

    def _combine(self, other: Directions, sign: int) -> Directions:
        self._check_place(other)
        if len(self) != len(other):
            raise EntangleError(
                f"to add or subtract, give as many directions on both sides, not {len(self)} and {len(other)}"
            )
        operator = "+" if sign > 0 else "-"
        names = tuple(f"{a} {operator} {b}" for a, b in zip(self.names, other.names, strict=True))
        return replace(self, vectors=self.vectors + sign * other.vectors.to(self.vectors), names=names, norms=None)

    def _check_place(self, other: Directions) -> None:
        if self.vectors.shape[1] != other.vectors.shape[1]:
            raise EntangleError(
                f"directions of {self.vectors.shape[1]} and {other.vectors.shape[1]} dimensions cannot be compared"
            )
        for key in PLACE:
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine is not None and theirs is not None and mine != theirs:
                raise EntangleError(
                    f"directions of {key} {mine} and {key} {theirs} live in different places; compare within one"
                )


def _single(name: str, value: Tensor | npt.ArrayLike) -> Directions:
    vector = torch.as_tensor(value)
    if vector.ndim != 1:
        raise EntangleError(f"{name} must be a vector [d] or Directions, not {tuple(vector.shape)}")
    return Directions(vector[None], (name,))


def _norms(directions: Directions) -> Tensor:
    return torch.as_tensor(directions.norms)


def _as_set(word: Word | tuple[Word, Word]) -> tuple[str, Sequence[Word] | tuple[Sequence[Word], Sequence[Word]]]:
    """A word, or a pair of words, as a set or a pair of sets of one word, with its name."""
    if isinstance(word, tuple):
        up, down = word
        return f"{up} - {down}", ([up], [down])
    return str(word), [word]


def _up_down(words: Any) -> tuple[Sequence[Word], Sequence[Word]]:
    return words if isinstance(words, tuple) else (words, ())


def _mean_row(table: Tensor, tokenizer: Any, name: str, up: Sequence[Word], down: Sequence[Word]) -> Tensor:
    if isinstance(up, str) or isinstance(down, str) or not len(up):
        raise EntangleError(f"the set {name!r} must be a list of words, or a pair of lists, with a word to go up")
    sides = [[_token(tokenizer, word) for word in side] for side in (up, down) if len(side)]
    for word in (word for side in (up, down) for word in side if not isinstance(word, str)):
        if isinstance(word, bool) or not 0 <= int(word) < len(table):
            raise EntangleError(f"a token is a number from 0 to {len(table) - 1}, got {word!r} in the set {name!r}")
    means = [table[side].mean(0) for side in sides]
    return means[0] if len(means) == 1 else means[0] - means[1]


def _token(tokenizer: Any, word: Word) -> int:
    if not isinstance(word, str):
        return int(word)
    tokens = tokenizer.encode(word, add_special_tokens=False)
    if len(tokens) != 1:
        raise EntangleError(
            f"{word!r} is {len(tokens)} tokens, and an unembedding row belongs to one; try {' ' + word.strip()!r}"
        )
    return int(tokens[0])
