"""Vectors learned by gradient through the model: at most so many nats, and no further than other texts agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from entangle.errors import EntangleError
from entangle.interventions import AddDirection, Compose, Edit
from entangle.learning.bench import Bench
from entangle.learning.descent import EVERY, Run, descend, rested
from entangle.learning.objectives import OBJECTIVES
from entangle.learning.sides import Sides
from entangle.models import Atlas, Place, evaluating, fingerprint, own_tokenizer, underlying

RATE = 0.05
"""Step of Adam, in units of a typical coordinate's spread."""


@dataclass(frozen=True, eq=False)
class Learned:
    """What `learn` found.

    Attributes:
        method: Its name.
        edit: What was learned, as the edit it is: at alpha = 1 it costs `kl`, the budget where it can be reached.
        converged: Whether the loss on the selection texts had stopped falling.
        steps: How many steps were taken.
        kl: KL(plain || steered) on neutral texts that were not trained on, in nats per token.
        gain: What the texts to steer toward gain on the others, on the selection texts, in nats per token.
        history: For each look at the selection texts: step, loss, kl before it was brought to the budget, and the
            budget's weight.

    Example:
        >>> polite, rude = texts[0::2], texts[1::2]
        >>> few = {"steps": 10, "clean": clean[:20], "must_converge": False, "progress": False}
        >>> learned = en.learn(model, tokenizer, polite, rude, layers=1, **few)
        >>> learned.converged, learned.gain > 0, round(learned.kl, 1)
        (False, True, 0.1)
        >>> learned.edit.save_pretrained("polite")
    """

    method: str
    edit: Edit
    converged: bool
    steps: int
    kl: float
    gain: float
    history: list[dict[str, float]] = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """The history, one row for each look."""
        return pd.DataFrame(self.history)

    def __repr__(self) -> str:
        state = "converged" if self.converged else "did not converge"
        return f"Learned({self.method}, {state} in {self.steps} steps: {self.gain:.3g} nats gained for {self.kl:.3g})"


def learn(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    toward: Sequence[str],
    away: Sequence[str],
    *,
    method: str = "bipo",
    layers: int | Sequence[int],
    site: str = "resid_post",
    kl: float = 0.1,
    clean: Sequence[str] | None = None,
    prompts: tuple[Sequence[str], Sequence[str]] | None = None,
    selection: tuple[Sequence[str], Sequence[str]] | None = None,
    groups: Sequence[Any] | None = None,
    steps: int = 300,
    batch: int = 8,
    rate: float = RATE,
    max_length: int = 64,
    must_converge: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Learned:
    """Learn one vector for each layer, added to every token, by gradient through the model.

    Three objectives, each with its own regulariser:

    - `"ssv"`, the supervised steering vector of AxBench (Wu et al. 2025, arXiv 2501.17148): the likelihood of the texts
      to steer toward; weight decay.
    - `"bipo"` (Cao et al. 2024, arXiv 2406.00045): of each pair +v is to prefer the one text and -v the other, beyond
      what the plain model does, by a logistic loss on the sums of log-likelihoods; weight decay.
    - `"reft-r1"` (Wu et al. 2025): a unit direction w, added as much as the mean of a text's eight largest relu(x . w);
      the likelihood of the texts to steer toward, and an L1 penalty on all other latents. As the paper steers, what is
      kept is a constant: w at its mean level.

    A budget holds for all: KL(plain || steered) on neutral texts is to be `kl` nats per token at most, by a multiplier
    that grows while it is exceeded. Every ten steps the vector is brought to the budget and judged on selection texts
    by the same objective; the best is kept, and when four looks bring nothing it has converged.

    Args:
        model: A causal language model that can be differentiated; it is not changed.
        tokenizer: Its tokenizer.
        toward: Texts of the side to steer toward.
        away: Texts of the other side; pair by pair for `"bipo"`.
        method: One of the above.
        layers: The layer, or several, each with a vector of its own; from the end where negative.
        site: Where they are added.
        kl: The budget.
        clean: Neutral texts to keep it on, ten or more; half of them to learn and half to judge by. The texts of both
            sides by default.
        prompts: What comes before each text of either side, where texts are continuations: those alone count.
        selection: Texts of either side to stop by, without prompts; a fifth of the pairs by default.
        groups: One for each pair; pairs of a group are not divided between learning and stopping.
        steps: Steps at most.
        batch: Pairs in one step.
        rate: Step length of Adam, in spreads of a typical coordinate.
        max_length: Keep at most this many tokens of a text.
        must_converge: Whether to raise where it did not; else the result says so.
        seed: Seed of splits, batches and beginnings.
        progress: Show a progress bar.

    Returns:
        The result; `.edit` is an `AddDirection`, or a `Compose` of one for each layer.

    Raises:
        EntangleError: Too few texts, sides that are not pairs, a method or layer that is not there, a model without
            gradients, a vector that did not converge or does nothing for the selection texts.

    Example:
        >>> polite, rude = texts[0::2], texts[1::2]
        >>> few = {"steps": 10, "clean": clean[:20], "must_converge": False, "progress": False}
        >>> learned = en.learn(model, tokenizer, polite, rude, method="ssv", layers=1, **few)
        >>> learned.edit.layer, learned.edit.vector.shape
        (1, torch.Size([32]))
    """
    if method not in OBJECTIVES:
        raise EntangleError(f"method must be one of {', '.join(map(repr, OBJECTIVES))}, got {method!r}")
    if not (math.isfinite(kl) and kl > 0) or steps < EVERY or batch < 1:
        raise EntangleError(
            f"learning needs a positive budget, {EVERY} steps and one pair a step or more; got kl={kl}, steps={steps}, "
            f"batch={batch}"
        )
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    places = places_of(model, site, layers)
    generator = torch.Generator().manual_seed(seed)
    texts = Sides.of(model, tokenizer, toward, away, prompts, selection, groups, clean, max_length, generator)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        bench = Bench(model, tokenizer, places, kl, texts.priced)
        run = Run(bench, OBJECTIVES[method], texts.learned, texts.neutral, batch, rate, seed)
        best, history, converged = descend(run, bench.at_budget, texts.judged, steps, method, progress)
        price, gain = bench.price(best), bench.gain(best, texts.judged)
    rested(converged or not must_converge, best, history, method)
    mark = fingerprint(model)
    edits = [
        AddDirection(vector, site, place.layer, fingerprint=mark) for vector, place in zip(best, places, strict=True)
    ]
    edit = together(edits, mark)
    return Learned(method, edit, converged, int(history[-1]["step"]), price, gain, history)


def together(edits: Sequence[Edit], mark: Mapping[str, Any]) -> Edit:
    """What was learned at one layer as the edit it is; at several, all of them as one edit of this model."""
    return edits[0] if len(edits) == 1 else Compose(edits, fingerprint=mark)


def places_of(model: Any, site: str, layers: int | Sequence[int]) -> list[Place]:
    """The places to learn at.

    Raises:
        EntangleError: None, or one where what is learned would be two things.
    """
    atlas, numbers = Atlas(model), [layers] if isinstance(layers, int | np.integer) else list(layers)
    if not numbers:
        raise EntangleError("learning needs a layer: pass layers=2, or several")
    places = [atlas.place(site, atlas.counted(number)) for number in numbers]
    if site == "resid_mid" and any(place.bypassed for place in places):
        raise EntangleError(
            "at resid_mid the stream goes round the MLP, so a vector learned there is two: learn at attn_out or "
            "resid_post"
        )
    return places
