"""Planted ground truth: activations whose concepts, their entanglement and their correlations are known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.concepts.report import entanglement_report
from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.metrics import entanglement
from entangle.probes import fit_probes
from entangle.probes.estimators import make_probe
from entangle.progress import progress_bar

Setting = Literal["n_examples", "label_noise", "correlation", "strength", "cosine"]


@dataclass(frozen=True)
class PlantedSample:
    """Activations and the labels that go with them.

    Attributes:
        activations: [example, d], or [example, *grid, d] from `sample_grid`.
        labels: 0/1 labels of every concept, label noise included.

    Example:
        >>> sample = en.toy.PlantedConcepts(d_model=16).sample_grid(50, grid=(2, 4), cells=[(1, 3)])
        >>> sample.activations.shape  # [example, layer, head, d]
        torch.Size([50, 2, 4, 16])
    """

    activations: Float[Tensor, "example *grid d"]
    labels: dict[str, Int[Tensor, " example"]]


class PlantedConcepts:
    """Binary concepts y, each along a known direction: `x = strength * sum_k (y_k - 1/2) v_k + noise`, noise N(0, I).

    Args:
        cosine: Between every two directions, or the whole [concept, concept] matrix of cosines.
        n_concepts: How many, where `cosine` is one number.
        d_model: dimensions.
        strength: Distance between a concept's two class means, in standard deviations of the noise.
        correlation: Phi coefficient between any two concepts' true labels, in [0, 1).
        label_noise: Probability that a given label is flipped, in [0, 1/2).
        seed: Of the orientation of the directions.

    Attributes:
        directions: The planted `Directions`.
        entanglement: [concept], what probes and metrics should recover.

    Raises:
        EntangleError: Where no directions have these cosines, or a parameter is out of range.

    Example:
        >>> planted = en.toy.PlantedConcepts(cosine=0.5, n_concepts=3, d_model=16)
        >>> planted.entanglement
        tensor([0.5000, 0.5000, 0.5000])
        >>> sample = planted.sample(100)
        >>> sample.activations.shape, list(sample.labels)
        (torch.Size([100, 16]), ['concept 0', 'concept 1', 'concept 2'])
    """

    def __init__(
        self,
        cosine: float | Float[Tensor, "concept concept"] = 0.5,
        *,
        n_concepts: int = 2,
        d_model: int = 64,
        strength: float = 2.0,
        correlation: float = 0.0,
        label_noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        gram = torch.as_tensor(cosine, dtype=torch.float64)
        if gram.ndim == 0:
            gram = gram.expand(n_concepts, n_concepts).clone().fill_diagonal_(1)
        n_concepts = len(gram)
        if gram.shape != (n_concepts, n_concepts) or n_concepts < 2 or not torch.equal(gram, gram.mT):
            raise EntangleError(
                f"cosine must be a number or a symmetric matrix of 2 concepts or more, not {list(gram.shape)}"
            )
        values, vectors = torch.linalg.eigh(gram)
        if bool((gram.diagonal() != 1).any()) or values[0] < -1e-9:
            raise EntangleError(
                "no directions have these cosines: the matrix needs a unit diagonal and no negative eigenvalue"
            )
        if d_model < n_concepts:
            raise EntangleError(f"d_model must be at least the number of concepts, but {d_model} < {n_concepts}")
        if not (0 <= correlation < 1 and 0 <= label_noise < 0.5 and strength > 0):
            raise EntangleError(
                "correlation must lie in [0, 1), label_noise in [0, 1/2) and strength above 0, not"
                f" {correlation}, {label_noise}, {strength}"
            )
        self.strength, self.correlation, self.label_noise, self.seed = strength, correlation, label_noise, seed
        generator = torch.Generator().manual_seed(seed)
        frame = torch.linalg.qr(torch.randn(d_model, n_concepts, generator=generator, dtype=torch.float64)).Q
        rows = vectors * values.clamp(min=0).sqrt() @ frame.mT
        names = tuple(f"concept {i}" for i in range(n_concepts))
        self.directions = Directions(rows.float(), names, estimator="planted")
        self.entanglement: Float[Tensor, " concept"] = entanglement(self.directions)

    @property
    def mean_differences(self) -> Directions:
        """What the class means of infinitely many examples give: with correlated labels, v_i + correlation * sum_j v_j.

        No sample size takes a mean difference nearer to v_i than this; label noise only shortens it.
        """
        n = len(self.directions)
        mixing = torch.full((n, n), self.correlation).fill_diagonal_(1)
        return Directions(mixing @ self.directions.vectors, self.directions.names, estimator="mean_difference")

    def sample(self, n_examples: int, *, seed: int = 0) -> PlantedSample:
        """Draw balanced concepts and their activations [example, d]."""
        generator = torch.Generator().manual_seed(seed)
        truth = self._truth(n_examples, generator)
        vectors = self.directions.vectors
        noise = torch.randn(n_examples, vectors.shape[1], generator=generator)
        return PlantedSample(self.strength * (truth - 0.5) @ vectors + noise, self._labels(truth, generator))

    def sample_grid(
        self, n_examples: int, grid: tuple[int, ...], cells: Sequence[tuple[int, ...]], *, seed: int = 0
    ) -> PlantedSample:
        """Draw activations [example, *grid, d], such as layers x heads, that hold the concepts in some cells only.

        Args:
            n_examples: How many.
            grid: Its shape.
            cells: Where the concepts are; all other cells are noise.
            seed: Of labels and noise.
        """
        generator = torch.Generator().manual_seed(seed)
        truth = self._truth(n_examples, generator)
        vectors = self.directions.vectors
        activations = torch.randn(n_examples, *grid, vectors.shape[1], generator=generator)
        for cell in cells:
            activations.movedim(0, -2)[cell] += self.strength * (truth - 0.5) @ vectors
        return PlantedSample(activations, self._labels(truth, generator))

    def _truth(self, n_examples: int, generator: torch.Generator) -> Float[Tensor, "example concept"]:
        # Signs of normals that correlate by r have phi = 2 / pi * arcsin(r); one common factor gives every pair that r.
        r = math.sin(math.pi * self.correlation / 2)
        own = torch.randn(n_examples, len(self.directions), generator=generator)
        common = torch.randn(n_examples, 1, generator=generator)
        latent = math.sqrt(1 - r) * own + math.sqrt(r) * common
        return (latent > 0).float()

    def _labels(self, truth: Float[Tensor, "example concept"], generator: torch.Generator) -> dict[str, Tensor]:
        flipped = torch.rand(truth.shape, generator=generator) < self.label_noise
        labels = (truth.bool() ^ flipped).long()
        return dict(zip(self.directions.names, labels.T, strict=True))


def balanced_examples(labels: dict[str, Int[Tensor, " example"]], *, seed: int = 0) -> Int[Tensor, " chosen"]:
    """Examples in which the labels do not correlate: equally many of every combination, as many as the rarest one has.

    Raises:
        EntangleError: Where a combination never occurs.

    Example:
        >>> labels = {"a": torch.tensor([0, 0, 0, 1, 1]), "b": torch.tensor([0, 0, 1, 0, 1])}
        >>> len(en.toy.balanced_examples(labels))  # one of each combination
        4
    """
    stacked = torch.stack(list(labels.values()), dim=1)
    combination = (stacked * 2 ** torch.arange(stacked.shape[1])).sum(1)
    n = int(torch.bincount(combination, minlength=2 ** stacked.shape[1]).min())
    if not n:
        raise EntangleError(
            f"some of the {2 ** stacked.shape[1]} combinations of labels never occur; leave out a concept"
        )
    order = torch.randperm(len(combination), generator=torch.Generator().manual_seed(seed))
    shuffled = combination[order]
    return torch.cat([order[shuffled == value][:n] for value in range(2 ** stacked.shape[1])])


def recover(
    sample: PlantedSample, *, estimator: str = "mean_difference", seed: int = 0, n_resamples: int = 500
) -> dict[str, float]:
    """Entanglement of the first concept as the library reports it: probes, then metrics, with their intervals.

    Args:
        sample: Activations [example, d] and labels.
        estimator: A probe of `fit_probes`.
        seed: Of the resamples.
        n_resamples: Bootstrap resamples.

    Returns:
        measured, low, high: E and its interval; corrected, corrected_low, corrected_high: the largest absolute cosine
        corrected for the noise of the directions, and its interval; accuracy: held out.

    Example:
        >>> sample = en.toy.PlantedConcepts(cosine=0.5, d_model=8, strength=4.0).sample(2000)
        >>> found = en.toy.recover(sample, n_resamples=50)
        >>> bool(found["corrected_low"] < 0.5 < found["corrected_high"]), round(float(found["corrected"]), 1)
        (True, 0.5)
    """
    first = next(iter(sample.labels))
    held_out = fit_probes(sample.activations, sample.labels[first], probe=estimator, n_permutations=0, progress=False)
    labels = {name: label.numpy() for name, label in sample.labels.items()}
    dictionary = Directions.stack(
        **{name: _direction(sample.activations, label, estimator) for name, label in labels.items()}
    )
    report = entanglement_report(
        dictionary,
        sample.activations,
        labels,
        estimator=estimator,
        n_resamples=n_resamples,
        n_permutations=10,
        seed=seed,
    )
    row = report.to_frame().iloc[0]
    truth = abs(row["corrected"]), row["corrected_low"], row["corrected_high"]
    low, high = (truth[1], truth[2]) if row["corrected"] >= 0 else (-truth[2], -truth[1])
    return {
        "measured": row["entanglement"],
        "low": row["low"],
        "high": row["high"],
        "corrected": truth[0],
        "corrected_low": low,
        "corrected_high": high,
        "accuracy": float(held_out.accuracy),
    }


def recovery_curve(
    setting: Setting,
    values: Sequence[float],
    *,
    estimators: Sequence[str] = ("mean_difference", "lda", "logistic"),
    n_repeats: int = 20,
    n_examples: int = 1000,
    cosine: float = 0.5,
    n_concepts: int = 2,
    d_model: int = 32,
    strength: float = 2.0,
    correlation: float = 0.0,
    label_noise: float = 0.0,
    n_resamples: int = 300,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """How well planted entanglement is recovered as one setting varies and the others stay.

    Args:
        setting: Which one.
        values: What it takes.
        estimators: Probes to compare.
        n_repeats: Fresh samples at each value.
        n_examples: Of each sample.
        cosine: Planted between every two directions.
        n_concepts: How many.
        d_model: dimensions.
        strength: See `PlantedConcepts`.
        correlation: See `PlantedConcepts`.
        label_noise: See `PlantedConcepts`.
        n_resamples: Bootstrap resamples of each interval.
        seed: Of everything.
        progress: Show a progress bar.

    Returns:
        A row per value, estimator and repeat: planted E, what `recover` returns, and whether the corrected interval
        covers the planted E.

    Example:
        >>> few = {"estimators": ["mean_difference"], "n_repeats": 2, "d_model": 8, "n_resamples": 50}
        >>> frame = en.toy.recovery_curve("n_examples", [100, 400], **few, progress=False)
        >>> len(frame), {"planted", "corrected", "covered"} <= set(frame)
        (4, True)
    """
    fixed = {"cosine": cosine, "strength": strength, "correlation": correlation, "label_noise": label_noise}
    rows = []
    jobs = [(value, repeat) for value in values for repeat in range(n_repeats)]
    for value, repeat in progress_bar(jobs, desc=f"recovery by {setting}", disable=not progress, leave=False):
        chosen = fixed | ({} if setting == "n_examples" else {setting: value})
        planted = PlantedConcepts(**chosen, n_concepts=n_concepts, d_model=d_model, seed=seed + repeat)
        sample = planted.sample(int(value) if setting == "n_examples" else n_examples, seed=seed + repeat)
        for estimator in estimators:
            recovered = recover(sample, estimator=estimator, seed=seed + repeat, n_resamples=n_resamples)
            truth = float(planted.entanglement[0])
            covered = recovered["corrected_low"] <= truth <= recovered["corrected_high"]
            rows.append(
                {
                    setting: value,
                    "estimator": estimator,
                    "repeat": repeat,
                    "planted": truth,
                    **recovered,
                    "covered": covered,
                }
            )
    return pd.DataFrame(rows)


def _direction(x: Float[Tensor, "example d"], labels: np.ndarray, estimator: str) -> Tensor:
    codes = torch.from_numpy(labels)
    solution = make_probe(estimator).solver(x[None], np.array([0, 1]))(codes[:, None])
    return solution.coef[0, 0, 0]
