"""Transport of each coordinate at several layers, learned end to end (LinEAS: Rodriguez et al. 2025, arXiv
2503.10679)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from entangle.errors import EntangleError
from entangle.interventions import LinearTransport
from entangle.learning.bench import Bench
from entangle.learning.descent import EVERY, descend, rested
from entangle.learning.fit import Learned, places_of, together
from entangle.learning.sides import Sides
from entangle.learning.texts import Row, parts
from entangle.models import Place, evaluating, fingerprint, hooked, own_tokenizer, states_and_head, underlying


def lineas(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    toward: Sequence[str],
    away: Sequence[str],
    *,
    layers: int | Sequence[int],
    site: str = "resid_post",
    clean: Sequence[str] | None = None,
    selection: tuple[Sequence[str], Sequence[str]] | None = None,
    groups: Sequence[Any] | None = None,
    sparsity: float = 0.0,
    steps: int = 300,
    batch: int = 32,
    rate: float = 0.02,
    max_length: int = 64,
    must_converge: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Learned:
    """Learn a scale and a shift of each coordinate at all layers together, until one side looks like the other.

    The loss is the squared Wasserstein distance, coordinate by coordinate, between the texts to steer away from as they
    are after all the maps and the texts to steer toward as the plain model has them; a text is the mean of its tokens.
    Where Linear-AcT fits each layer by itself, here a layer sees what the earlier maps made. Sparse group lasso takes
    coordinates, and whole layers, out of the edit. No budget is set: `alpha` is the fraction of the way.

    Args:
        model: A causal language model that can be differentiated; it is not changed.
        tokenizer: Its tokenizer.
        toward: Texts to look like.
        away: Texts to carry there, as many.
        layers: The layers that get a map.
        site: Where.
        clean: Neutral texts on which the price is read, ten or more; those of both sides by default.
        selection: As for `learn`.
        groups: As for `learn`.
        sparsity: Threshold of the lasso, as a share of a step of Adam: 0 keeps all, 1 leaves nothing.
        steps: Steps at most.
        batch: Texts of either side in one step: sorted numbers of few texts say little of a distribution.
        rate: Step length of Adam, in spreads of each coordinate.
        max_length: Keep at most this many tokens of a text.
        must_converge: As for `learn`.
        seed: Seed of splits and batches.
        progress: Show a progress bar.

    Returns:
        The result; `.edit` is a `LinearTransport`, or a `Compose` of one for each layer, which are affine.

    Raises:
        EntangleError: As for `learn`.

    Example:
        >>> polite, rude = texts[0::2], texts[1::2]
        >>> few = {"steps": 10, "clean": clean[:20], "must_converge": False, "progress": False}
        >>> learned = en.learning.lineas(model, tokenizer, polite, rude, layers=[0, 1], **few)
        >>> len(learned.edit.affine()), learned.history[-1]["loss"] < learned.history[0]["loss"]
        (2, True)
    """
    if steps < EVERY or batch < 2 or not sparsity >= 0:
        raise EntangleError(
            f"LinEAS needs {EVERY} steps, two texts a step and a sparsity of 0 or more; got steps={steps}, "
            f"batch={batch}, sparsity={sparsity}"
        )
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    places = places_of(model, site, layers)
    generator = torch.Generator().manual_seed(seed)
    texts = Sides.of(model, tokenizer, toward, away, None, selection, groups, clean, max_length, generator)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        bench = Bench(model, tokenizer, places, 1.0, texts.priced)
        run = _Run(bench, texts.learned, batch, rate, sparsity, generator)

        def settle(vectors: Sequence[Tensor]) -> tuple[list[Tensor], float]:
            return [*vectors], bench.price(vectors)

        best, history, converged = descend(run, settle, texts.judged, steps, "lineas", progress)
        price, gain = bench.price(best), bench.gain(best, texts.judged)
    rested(converged or not must_converge, best, history, "lineas")
    mark = fingerprint(model)
    edits = [
        LinearTransport(mean, 1 + map_[0], map_[1], site=site, layer=place.layer, fingerprint=mark)
        for mean, map_, place in zip(bench.means, best, places, strict=True)
    ]
    edit = together(edits, mark)
    return Learned("lineas", edit, converged, int(history[-1]["step"]), price, gain, history)


class _Run:
    """One descent; each layer's map is `[2 d]`, the scale less 1 and the shift in spreads."""

    def __init__(
        self,
        bench: Bench,
        sides: Sequence[Sequence[Row]],
        batch: int,
        rate: float,
        sparsity: float,
        generator: torch.Generator,
    ) -> None:
        self.bench, self.size, self.rate, self.sparsity, self.weight = bench, batch, rate, sparsity, 0.0
        self._generator = generator
        self.maps = [torch.zeros(2, place.size, requires_grad=True) for place in bench.places]
        self.optimiser = torch.optim.Adam(self.maps, lr=rate)
        with torch.no_grad():
            self.targets = self.pooled(sides[0], [])
        self.away = sides[1]

    def step(self) -> None:
        """Down the distance of some texts, and then nearer to no edit by the lasso."""
        some, others = (
            torch.randperm(n, generator=self._generator)[: self.size] for n in (len(self.away), len(self.targets[0]))
        )
        n = min(len(some), len(others))
        moved = self.pooled([self.away[i] for i in some[:n].tolist()], self.in_units(self.maps))
        loss = self._distance(moved, [each[others[:n]] for each in self.targets])
        gradients = torch.autograd.grad(loss, self.maps)
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise EntangleError("the gradient is not finite on these texts: load the model in a wider dtype")
        for map_, gradient in zip(self.maps, gradients, strict=True):
            map_.grad = gradient
        self.optimiser.step()
        if self.sparsity:
            with torch.no_grad():
                for map_ in self.maps:
                    pull = self.rate * self.sparsity
                    map_.copy_(map_.sign() * (map_.abs() - pull).clamp_min(0))
                    length = map_.norm().clamp_min(1e-12)
                    map_.mul_((1 - pull * map_.shape[1] ** 0.5 / length).clamp_min(0))

    def vectors(self) -> list[Tensor]:
        """The maps, their shifts in the activations' units."""
        return [each.detach().clone() for each in self.in_units(self.maps)]

    def judge(self, vectors: Sequence[Tensor], sides: Sequence[Sequence[Row]]) -> float:
        """The distance on other texts."""
        with torch.no_grad():
            return float(self._distance(self.pooled(sides[1], vectors), self.pooled(sides[0], [])))

    def in_units(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Shifts in spreads as shifts of activations."""
        return [
            torch.stack([map_[0], map_[1] * spread.to(map_)])
            for map_, spread in zip(maps, self.bench.spreads, strict=True)
        ]

    def pooled(self, rows: Sequence[Row], vectors: Sequence[Tensor]) -> list[Float[Tensor, "row d"]]:
        """The mean over each text's tokens at every place, after the maps of this place and of those before."""
        found: list[list[Tensor]] = [[] for _ in self.bench.places]
        for part in parts(self.bench.model, rows):
            batch = self.bench.batch([rows[i] for i in part])
            share = (batch.real / batch.real.sum(1, keepdim=True))[..., None]

            def look(number: int, share: Tensor = share) -> Callable[[Tensor], None]:
                return lambda x: found[number].append((x.float() * share.to(x.device)).sum(1))

            looks: list[tuple[Place, Callable[[Tensor], Tensor | None]]] = [
                (place, look(number)) for number, place in enumerate(self.bench.places)
            ]
            with hooked([*self.bench.moving(vectors), *looks]):
                states_and_head(self.bench.model, batch.inputs)
        return [torch.cat(each) for each in found]

    def _distance(self, moved: Sequence[Tensor], wanted: Sequence[Tensor]) -> Float[Tensor, ""]:
        """Mean squared difference of sorted numbers, in spreads; coordinates that never change do not count."""
        total = torch.zeros(())
        for a, b, spread in zip(moved, wanted, self.bench.spreads, strict=True):
            live = spread > 0
            gap = (a.sort(0).values - b.sort(0).values)[:, live] / spread[live]
            total = total + gap.square().mean() / len(self.bench.places)
        return total
