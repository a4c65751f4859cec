"""Every direction of one concept at one site, by name: fitted on one part of the rows, told apart on another, judged on
a third."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entangle.activations import Activations
from entangle.data import in_order, read_labels, same_index
from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.evaluation.methods.pairs import agreement, leading_component, paired_rows
from entangle.forecast import Contrast, NaturalShift, ShiftMetric
from entangle.interventions import AddDirection
from entangle.metrics import auroc, auroc_interval, unit_vectors
from entangle.probes import PROBES, Split, encode_groups, fit_probes, three_way

FEWEST_OF_A_SOURCE = 8
"""Fitting rows of each class that a source needs for a difference of its own."""
Found: TypeAlias = tuple[str, int, Tensor]
"""A direction's name, its layer, and a vector along it."""


@dataclass(frozen=True, eq=False)
class DirectionSet:
    """What `concept_directions` found: name -> layer -> unit vector toward the class that is steered to.

    Attributes:
        vectors: The directions.
        spreads: Standard deviation of the fitting rows along each, by the same names and layers.
        site: Where they live.
        split: Which rows fitted, which chose a layer, and which the areas in the table are of.
        table: A row for each direction and layer; see `to_frame`.
        fingerprint: Of the model.

    Example:
        >>> found = en.evaluation.concept_directions(acts, labels)
        >>> found.names[:3]
        ('mean difference', 'logistic probe', 'lda probe')
        >>> edit = found.edit("LAT")  # where the selection rows tell it best; alpha counts standard deviations
        >>> edit.layer == found.best("LAT")
        True
        >>> found.at(1).cosine().shape == (len(found.names), len(found.names))
        True
    """

    vectors: Mapping[str, Mapping[int, Float[Tensor, " d"]]]
    spreads: Mapping[str, Mapping[int, float]]
    site: str
    split: Split
    table: pd.DataFrame = field(repr=False)
    fingerprint: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the directions."""
        return tuple(self.vectors)

    def to_frame(self) -> pd.DataFrame:
        """A row for each direction and layer.

        Columns: `direction`, `layer`; `chosen`, whether this is its layer (`best`); `auroc_select`, the area under the
        ROC curve of the selection rows' projections, by which the layer is chosen; `auroc` with `auroc_low` and
        `auroc_high`, that of the report rows; `agreement`, the mean cosine of the fitting pairs' differences with it.
        """
        return self.table.copy()

    def best(self, name: str) -> int:
        """The layer at which a direction tells the selection rows' classes apart best, the first of equals."""
        self._check(name)
        rows = self.table[(self.table["direction"] == name) & self.table["chosen"]]
        return int(rows["layer"].iloc[0])

    def edit(self, name: str, layer: int | None = None) -> AddDirection:
        """One standard deviation along a direction, toward the class that is steered to.

        Args:
            name: The direction.
            layer: Where; by default where it is `best`.

        Raises:
            EntangleError: No such direction, or none at that layer.
        """
        chosen = self.best(name) if layer is None else layer
        vector = self._at(name, chosen) * self.spreads[name][chosen]
        return AddDirection(vector, self.site, chosen, fingerprint=self.fingerprint)

    def at(self, layer: int) -> Directions:
        """The directions that there are at one layer, as a feature dictionary."""
        there = {name: by_layer[layer] for name, by_layer in self.vectors.items() if layer in by_layer}
        if not there:
            raise EntangleError(f"no direction is known at layer {layer}; fit on activations of it")
        vectors = torch.stack(list(there.values()))
        return Directions(vectors, tuple(there), self.site, layer, split=self.split, fingerprint=self.fingerprint)

    def _check(self, name: str) -> None:
        if name not in self.vectors:
            raise EntangleError(f"no direction is called {name!r}; there are {', '.join(self.names)}")

    def _at(self, name: str, layer: int) -> Float[Tensor, " d"]:
        self._check(name)
        if layer not in self.vectors[name]:
            layers = ", ".join(map(str, self.vectors[name]))
            raise EntangleError(f"{name!r} is not known at layer {layer}; it is at {layers}")
        return self.vectors[name][layer]


