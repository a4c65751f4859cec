"""Concept by concept and layer by layer: what steering it out will cost, said before anyone steers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from entangle.activations import collect
from entangle.errors import EntangleError
from entangle.forecast.contrast import Contrast
from entangle.forecast.limit import Limit, limit_of
from entangle.forecast.metric import ShiftMetric
from entangle.forecast.span import Key
from entangle.interventions import ITI, AddDirection
from entangle.models import Atlas
from entangle.models.loading.held import own_tokenizer, underlying
from entangle.models.rows import context_length

UNIT = 0.1
"""The effect whose price is told: nats per token between the two kinds of text."""
FEWEST_TEXTS = 32
"""Texts of each class: half choose directions, half tell what they buy."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """What `foretell` found.

    Attributes:
        frame: One row per concept, method and place; see `foretell`.
        settings: How it was made.
        metric: The metric it rests on, without readings of departures from the quadratic, so that a price asked of it
            never says where it ends; not saved with it.
        contrasts: The contrast of each concept, on the texts that chose nothing; not saved with it.

    Example:
        >>> data = {"rudeness": (texts, labels)}
        >>> forecast = en.forecast.foretell(model, tokenizer, data, clean[:8], layers=[1], samples=1, progress=False)
        >>> int(forecast.cheapest("rudeness", method="CAA")["layer"])
        1
        >>> len(forecast.answer())  # a sentence per concept
        1
    """

    frame: pd.DataFrame
    settings: Mapping[str, Any] = field(default_factory=dict)
    metric: ShiftMetric | None = None
    contrasts: Mapping[str, Contrast] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The table and how it was made, ready for JSON."""
        rows = self.frame.astype(object).where(self.frame.notna(), None).to_dict("records")
        return {"rows": rows, "settings": dict(self.settings)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """What `to_dict` gave."""
        frame = pd.DataFrame(saved["rows"])
        numbers = frame.columns.difference(["concept", "method", "site", "layer"])
        return cls(frame.astype(dict.fromkeys(numbers, float)), saved["settings"])

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.frame.copy()

    def cheapest(self, concept: str, method: str = "natural") -> dict[str, Any]:
        """The row of a concept and method at which the same effect costs least.

        Raises:
            EntangleError: No such concept or method was forecast.
        """
        rows = self.frame[(self.frame["concept"] == concept) & (self.frame["method"] == method)]
        if rows.empty:
            known = ", ".join(self.frame["concept"].unique()), ", ".join(self.frame["method"].unique())
            raise EntangleError(f"no forecast of {concept!r} by {method!r}; it has {known[0]} by {known[1]}")
        cheapest = rows.sort_values("price", na_position="last").iloc[0]
        return {str(name): value for name, value in cheapest.items()}

    def answer(self) -> list[str]:
        """In words: for each concept where steering is cheapest, its price, and how near the usual methods come.

        A limit whose interval holds zero is said to be none that can be told. Prices are for `UNIT` nats per token of
        contrast; they grow with its square.
        """
        return [self._sentence(str(concept)) for concept in self.frame["concept"].unique()]

    def _sentence(self, concept: str) -> str:
        best = self.cheapest(concept)
        at = f"{best['site']} of layer {best['layer']}"
        if not best["limit_low"] > 0:
            return (
                f"{concept}: no shift was found that changes it: the most that one buys per root nat is "
                f"{best['limit']:.2f} [{best['limit_low']:.2f}, {best['limit_high']:.2f}], at {at}."
            )
        others = []
        for method in ("CAA", "ITI"):
            if method in set(self.frame.loc[self.frame["concept"] == concept, "method"]):
                row = self.cheapest(concept, method)
                where = f" at layer {row['layer']}" if row["layer"] >= 0 else ""
                others.append(
                    f"{method}{where} buys {row['efficiency']:.0%} of that for the same price"
                    if row["efficiency"] > 0
                    else f"{method}{where} buys none of it"
                )
        return (
            f"{concept}: a constant shift is cheapest at {at}, where {UNIT:g} nats of contrast per token cost "
            f"{best['price']:.3f} nats of language and a root nat buys at most {best['limit']:.2f} "
            f"[{best['limit_low']:.2f}, {best['limit_high']:.2f}]; {'; '.join(others)}."
        )


def foretell(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    concepts: Mapping[str, tuple[Sequence[str], Sequence[int]]],
    clean: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    samples: int = 4,
    top_k: int | None = None,
    n_texts: int = 400,
    max_length: int = 128,
    batch_tokens: int = 2048,
    seed: int = 0,
    progress: bool = True,
) -> Forecast:
    """The price of steering each concept out, at every layer, from backward passes alone: nothing is generated.

    Half of a concept's texts choose the directions of CAA and ITI; the other half tell the contrast, what those
    directions buy of it, and its limit. The metric comes from the clean text.

    Args:
        model: A causal language model that can be differentiated.
        tokenizer: Its tokenizer.
        concepts: Name -> texts and their labels; label 1 is what is steered away from.
        clean: Clean documents.
        layers: Layers of the residual stream; all by default.
        samples: As for `ShiftMetric.fit`.
        top_k: Heads of ITI; by default a quarter of them, at most 30.
        n_texts: Texts of each class, and clean documents, to use at most, drawn with the seed.
        max_length: Keep at most this many tokens of a text, and no more than the context holds.
        batch_tokens: Tokens in one batch, padding included.
        seed: Seed of every draw.
        progress: Show progress bars.

    Returns:
        The forecast. Its table has a row per concept, method ("natural", "CAA" at each layer of `resid_post`; "ITI" at
        its heads, layer -1) with

        - `efficiency`: what the method buys of the contrast over the most that a shift of its places and price could;
        - `price`: nats per token of language for `UNIT` nats per token of contrast, NaN where it buys none;
        - `limit`, `limit_low`, `limit_high`, `reached`: see `ShiftMetric.limit`.

    Raises:
        EntangleError: No concept or clean text, too few texts of a class, or anything that the metric refuses.

    Example:
        >>> data = {"rudeness": (texts, labels)}
        >>> forecast = en.forecast.foretell(model, tokenizer, data, clean[:8], layers=[1], samples=1, progress=False)
        >>> forecast.to_frame()[["method", "site", "layer"]].to_numpy().tolist()
        [['natural', 'resid_post', 1], ['CAA', 'resid_post', 1], ['ITI', 'z', -1]]
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    if not concepts:
        raise EntangleError("a forecast needs a concept: give name -> (texts, labels); got none")
    atlas = Atlas(model)
    max_length = min(max_length, context_length(model, tokenizer))
    has_heads = bool(atlas.layers("z"))
    options: dict[str, Any] = {"max_length": max_length, "batch_tokens": batch_tokens, "progress": progress}
    halves = {name: _halves(name, *labelled, n_texts, seed) for name, labelled in concepts.items()}
    clean = [clean[i] for i in sorted(np.random.default_rng(seed).permutation(len(clean))[:n_texts])]
    # One pass over a text tells both the residual stream and the heads.
    sites = ["resid_post", "z"] if has_heads else ["resid_post"]
    places = [("resid_post", layer) for layer in (atlas.layers("resid_post") if layers is None else layers)]
    # Limits ask nothing of departures from the quadratic, which would take four readings per place.
    fitting: dict[str, Any] = {"samples": samples, "positions": 1, "directions": 0, "seed": seed}
    every = ShiftMetric.fit(model, tokenizer, clean, sites=sites, **fitting, **options)
    metric, heads = every.only(places), every.at("z") if has_heads else None
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in halves}
    bought, read = {}, {}
    for name, (choosing, telling) in halves.items():
        toward, away = ([text for text, label in telling if label == side] for side in (0, 1))
        bought[name] = Contrast.fit(model, tokenizer, toward, away, sites=sites, **options)
        acts = collect(
            model,
            tokenizer,
            [text for text, _ in choosing],
            sites=sites,
            tokens="last",
            max_length=max_length,
            batch_tokens=batch_tokens,
            progress=progress,
        )
        read[name] = acts, torch.tensor([label for _, label in choosing])
    contrasts = {name: contrast.at(places) for name, contrast in bought.items()}
    for key in places:
        here = metric.only([key])  # which keeps what it makes of itself for all concepts, and is let go
        for name, (acts, labels) in read.items():
            x = acts["resid_post"][:, acts.layers("resid_post").index(key[1])]
            edit = AddDirection.mean_difference(x, labels, *key)
            limit = limit_of(here, contrasts[name], seed=seed)
            rows[name].append(_row(name, "natural", key, 1.0, limit))
            rows[name].append(_row(name, "CAA", key, _share(here.gain(edit, contrasts[name]), limit), limit))
    for name, (acts, labels) in read.items():
        if heads is None:
            break
        n_heads = int(np.prod(acts["z"].shape[1:3]))
        iti = ITI.fit(acts, labels, top_k=top_k or max(1, min(30, n_heads // 4)), seed=seed)
        keys = [key for key in heads.keys if key[1] in {layer for layer, _ in iti.heads}]
        limit = limit_of(heads.only(keys), bought[name], seed=seed)
        rows[name].append(_row(name, "ITI", ("z", -1), _share(heads.gain(iti, bought[name]), limit), limit))
    settings = {
        "unit": UNIT,
        "samples": samples,
        "max_length": max_length,
        "seed": seed,
        "clean": len(clean),
    }
    return Forecast(pd.DataFrame([row for own in rows.values() for row in own]), settings, metric, contrasts)


def _halves(
    name: str, texts: Sequence[str], labels: Sequence[int], n_texts: int, seed: int
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Each class in two halves: one chooses, one tells."""
    codes = np.asarray(labels)
    if len(codes) != len(texts) or not set(codes.tolist()) <= {0, 1}:
        raise EntangleError(
            f"{name} needs a label of 0 or 1 for each of its {len(texts)} texts; got {len(codes)} labels"
        )
    rng = np.random.default_rng(seed)
    choosing, telling = [], []
    for side in (0, 1):
        where = rng.permutation(np.flatnonzero(codes == side))[:n_texts]
        if len(where) < FEWEST_TEXTS:
            raise EntangleError(
                f"a forecast needs {FEWEST_TEXTS} texts of each class; {name} has {len(where)} of class {side}"
            )
        choosing += [(texts[i], side) for i in where[: len(where) // 2]]
        telling += [(texts[i], side) for i in where[len(where) // 2 :]]
    return choosing, telling


def _share(gain: float, limit: Limit) -> float:
    """What an edit buys over the most that could be bought, both per root nat."""
    return gain / limit.value if limit.value > 0 else float("nan")


def _row(concept: str, method: str, key: Key, efficiency: float, limit: Limit) -> dict[str, Any]:
    gain = efficiency * limit.value  # contrast per square root of twice the price
    return {
        "concept": concept,
        "method": method,
        "site": key[0],
        "layer": key[1],
        "price": (UNIT / gain) ** 2 / 2 if gain > 0 else float("nan"),
        "efficiency": efficiency,
        "limit": limit.value,
        "limit_low": limit.low,
        "limit_high": limit.high,
        "reached": limit.reached,
    }
