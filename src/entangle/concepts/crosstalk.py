"""Causal cross-talk: steer along one concept, and see how far the model's reading of every other concept moves.

Geometric entanglement says how directions lie; this says what the layers above make of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from entangle import plots
from entangle.activations import collect
from entangle.concepts.plain import plain_fields
from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.evaluation.language.documents import language_shift
from entangle.interventions import AddDirection, steer
from entangle.metrics import Estimate, bootstrap_mean, bootstrap_ratio, cosines
from entangle.models import Atlas, own_tokenizer, underlying
from entangle.probes import ProbeGrid
from entangle.progress import progress_bar


class Correlation(NamedTuple):
    """Spearman's rho over ordered pairs of concepts, and its p-value under relabelling the concepts (Mantel 1967)."""

    rho: float
    p_value: float


@dataclass(frozen=True)
class CrossTalk:
    """How far a push of one standard deviation along each concept moves the reading of every other.

    Attributes:
        names: The concepts.
        layers: Where their probes read.
        shift: Mean change of the target's probe logit, in standard deviations of that logit over the plain texts, with
            its interval over texts: [layer, source, target].
        null: The same for random directions of the activations' own covariance: [draw, layer, target].
        kl: KL of next-token predictions from the plain model's, nats per token, with its interval: [source].
        null_kl: The same for the random directions.
        cosine: Of the concepts' directions: [source, target].
        sigma: The length of each push: the standard deviation of the activations along the direction.
        settings: What was asked.

    Example:
        >>> shift = torch.tensor([[[1.0, 0.2], [0.1, 1.0]]])  # [layer, source, target]
        >>> shift, kl = (en.metrics.Estimate(x, x, x) for x in (shift, torch.zeros(2)))
        >>> null = torch.full((10, 1, 2), 0.15)  # what ten random pushes do: [draw, layer, target]
        >>> parts = shift, null, kl, torch.zeros(10), torch.eye(2), torch.ones(2)
        >>> talk = en.concepts.CrossTalk(("a", "b"), (3,), *parts)
        >>> talk.percentile[0]  # pushing b moves the reading of a less than random pushes do
        tensor([[1., 1.],
                [0., 1.]], dtype=torch.float64)
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    shift: Estimate
    null: Float[Tensor, "draw layer target"]
    kl: Estimate
    null_kl: Float[Tensor, " draw"]
    cosine: Float[Tensor, "source target"]
    sigma: Float[Tensor, " source"]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def percentile(self) -> Float[Tensor, "layer source target"]:
        """Share of random pushes that move the target less."""
        shift = torch.as_tensor(self.shift.value)
        return (self.null.abs()[:, :, None] < shift.abs()).double().mean(0)

    def correlation(self, layer: int, *, n_permutations: int = 2000, seed: int = 0) -> Correlation:
        """How well the geometry predicts the effect: |cosine| against |shift| over ordered pairs of different concepts.

        The p-value relabels the concepts, since pairs that share a concept are not independent; with four concepts or
        fewer it cannot be small.
        """
        if len(self.names) < 3:
            raise EntangleError(f"a correlation over pairs needs 3 concepts or more, not {len(self.names)}")
        effect = torch.as_tensor(self.shift.value)[self._layer(layer)].abs().numpy()
        geometry, pairs = self.cosine.abs().numpy(), ~np.eye(len(self.names), dtype=bool)
        ranks = rankdata(geometry[pairs])
        rng = np.random.default_rng(seed)
        orders = [np.arange(len(self.names)), *(rng.permutation(len(self.names)) for _ in range(n_permutations))]
        rho = [float(np.corrcoef(ranks, rankdata(effect[np.ix_(o, o)][pairs]))[0, 1]) for o in orders]
        return Correlation(rho[0], float(np.mean(np.abs(rho) >= abs(rho[0]) - 1e-12)))

    def to_frame(self) -> pd.DataFrame:
        """One row per layer, source and target."""
        value, low, high = (torch.as_tensor(t).flatten().numpy() for t in self.shift)
        index = pd.MultiIndex.from_product([self.layers, self.names, self.names], names=["layer", "source", "target"])
        frame = pd.DataFrame({"shift": value, "low": low, "high": high}, index=index).reset_index()
        return frame.assign(
            percentile=self.percentile.flatten().numpy(),
            cosine=self.cosine.flatten().repeat(len(self.layers)).numpy(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists and numbers; None where nothing bounds a number."""
        return plain_fields(vars(self))

    def plot(self, layer: int | None = None, **style: Any) -> Any:
        """Source (rows) x target (columns) at one layer, the last by default."""
        shown = self.layers[-1] if layer is None else layer
        grid = torch.as_tensor(self.shift.value)[self._layer(shown)].numpy()
        style = {"title": f"cross-talk read at layer {shown}", "label": "shift of the target's logit, in SD"} | style
        return plots.matrix(grid, self.names, **style)

    def _layer(self, layer: int) -> int:
        if layer not in self.layers:
            raise EntangleError(f"cross-talk was read at layers {list(self.layers)}, not at {layer}")
        return self.layers.index(layer)


