"""Sweeps over the data of a toy autoencoder, every point of the sweep an instance of one stacked model."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.metrics import entanglement
from entangle.toy.autoencoders.features import SparseFeatures
from entangle.toy.autoencoders.geometry import geometry
from entangle.toy.autoencoders.superposition import SuperpositionModel

PHASES = ("dropped", "dedicated dimension", "superposition")
KEPT = 0.5  # a feature shorter than this is dropped; in the optimum lengths are near 0 or near 1


@dataclass(frozen=True)
class PhaseDiagram:
    """What becomes of the last feature, by how sparse features are and how important it is.

    Attributes:
        densities: Probability that a feature is active, one per row.
        importances: Importance of the last feature relative to the others, one per column.
        norm: Length of its direction in the instance with the lowest loss.
        overlap: Sum over other features of (unit(W_last) . W_j)^2 in the same instance.
        loss: The lowest loss, importance-weighted squared error summed over features.
        share_at_optimum: Instances whose loss is within 5 % of the lowest.

    Example:
        >>> one = torch.ones(1)
        >>> cells = dict.fromkeys(("norm", "overlap", "loss", "share_at_optimum"), one[None])
        >>> en.toy.PhaseDiagram(densities=one, importances=one, **cells).to_frame()["phase"].tolist()
        ['superposition']
    """

    densities: Float[Tensor, " density"]
    importances: Float[Tensor, " importance"]
    norm: Float[Tensor, "density importance"]
    overlap: Float[Tensor, "density importance"]
    loss: Float[Tensor, "density importance"]
    share_at_optimum: Float[Tensor, "density importance"]

    @property
    def phase(self) -> Int[Tensor, "density importance"]:
        """Index into `PHASES`: dropped, on a dimension of its own, or sharing one."""
        return torch.where(self.norm < KEPT, 0, torch.where(self.overlap < KEPT**2, 1, 2))

    def to_frame(self) -> pd.DataFrame:
        """A row per cell."""
        grid = torch.cartesian_prod(self.densities, self.importances)
        columns = {name: getattr(self, name).flatten() for name in ("norm", "overlap", "loss", "share_at_optimum")}
        phase = [PHASES[i] for i in self.phase.flatten()]
        return pd.DataFrame({"density": grid[:, 0], "importance": grid[:, 1], "phase": phase, **columns})


def phase_diagram(
    n_features: int = 2,
    n_hidden: int = 1,
    *,
    n_cells: int = 20,
    n_instances: int = 10,
    steps: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> PhaseDiagram:
    """The phase diagram of Elhage et al. 2022, "Superposition as a Phase Change": n_cells x n_cells cells, all at once.

    The expectation over the data is exact (`SparseFeatures.quadrature`), so sparse cells are as sharp as dense ones.

    Args:
        n_features: 2 or 3; all but the last have importance 1.
        n_hidden: One fewer.
        n_cells: Densities, log-spaced from 0.01 to 1, and importances, from 0.1 to 10.
        n_instances: Random starts per cell; the one with the lowest loss is reported.
        steps: Of training.
        seed: Of the starts.
        progress: Show a progress bar.

    Example:
        >>> diagram = en.toy.phase_diagram(n_cells=2, n_instances=4, steps=300, progress=False)
        >>> diagram.to_frame().pivot(index="density", columns="importance", values="phase").to_numpy().tolist()
        [['superposition', 'superposition'], ['dropped', 'dedicated dimension']]
    """
    densities, importances = torch.logspace(-2, 0, n_cells), torch.logspace(-1, 1, n_cells)
    density, last = torch.cartesian_prod(densities, importances).repeat_interleave(n_instances, dim=0).unbind(1)
    importance = torch.ones(len(last), n_features)
    importance[:, -1] = last
    model = SuperpositionModel(n_features, n_hidden, len(last), importance=importance, seed=seed)
    data = SparseFeatures(n_features, probability=density[:, None])
    history = model.fit(data, steps=steps, batch_size=None, lr=3e-2, progress=progress)

    by_cell = (n_cells, n_cells, n_instances)
    loss = (history.losses[-1] * n_features).view(by_cell)
    best, chosen = loss.min(-1)
    norms, vectors = model.norms(), model.dictionaries
    # A feature of no length has no direction and overlaps with nothing.
    unit = vectors[:, -1] / norms[:, -1:].clamp_min(1e-6)
    overlap = (unit[:, None] * vectors[:, :-1]).sum(-1).square().sum(-1)

    def of_best(values: Tensor) -> Tensor:
        return values.view(by_cell).gather(2, chosen[..., None]).squeeze(-1)

    near = (loss <= 1.05 * best[..., None] + 1e-9).float().mean(-1)
    return PhaseDiagram(densities, importances, of_best(norms[:, -1]), of_best(overlap), best, near)


def dimension_plateaus(
    n_features: int = 100,
    n_hidden: int = 10,
    *,
    n_densities: int = 20,
    steps: int = 2000,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Dimensions per feature as features grow sparser: it lingers at 1 and at 1/2 (Elhage et al. 2022, "Geometry").

    Returns:
        A row per density and feature: density, feature, norm, dimensionality, entanglement, and the model's
        dimensions_per_feature, n_hidden / |W|_F^2.

    Example:
        >>> frame = en.toy.dimension_plateaus(6, 2, n_densities=2, steps=50, progress=False)
        >>> frame.groupby("density")["feature"].count().tolist()
        [6, 6]
    """
    densities = torch.logspace(0, -2, n_densities)
    model = SuperpositionModel(n_features, n_hidden, n_densities, seed=seed)
    data = SparseFeatures(n_features, probability=densities[:, None])
    model.fit(data, steps=steps, batch_size=batch_size, progress=progress)
    norms = model.norms()
    per_feature = n_hidden / norms.square().sum(-1, keepdim=True)
    columns = {
        "density": densities[:, None].expand_as(norms),
        "feature": torch.arange(n_features).expand_as(norms),
        "norm": norms,
        "dimensionality": model.dimensionality(),
        "entanglement": model.entanglement(),
        "dimensions_per_feature": per_feature.expand_as(norms),
    }
    return pd.DataFrame({name: values.flatten() for name, values in columns.items()})