def concept_directions(
    acts: Activations,
    labels: Any,
    *,
    site: str = "resid_post",
    toward: Any = 0,
    positive: Any = None,
    groups: Sequence[Any] | None = None,
    split: Split | None = None,
    pairs: Sequence[Any] | None = None,
    sources: Sequence[Any] | None = None,
    contrast: Contrast | None = None,
    metric: ShiftMetric | None = None,
    selection: Contrast | None = None,
    words: Directions | None = None,
    autoencoders: Sequence[Any] = (),
    probes: Sequence[str] = tuple(PROBES),
    level: float = 0.95,
    seed: int = 0,
) -> DirectionSet:
    """All directions that are known for a concept, at every layer of a site, toward one of its two classes.

    - "mean difference", "logistic probe", "lda probe", "ridge probe", "svm probe": the normal of each estimator;
    - "LAT" and "centred PCA": the leading component of paired differences (see `leading_component`);
    - "mean difference of NAME": that of the rows of one source alone, where `sources` are given;
    - "contrast gradient" and "natural shift": of `contrast`, and of that with `metric`;
    - "logit lens": what raises the words of `words`, at every layer as at the last;
    - "SAE feature": of each autoencoder the decoder's row of the feature that tells the fitting rows apart best, at the
      layer it reads;
    - "random": a control.

    Args:
        acts: Activations with the site, one row per text.
        labels: Two classes of any kind, such as 1 = toxic and 0 = not.
        site: A site whose rows are vectors, such as "resid_post".
        toward: The class to steer to, as for `ITI.fit`.
        positive: The label that is class 1, all others being class 0.
        groups: One per row; rows of a group never fall in different parts.
        split: A split of your own.
        pairs: A name per row, shared by the rows that belong together; by default rows are paired at random. Rows that
            share one stay in one part, unless groups say otherwise.
        sources: Where each row comes from.
        contrast: Gradients on texts, at this site and these layers.
        metric: Prices at these places, of other texts.
        selection: The contrast on texts that choose how far the natural shift is shrunk.
        words: One direction of `Directions.from_unembedding`, up for the class that is steered to.
        autoencoders: With `encode`, `W_dec`, `site` and `layer`; those of other sites are left out.
        probes: Estimators, of `entangle.probes.PROBES`.
        level: Coverage of the intervals.
        seed: Of the split, of random pairs and of the random direction.

    Returns:
        The directions.

    Raises:
        EntangleError: A site of heads, a group in two parts, or anything that the probes refuse.

    Example:
        >>> found = en.evaluation.concept_directions(acts, labels, probes=["logistic"], sources=["a", "b"] * 48)
        >>> found.names
        ('mean difference', 'logistic probe', 'LAT', 'centred PCA', 'random')
        >>> frame = found.to_frame()  # the sources tell the classes, so that neither has both: no difference of theirs
        >>> bool(frame.loc[frame["chosen"] & (frame["direction"] == "mean difference"), "auroc"].item() > 0.7)
        True
    """
    x = acts[site]
    if x.ndim != 3:
        raise EntangleError(f'directions live at a site of vectors, but {site} is {list(x.shape)}: use "resid_post"')
    same_index(labels=labels, groups=groups, pairs=pairs, sources=sources)
    pairs, sources = (_column(each, len(x), what) for each, what in ((pairs, "pairs"), (sources, "sources")))
    read = read_labels(labels, len(x), positive=positive, two=True)
    codes, number = torch.from_numpy(read.codes), read.number_of(toward)
    target = codes == number
    units = encode_groups(pairs if groups is None else groups, len(x))
    split = three_way(codes, groups=units, seed=seed) if split is None else split
    split.check(codes, units)
    layers = acts.layers(site)
    rows, side = x[split.fit].double(), target[split.fit]
    names = None if pairs is None else [pairs[i] for i in split.fit.tolist()]
    ones, zeros = paired_rows(codes[split.fit] == 1, names, seed=seed)  # the same pairs whichever class is steered to
    differences = (rows[ones] - rows[zeros]) * (1 if number == 1 else -1)

    vectors: dict[str, dict[int, Tensor]] = {}
    chained = itertools.chain(
        _read(x, target, split, units, probes, layers),
        _of_pairs(differences, layers),
        _by_source(rows, side, [] if sources is None else [str(sources[i]) for i in split.fit.tolist()], layers),
        _bought([(site, layer) for layer in layers], contrast, metric, selection, seed),
        _given(rows, side, site, layers, words, autoencoders, seed),
    )
    for name, layer, vector in chained:
        if not vector.norm() > 0:
            raise EntangleError(f"the {name} of layer {layer} is zero, so it has no direction: check the labels")
        vectors.setdefault(name, {})[layer] = unit_vectors(vector.double()[None])[0].float()

    spreads = {
        name: {layer: float((rows[:, layers.index(layer)] @ v.double()).std(correction=0)) for layer, v in each.items()}
        for name, each in vectors.items()
    }
    table = _judged(vectors, x, layers, target, split, units, differences, level)
    return DirectionSet(vectors, spreads, site, split, table, acts.fingerprint)


def _column(given: Sequence[Any] | None, n: int, what: str) -> list[Any] | None:
    """What is said of each row, by position: a pandas column's own index plays no part."""
    if given is None:
        return None
    column = in_order(given, what.removesuffix("s"))
    if len(column) != n:
        raise EntangleError(f"{what} must have one for each row; got {len(column)} for {n} rows")
    return column