def _known(shift: Estimate) -> Estimate:
    """A reading that moves alike in every text, at the place of the push or below it, does so by algebra: exactly."""
    value, low, high = (torch.as_tensor(part) for part in shift)
    return Estimate(value, *(torch.where(end.isinf(), value, end) for end in (low, high)))


def cross_talk(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    directions: Directions,
    readers: Mapping[str, ProbeGrid],
    texts: Sequence[str],
    *,
    read_site: str = "resid_post",
    tokens: Literal["last", "first", "mean"] | int = "last",
    strength: float = 1.0,
    n_random: int = 10,
    max_length: int | None = None,
    prepend_bos: bool = False,
    batch_tokens: int = 8192,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> CrossTalk:
    """Steer along each concept by one standard deviation, at every token, and read every concept at every layer.

    Args:
        model: A causal language model; unchanged afterwards.
        tokenizer: Its tokenizer.
        directions: What to push along: two concepts or more, with their site and layer.
        readers: For each concept, probes over layers, fitted on other texts than these.
        texts: Held-out texts, of two tokens or more.
        read_site: Where the readers were fitted.
        tokens: Which token's activations are read, as in `collect`.
        strength: Standard deviations to push.
        n_random: Random directions for the null, drawn with the covariance of the activations at the same place.
        max_length: Keep at most this many tokens of a text.
        prepend_bos: Begin every text with the beginning-of-sequence token.
        batch_tokens: Tokens in one batch.
        n_resamples: Bootstrap resamples of the texts.
        level: Coverage of the intervals.
        seed: Seed of the random directions and the resamples.
        progress: Show a progress bar.

    Returns:
        The directed matrix, its null, the KL of the predictions, and the geometric matrix beside it.

    Raises:
        EntangleError: Readers for other concepts than the directions, directions without a place, or bad texts.

    What it cannot tell: a probe is a reader of ours, not of the model; KL is the model's own. And pushes of one
    standard deviation along directions of unequal variance are of unequal length (`sigma`).

    Example:
        >>> x, few = acts["resid_post"][:, [1]], {"n_permutations": 0, "layers": [1], "progress": False}
        >>> two = {"rude": labels, "polite": 1 - labels}  # one concept and its opposite
        >>> readers = {name: en.fit_probes(x, y, positive=1, **few) for name, y in two.items()}
        >>> v = directions.vectors[0]
        >>> pushes = en.Directions(torch.stack([v, -v]), tuple(two), site="resid_post", layer=1)
        >>> talk = en.concepts.cross_talk(model, tokenizer, pushes, readers, texts[:8], n_random=2, progress=False)
        >>> bool((talk.shift.value.sum(1).abs() < 1e-3).all())  # opposite pushes cancel in every reading
        True
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    if directions.site is None or directions.layer is None:
        raise EntangleError("cross-talk needs to know where to push; give directions their site and layer")
    if set(readers) != set(directions.names):
        raise EntangleError(f"readers must be of {list(directions.names)}, the concepts, not of {list(readers)}")
    layers, weights = _reader_weights([readers[name] for name in directions.names], Atlas(model).n_layers)
    options: dict[str, Any] = {
        "max_length": max_length,
        "prepend_bos": prepend_bos,
        "batch_tokens": batch_tokens,
        "progress": False,
    }

    def rows(site: str, at: Sequence[int]) -> Float[Tensor, "text layer ..."]:
        return collect(model, tokenizer, texts, sites=site, layers=at, tokens=tokens, **options)[site].double()

    at_place = rows(directions.site, [directions.layer])[:, 0]
    at_place = at_place if directions.head is None else at_place[:, directions.head]
    centred = at_place - at_place.mean(0)
    mixing = torch.randn(n_random, len(centred), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    random = torch.nn.functional.normalize(mixing @ centred, dim=1)
    pushes = torch.cat([directions.vectors.double().cpu(), random])
    sigmas = (centred @ pushes.T).std(0)

    plain = torch.einsum("nld,lcd->nlc", rows(read_site, layers), weights)
    spread = plain.std(0)
    shifts, kls = [], []
    for push, sigma in progress_bar(
        list(zip(pushes, sigmas, strict=True)), desc="cross-talk", unit="direction", disable=not progress
    ):
        edit = AddDirection((strength * sigma * push).float(), directions.site, directions.layer, directions.head)
        with steer(model, edit):
            steered = torch.einsum("nld,lcd->nlc", rows(read_site, layers), weights)
        shifts.append((steered - plain) / spread)
        kls.append(language_shift(model, tokenizer, texts, edit, **options))
    n = len(directions.names)
    moved = torch.stack(shifts[:n], dim=2)
    predicted = torch.from_numpy(kls[0].tokens).double()
    nats = torch.stack([torch.from_numpy(k.kl) for k in kls], dim=1)
    per_token = nats.sum(0) / predicted.sum()
    return CrossTalk(
        names=directions.names,
        layers=tuple(layers),
        shift=_known(bootstrap_mean(moved, n_resamples=n_resamples, level=level, seed=seed, method="percentile")),
        null=torch.stack([s.mean(0) for s in shifts[n:]]) if n_random else torch.empty(0, len(layers), n),
        kl=bootstrap_ratio(
            nats[:, :n], predicted, n_resamples=n_resamples, level=level, seed=seed, bounds=(0.0, float("inf"))
        ),
        null_kl=per_token[n:],
        cosine=cosines(directions).double().cpu(),
        sigma=sigmas[:n],
        settings={
            "site": directions.site,
            "layer": directions.layer,
            "head": directions.head,
            "read_site": read_site,
            "tokens": tokens,
            "strength": strength,
            "n_texts": len(texts),
            "n_random": n_random,
            "level": level,
            "seed": seed,
        },
    )


def _reader_weights(readers: Sequence[ProbeGrid], n_layers: int) -> tuple[list[int], Float[Tensor, "layer concept d"]]:
    """The layers all readers have in common and their weights there; intercepts cancel in a shift."""
    for grid in readers:
        if len(grid.shape) != 1 or len(grid.classes_) != 2:
            raise EntangleError(
                f"a reader is a grid of binary probes over layers, [layer]; got shape {grid.shape} with "
                f"{len(grid.classes_)} classes"
            )
    for grid in readers:
        if grid.layers is None and grid.shape[0] != n_layers:
            raise EntangleError(
                f"a reader of {grid.shape[0]} layers does not know which of the model's {n_layers} they are: fit it "
                "with layers=acts.layers(site)"
            )
    own = [list(range(n_layers) if grid.layers is None else grid.layers) for grid in readers]
    layers = [layer for layer in own[0] if all(layer in other for other in own)]
    if not layers:
        raise EntangleError(f"the readers have no layer in common: {own}")
    chosen = [
        grid.coef_.double().cpu()[[mine.index(layer) for layer in layers]]
        for grid, mine in zip(readers, own, strict=True)
    ]
    return layers, torch.stack(chosen, dim=1)