@dataclass(frozen=True)
class Optimum:
    """A model size whose optimum is known, and the polytope that it forms when features are sparse."""

    n_features: int
    n_hidden: int
    polytope: str
    probability: float = 0.05


OPTIMA = (
    Optimum(2, 1, "antipodal pair"),
    Optimum(5, 2, "pentagon"),
    Optimum(6, 3, "octahedron"),
    Optimum(8, 3, "square antiprism", 0.03),
)


def polytope_census(
    optima: tuple[Optimum, ...] = OPTIMA,
    *,
    n_instances: int = 50,
    steps: int = 2000,
    batch_size: int = 512,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Which polytopes random starts end in.

    Returns:
        A row per model size and instance: n_features, n_hidden, expected, found, at_optimum, loss, and the mean
        dimensionality and entanglement of its features.

    Example:
        >>> frame = en.toy.polytope_census(n_instances=1, steps=20, progress=False)
        >>> frame["expected"].tolist()
        ['antipodal pair', 'pentagon', 'octahedron', 'square antiprism']
    """
    frames = []
    for case in optima:
        model = SuperpositionModel(case.n_features, case.n_hidden, n_instances, seed=seed)
        data = SparseFeatures(case.n_features, probability=case.probability)
        history = model.fit(data, steps=steps, batch_size=batch_size, seed=seed, progress=progress)
        shapes = [geometry(dictionary).name for dictionary in model.dictionaries]
        columns = {
            "n_features": case.n_features,
            "n_hidden": case.n_hidden,
            "expected": case.polytope,
            "found": shapes,
            "at_optimum": [name == case.polytope for name in shapes],
            "loss": history.losses[-1],
            "dimensionality": model.dimensionality().mean(1),
            "entanglement": model.entanglement().mean(1),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def rare_feature(
    n_features: int = 6,
    n_hidden: int = 2,
    *,
    shares: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0),
    probability: float = 0.05,
    n_instances: int = 30,
    steps: int = 2000,
    batch_size: int = 512,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """What rarity does to a feature, by its share of the others' frequency: the autoencoders' `data_share_study`.

    Returns:
        A row per share and instance: the rare feature's norm, dimensionality and entanglement, whether it was dropped,
        and among the features still represented its entanglement (NaN when dropped) and that of the others.

    Example:
        >>> frame = en.toy.rare_feature(shares=(0.1, 1.0), n_instances=2, steps=50, progress=False)
        >>> frame.groupby("share")["norm"].count().tolist()
        [2, 2]
    """
    share = torch.tensor(shares).repeat_interleave(n_instances)
    p = torch.full((len(share), n_features), probability)
    p[:, 0] *= share
    model = SuperpositionModel(n_features, n_hidden, len(share), seed=seed)
    model.fit(
        SparseFeatures(n_features, probability=p), steps=steps, batch_size=batch_size, seed=seed, progress=progress
    )
    norms = model.norms()
    kept = norms >= KEPT
    rare, others = [], []
    for dictionary, here in zip(model.dictionaries, kept, strict=True):
        values = torch.full((n_features,), torch.nan)
        values[here] = entanglement(dictionary[here])
        rare.append(float(values[0]))
        others.append(float(values[1:].nanmean()))
    columns = {
        "share": share,
        "norm": norms[:, 0],
        "dimensionality": model.dimensionality()[:, 0],
        "entanglement": model.entanglement()[:, 0],
        "dropped": ~kept[:, 0],
        "entanglement_if_kept": rare,
        "others_entanglement": others,
    }
    return pd.DataFrame(columns)
