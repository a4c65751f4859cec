"""The data-share study: does a chain that is rare in training become more entangled? (Li et al. 2025, Figure 3.)"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.errors import EntangleError
from entangle.toy.chains.definitions import (
    DIRECTIONS,
    PARTNERS,
    Classes,
    by_chain,
    directions,
    pool_tokens,
    sort_into_classes,
)
from entangle.toy.chains.ensemble import Batch, StackedGPT2
from entangle.toy.chains.markov import MarkovMixture, walk
from entangle.toy.chains.table import DataShareStudy
from entangle.toy.files import check_place

SHARES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0)
BUDGETS = (0, 100, 300, 1000, 2000, 4000)  # 0: untrained
Hold = Literal["clean", "total"]


def data_share_study(
    *,
    shares: Sequence[float] = SHARES,
    seeds: int | Sequence[int] = 10,
    selection_seeds: Sequence[int] = (),
    steps: int = 4000,
    budgets: Sequence[int] = BUDGETS,
    d_model: int = 4,
    n_layers: int = 4,
    n_heads: int = 2,
    positions: bool = False,
    n_chains: int = 3,
    n_states: int = 4,
    length: int = 16,
    noise: float = 0.0,
    batch_size: int = 64,
    hold: Hold = "clean",
    lr: float = 3e-3,
    compile: bool | None = None,
    progress: bool = True,
    out: Path | None = None,
) -> DataShareStudy:
    """Train a transformer for every share x seed, all at once, and measure entanglement by every definition.

    A seed fixes the chains, which of them is the minority, and the initial weights; only the minority's share of the
    data differs between its models, so comparisons across shares are paired.

    Args:
        shares: The minority's data as a fraction of each other chain's; 1 is balanced.
        seeds: On which results are reported; a number n is 0 ... n - 1.
        selection_seeds: Further seeds, on which the definition with the largest effect is chosen and never reported.
        steps: Of training.
        budgets: Steps at which to measure, 0 for untrained models; those beyond `steps` are left out, `steps` is added.
        d_model: Width of the residual stream.
        n_layers: Transformer blocks.
        n_heads: Attention heads.
        positions: Learn position embeddings.
        n_chains: Cycles in the mixture.
        n_states: States that they share.
        length: Tokens per sequence, a multiple of n_states.
        noise: Probability that a step of a chain is random.
        batch_size: Sequences per training step at share 0.
        hold: "clean": the other chains' data stay constant and the minority's are added, as in the paper; "total": the
            batch stays constant and the minority's data replace theirs.
        lr: Learning rate of Adam.
        compile: See `StackedGPT2.fit`.
        progress: Show a progress bar.
        out: Write the table, figures and JSON to this directory.

    Returns:
        The study; `.to_frame()` has a row per model and definition, `.table()` one per definition.

    Raises:
        EntangleError: On overlapping seeds, shares that are no fractions, or sizes that do not fit together.

    Example:
        >>> few = {"shares": [0.1, 1.0], "seeds": 2, "steps": 2, "budgets": [], "n_layers": 1, "length": 4}
        >>> study = en.toy.data_share_study(**few, compile=False, progress=False)
        >>> study.to_frame()[["share", "seed"]].drop_duplicates().to_numpy().tolist()  # four models, trained at once
        [[0.1, 0.0], [0.1, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    reported = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    every = [*reported, *selection_seeds]
    if len(set(every)) < len(every) or len(reported) < 2:
        raise EntangleError(
            f"seeds to report ({reported}) and to select on ({list(selection_seeds)}) must be different,"
            " and at least 2 to report"
        )
    if not shares or n_chains < 2:
        raise EntangleError(f"a minority needs shares and at least 2 chains, not {list(shares)} and {n_chains}")
    if length % n_states:
        raise EntangleError(
            f"length must be a multiple of n_states, so that classes balance; {length} is not of {n_states}"
        )
    if out is not None:
        check_place(out, "data_share")
    by_seed = {seed: MarkovMixture(n_chains, n_states, length=length, noise=noise, seed=seed) for seed in every}
    runs = [(share, seed) for share in shares for seed in every]
    mixtures = [by_seed[seed] for _, seed in runs]
    model = StackedGPT2(
        [seed for _, seed in runs],
        n_states,
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_positions=length if positions else 0,
    )
    probability = torch.stack(
        [mixture.chain_probabilities(share) for mixture, (share, _) in zip(mixtures, runs, strict=True)]
    )
    extra = [1 + share / (n_chains - 1) if hold == "clean" else 1.0 for share, _ in runs]
    rows = np.round(batch_size * np.array(extra)).astype(int)
    generator = torch.Generator().manual_seed(sum(every))
    batches = (
        _noisy(mixtures, probability, rows, batch_size, generator)
        if noise
        else _exact(mixtures, probability, rows, batch_size, every)
    )

    measured: list[pd.DataFrame] = []
    identity = pd.DataFrame(runs, columns=["share", "seed"])
    identity["role"] = ["select" if seed in set(selection_seeds) else "report" for _, seed in runs]

    def measure(step: int) -> None:
        measured.append(_measure(model, mixtures, generator, identity.assign(step=step)))

    started = time.perf_counter()
    snapshots = sorted({budget for budget in budgets if budget < steps} | {steps})
    compiled = model.fit(
        batches, steps=steps, lr=lr, snapshots=snapshots, on_snapshot=measure, compile=compile, progress=progress
    )
    settings = {
        "shares": list(shares),
        "seeds": reported,
        "selection_seeds": list(selection_seeds),
        "steps": steps,
        "architecture": {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "positions": positions},
        "chains": {"n_chains": n_chains, "n_states": n_states, "length": length, "noise": noise},
        "training": {"batch_size": batch_size, "hold": hold, "lr": lr, "compiled": compiled},
        "seconds": round(time.perf_counter() - started, 1),
    }
    study = DataShareStudy(pd.concat(measured, ignore_index=True), settings)
    if out is not None:
        study.save(out)
    return study


def _exact(
    mixtures: Sequence[MarkovMixture],
    probability: Float[Tensor, "model chain"],
    rows: np.ndarray,
    batch_size: int,
    seeds: Sequence[int],
) -> Callable[[int], Batch]:
    """Without noise there is one sequence per chain and start: a batch is how often each was drawn."""
    n_states = mixtures[0].n_states
    tokens = torch.stack([mixture.sequences.flatten(0, 1) for mixture in mixtures])
    p = probability.double().repeat_interleave(n_states, dim=1).numpy() / n_states
    rng = np.random.default_rng(list(seeds))

    def batch(step: int) -> Batch:
        counts = rng.multinomial(rows, p)
        return tokens, torch.from_numpy(counts).float() / batch_size

    return batch


def _noisy(
    mixtures: Sequence[MarkovMixture],
    probability: Float[Tensor, "model chain"],
    rows: np.ndarray,
    batch_size: int,
    generator: torch.Generator,
) -> Callable[[int], Batch]:
    """With noise nearly every sequence is new: draw them."""
    next_state = torch.stack([mixture.next_state for mixture in mixtures])
    weight = (torch.arange(rows.max()) < torch.from_numpy(rows)[:, None]).float() / batch_size

    def batch(step: int) -> Batch:
        chains = torch.multinomial(probability, int(rows.max()), replacement=True, generator=generator)
        return walk(next_state, chains, mixtures[0].length, mixtures[0].noise, generator), weight

    return batch


def _measure(
    model: StackedGPT2, mixtures: Sequence[MarkovMixture], generator: torch.Generator, identity: pd.DataFrame
) -> pd.DataFrame:
    """Entanglement by every definition, and the minority's loss, of every model as it is now."""
    sequences = torch.stack([mixture.sequences for mixture in mixtures])
    next_state = torch.stack([mixture.next_state for mixture in mixtures])
    minority = torch.tensor([mixture.minority for mixture in mixtures])
    determined = torch.stack([mixture.determined for mixture in mixtures])
    losses = model.next_token_losses(sequences.flatten(1, 2)).view(determined.shape)
    per_chain = torch.where(determined, losses, torch.nan).nanmean((2, 3))
    is_minority = torch.arange(per_chain.shape[1]) == minority[:, None]
    identity = identity.assign(
        minority_loss=per_chain[is_minority].numpy(),
        control_loss=torch.where(is_minority, torch.nan, per_chain).nanmean(1).numpy(),
    )
    residuals = model.residuals(sequences.flatten(1, 2))
    residuals = residuals.view(*residuals.shape[:2], *sequences.shape[1:], -1)
    frames = []
    for classes in sort_into_classes(residuals, sequences, next_state):
        for direction in DIRECTIONS:
            vectors = directions(classes, direction, generator=generator)
            sets = [(classes, vectors)]
            if classes.feature == "chain" and classes.scope == "per token":
                sets.append(pool_tokens(classes, vectors))
            for each, those in sets:
                frames += _rows(each, those, minority, identity.assign(direction=direction))
    return pd.concat(frames, ignore_index=True)


def _rows(
    classes: Classes,
    vectors: Float[Tensor, "model layer token class d"],
    minority: Int[Tensor, " model"],
    identity: pd.DataFrame,
) -> list[pd.DataFrame]:
    frames = []
    for partners in PARTNERS:
        values = by_chain(classes, vectors, minority, partners)
        if values is None:
            continue
        frames += [
            identity.assign(
                feature=classes.feature,
                scope=classes.scope,
                site=f"blocks.{layer}.hook_resid_post",
                partners=partners,
                minority=values[0][:, layer].double().numpy(),
                control=values[1][:, layer].double().numpy(),
            )
            for layer in range(vectors.shape[1])
        ]
    return frames