def feature_direction(
    autoencoder: Any, rows: Float[Tensor, "example d"], target: Bool[Tensor, " example"]
) -> tuple[int, Float[Tensor, " d"]]:
    """The feature of a sparse autoencoder that tells two classes apart best, and its decoder's row toward the target.

    Args:
        autoencoder: With `encode` and a decoder `W_dec` `[feature, d]`.
        rows: Activations where it reads.
        target: Which of them are of the class that is steered to.

    Returns:
        Its number, and the direction: the row where the feature is active on the target's side, else minus the row.

    Raises:
        EntangleError: There is no `W_dec`, or no feature is ever active.

    Example:
        >>> from types import SimpleNamespace
        >>> doubling = SimpleNamespace(encode=lambda x: torch.relu(2 * x), W_dec=torch.eye(2))
        >>> rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 5.0], [1.0, 4.0]])
        >>> en.evaluation.feature_direction(doubling, rows, torch.tensor([True, True, False, False]))
        (1, tensor([-0., -1.]))
    """
    decoder = getattr(autoencoder, "W_dec", None)
    if not isinstance(decoder, Tensor):
        raise EntangleError(f"an autoencoder needs a decoder W_dec [feature, d]; {type(autoencoder).__name__} has none")
    with torch.no_grad():
        features = autoencoder.encode(rows.to(decoder.dtype)).double()
    areas = auroc(features, target.long())
    best = int((areas - 0.5).abs().argmax())
    if features[:, best].std() == 0:
        raise EntangleError("no feature of the autoencoder is active on some rows and not on others: check its site")
    sign = 1.0 if areas[best] >= 0.5 else -1.0
    return best, sign * decoder[best].detach()


def _read(
    x: Tensor, target: Tensor, split: Split, units: Tensor | None, probes: Sequence[str], layers: Sequence[int]
) -> Iterator[Found]:
    """The difference of means, and the normal of each estimator."""
    y = target.long()
    for name in dict.fromkeys(["mean_difference", *probes]):
        normals = fit_probes(
            x, y, probe=name, split=split, groups=units, n_permutations=0, n_resamples=1, progress=False
        ).directions
        called = "mean difference" if name == "mean_difference" else f"{name} probe"
        yield from ((called, layer, normals[index]) for index, layer in enumerate(layers))


def _of_pairs(differences: Float[Tensor, "pair layer d"], layers: Sequence[int]) -> Iterator[Found]:
    for name, centred in (("LAT", False), ("centred PCA", True)):
        for index, layer in enumerate(layers):
            yield name, layer, leading_component(differences[:, index], centred=centred)


def _by_source(
    rows: Float[Tensor, "row layer d"], side: Tensor, sources: Sequence[str], layers: Sequence[int]
) -> Iterator[Found]:
    """The difference of means of each source that has enough fitting rows of both classes."""
    for source in dict.fromkeys(sources):
        mine = torch.tensor([each == source for each in sources])
        if min(int((mine & side).sum()), int((mine & ~side).sum())) >= FEWEST_OF_A_SOURCE:
            difference = rows[mine & side].mean(0) - rows[mine & ~side].mean(0)
            yield from ((f"mean difference of {source}", layer, difference[i]) for i, layer in enumerate(layers))


def _bought(
    keys: Sequence[tuple[str, int]],
    contrast: Contrast | None,
    metric: ShiftMetric | None,
    selection: Contrast | None,
    seed: int,
) -> Iterator[Found]:
    """The gradient of the contrast, and that in the metric."""
    if contrast is None:
        return
    known = [key for key in keys if key in contrast.keys]
    yield from (("contrast gradient", key[1], contrast.at([key]).gradient) for key in known)
    if metric is None:
        return
    for site, layer in (key for key in known if key in metric.keys):
        shift = NaturalShift.fit(metric, contrast, sites=[site], layers=[layer], selection=selection, seed=seed)
        yield "natural shift", layer, shift.vector


def _given(
    rows: Float[Tensor, "row layer d"],
    side: Tensor,
    site: str,
    layers: Sequence[int],
    words: Directions | None,
    autoencoders: Sequence[Any],
    seed: int,
) -> Iterator[Found]:
    """What no labels made: words, features, chance."""
    generator = torch.Generator().manual_seed(seed)
    for index, layer in enumerate(layers):
        if words is not None:
            yield "logit lens", layer, words.vectors[0]
        for autoencoder in autoencoders:
            if (autoencoder.site, autoencoder.layer) == (site, layer):
                yield "SAE feature", layer, feature_direction(autoencoder, rows[:, index], side)[1]
        yield "random", layer, torch.randn(rows.shape[-1], generator=generator)


def _judged(
    vectors: Mapping[str, Mapping[int, Tensor]],
    x: Tensor,
    layers: Sequence[int],
    target: Tensor,
    split: Split,
    units: Tensor | None,
    differences: Tensor,
    level: float,
) -> pd.DataFrame:
    """The table of `DirectionSet.to_frame`."""
    table = []
    for name, by_layer in vectors.items():
        rows = []
        for layer, vector in by_layer.items():
            index = layers.index(layer)
            chosen, judged = (x[part, index].double() @ vector.double() for part in (split.select, split.report))
            groups = None if units is None else units[split.report].numpy()
            area = auroc_interval(judged, target[split.report].long(), groups=groups, level=level)
            row: dict[str, Any] = {"direction": name, "layer": layer, "chosen": False}
            row["auroc_select"] = float(auroc(chosen, target[split.select].long()))
            row |= area.columns("auroc")
            row["agreement"] = float(agreement(differences[:, index], vector).mean())
            rows.append(row)
        best = int(np.argmax([row["auroc_select"] for row in rows]))
        rows[best]["chosen"] = True
        table += rows
    return pd.DataFrame(table)
