"""The entanglement report: concept x concept at one site and layer, every cosine beside its null and its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from entangle import plots
from entangle.errors import EntangleError
from entangle.evaluation import refits
from entangle.evaluation.intervals import intervals, off_diagonal
from entangle.evaluation.refits import ESTIMATORS, Refit, Sample, inputs
from entangle.metrics import (
    Estimate,
    causal_gram,
    conditional_cosines,
    cosines,
    gram_cosines,
    random_cosine_cdf,
    random_entanglement_cdf,
    random_entanglement_draws,
    random_entanglement_mean,
    random_entanglement_quantile,
    readout_cosines,
    unit_vectors,
    whitened_cosines,
)
from entangle.metrics.vectors import DirectionsLike, as_vectors

Matrix = Float[Tensor, "concept concept"]
Vector = Float[Tensor, " concept"]
_MATRICES = ("whitened", "readout", "causal", "conditional", "label_correlation")


@dataclass(frozen=True)
class EntanglementReport:
    """How entangled some concepts are at one site and layer. Tensors are float64, one value per concept or pair.

    What needs activations is None without them; what needs labels is None without those.

    Attributes:
        names: The concepts.
        entanglement: E_i = max_j |cos(v_i, v_j)| with its bootstrap interval (low and high are NaN without labels).
        partner: The concept that reaches E_i.
        percentile: Share of random directions with a smaller E, exactly.
        cosine: Signed cosine of each pair with its interval, as [concept, concept].
        cosine_percentile: Share of random pairs with a smaller absolute cosine.
        corrected: Cosine of each pair corrected for the noise of the directions (attenuation), with its interval. Where
            noise is all there is, the interval is everything.
        null_mean: Expected E of random directions.
        null_95: The value that E stays below in 95 % of random directions.
        covariance_percentile: As `percentile`, for random directions with the activations' own covariance.
        permutation_percentile: As `percentile`, for the partners' directions refitted on shuffled labels.
        split_half: Mean cosine of a concept's directions on two halves of its examples: what estimation leaves of a 1.
        agreement: Absolute cosine of the given direction with the refit on all examples; far below 1, intervals
            describe another estimator than the directions came from.
        whitened: Cosine after whitening (Mahalanobis): inverse covariance as the metric.
        readout: Correlation of the projections on two directions over the activations: covariance as the metric.
        causal: Cosine in the causal inner product at the unembedding (Park et al. 2023).
        conditional: Cosine of a pair's directions with the other concept held fixed, for concepts labelled on the same
            examples; NaN for other pairs.
        label_correlation: Correlation of a pair's labels, likewise.
        variance_share: Share of the activations' variance along the direction.
        component_overlap: Share of the direction inside the leading principal components.
        n_examples: Examples each concept was resampled on.
        settings: What was asked: site, layer, estimator, seed and so on.
    """

    names: tuple[str, ...]
    entanglement: Estimate
    partner: tuple[str, ...]
    percentile: Vector
    cosine: Estimate
    cosine_percentile: Matrix
    null_mean: float
    null_95: float
    corrected: Estimate | None = None
    covariance_percentile: Vector | None = None
    permutation_percentile: Vector | None = None
    split_half: Vector | None = None
    agreement: Vector | None = None
    whitened: Matrix | None = None
    readout: Matrix | None = None
    causal: Matrix | None = None
    conditional: Matrix | None = None
    label_correlation: Matrix | None = None
    variance_share: Vector | None = None
    component_overlap: Vector | None = None
    n_examples: tuple[int, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row per concept; frames of several layers can be concatenated."""
        value, low, high = self.entanglement
        partner = [self.names.index(name) for name in self.partner]
        corrected = self.corrected or (None, None, None)
        true = [t[range(len(partner)), partner] if isinstance(t, Tensor) else None for t in corrected]
        columns: dict[str, Any] = {
            "concept": self.names,
            "site": self.settings.get("site"),
            "layer": self.settings.get("layer"),
            "entanglement": value,
            "low": low,
            "high": high,
            "partner": self.partner,
            "corrected": true[0],
            "corrected_low": true[1],
            "corrected_high": true[2],
            "null_mean": self.null_mean,
            "null_95": self.null_95,
            "percentile": self.percentile,
            "covariance_percentile": self.covariance_percentile,
            "permutation_percentile": self.permutation_percentile,
            "split_half": self.split_half,
            "agreement": self.agreement,
            "whitened": None if self.whitened is None else off_diagonal(self.whitened).amax(1),
            "variance_share": self.variance_share,
            "component_overlap": self.component_overlap,
            "n_examples": self.n_examples,
        }
        return pd.DataFrame({k: v.numpy() if isinstance(v, Tensor) else v for k, v in columns.items()})

    def pairs(self) -> pd.DataFrame:
        """One row per pair of concepts."""
        first, second = np.triu_indices(len(self.names), 1)
        value, low, high = self.cosine
        matrices = {
            "cosine": value,
            "low": low,
            "high": high,
            "percentile": self.cosine_percentile,
            "corrected": self.corrected and self.corrected.value,
            "corrected_low": self.corrected and self.corrected.low,
            "corrected_high": self.corrected and self.corrected.high,
            "whitened": self.whitened,
            "readout": self.readout,
            "causal": self.causal,
            "conditional": self.conditional,
            "label_correlation": self.label_correlation,
        }
        frame = pd.DataFrame({"first": np.array(self.names)[first], "second": np.array(self.names)[second]})
        return frame.assign(
            **{k: m[first, second].numpy() if isinstance(m, Tensor) else None for k, m in matrices.items()}
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists and numbers, ready for JSON; NaN becomes None."""
        found: dict[str, Any] = {}
        for name, value in vars(self).items():
            ends = (name, f"{name}_low", f"{name}_high")
            found |= dict(zip(ends, value, strict=True)) if isinstance(value, Estimate) else {name: value}
        return {k: _plain(v) for k, v in found.items()}

    def plot(self, what: str = "cosine", **style: Any) -> Any:
        """A concept x concept matrix: the cosine, or another field of that shape, by name."""
        shown = self.cosine.value if what == "cosine" else getattr(self, what) if what in _MATRICES else None
        if not isinstance(shown, Tensor):
            raise EntangleError(
                f"plot shows cosine, and {', '.join(_MATRICES)} where the report was given what they need; not {what!r}"
            )
        where = " ".join(str(self.settings[k]) for k in ("site", "layer") if self.settings.get(k) is not None)
        style = {"title": f"{what} {where}".strip(), "label": what} | style
        return plots.matrix(shown.numpy(), self.names, **style)


def entanglement_report(
    directions: DirectionsLike,
    activations: Any = None,
    labels: Mapping[str, Any] | None = None,
    *,
    estimator: str | Refit | None = None,
    unembedding: Float[Tensor, "vocabulary d"] | None = None,
    n_components: int = 5,
    n_resamples: int = 1000,
    n_permutations: int = 1000,
    n_splits: int = 20,
    level: float = 0.95,
    seed: int = 0,
) -> EntanglementReport:
    """How entangled concepts are at one site and layer, with nulls, intervals and the noise floor.

    Args:
        directions: The concepts' directions: `entangle.Directions`, or a `[concept, d]` tensor.
        activations: One of

            - nothing: cosines and the random-direction null only;
            - activations at the directions' place, `[example, d]` (or an `Activations` that holds it): adds the
              covariance null, whitened cosines, variance share and component overlap;
            - those and `labels`: adds intervals, the permutation null and the split-half floor, all concepts resampled
              together on the same examples;
            - a mapping from concept to `(activations [example, d], labels)` or `(activations, labels, groups)`: the
              same where every concept has its own examples. Give the examples the directions were fitted on.
        labels: For shared activations, a mapping from concept to 0/1 labels.
        estimator: How to refit a direction: the name of a probe, such as "mean_difference" (one matrix product for all
            resamples) or "logistic" (solved side by side; other probes are refitted one resample at a time), or a
            function of (activations, labels [resample, example], weights [resample, example]) giving [resample, d].
            By default what `directions.estimator` says.
        unembedding: Rows of the vocabulary, `model.get_output_embeddings().weight`; adds `causal`, which is meant for
            directions of the residual stream at the last layers.
        n_components: Leading principal components for `component_overlap`.
        n_resamples: Bootstrap resamples.
        n_permutations: Draws of the covariance null and of the permutation null.
        n_splits: Random splits for the noise floor.
        level: Coverage of the intervals.
        seed: Seed of everything random.

    Returns:
        The report. Noise in the directions pulls every cosine towards zero: intervals of `cosine` and `entanglement`
        say how they would vary if measured again on as many examples; `corrected` estimates the cosine of the true
        directions, with an interval for that.

    Raises:
        EntangleError: Fewer than two concepts, concepts that do not match, too few examples of a class, NaN.
    """
    vectors = as_vectors(directions, at_least=2).detach().double().cpu()
    n_concepts, n_dims = vectors.shape
    shared, samples = inputs(directions, activations, labels, n_dims)
    names = _names(directions, samples, n_concepts)
    gram = cosines(vectors)
    off = off_diagonal(gram)
    value, partner = off.max(1)
    findings: dict[str, Any] = {}
    missing = torch.full_like(gram, torch.nan)
    cosine, measured = Estimate(gram, missing, missing), Estimate(value, missing[0], missing[0])

    if samples:
        refit = _refit(directions, estimator)
        listed = [samples[name] for name in names]
        seeds = _seeds(listed, seed)
        of_cosine, of_value, findings["corrected"] = intervals(names, listed, seeds, refit, n_resamples, level)
        # The given directions and their refits agree up to rounding, and so must a value and its interval.
        cosine, measured = _around(gram, of_cosine), _around(value, of_value)
        shuffled = torch.stack([refits.permuted(s, refit, n_permutations, seed + 1 + i) for i, s in enumerate(listed)])
        findings |= {
            "permutation_percentile": _share_below(_permuted_entanglement(vectors, shuffled), value),
            "split_half": torch.stack([_split_half(s, refit, n_splits, seed) for s in listed]),
            "agreement": torch.stack(
                [_cosine(refits.full(s, refit).double().cpu(), v).abs() for s, v in zip(listed, vectors, strict=True)]
            ),
            "n_examples": tuple(len(s.x) for s in listed),
        }
        findings |= _together(listed)
    if shared is not None:
        covariance, shrunk = _covariances(shared)
        draws = random_entanglement_draws(n_concepts, n_dims, covariance=covariance, n_draws=n_permutations, seed=seed)
        components = torch.linalg.eigh(covariance).eigenvectors[:, -n_components:]
        unit = unit_vectors(vectors)
        findings |= {
            "covariance_percentile": _share_below(draws, value),
            "whitened": whitened_cosines(unit, shrunk),
            "readout": readout_cosines(unit, covariance),
            "variance_share": ((unit @ covariance) * unit).sum(1) / covariance.trace(),
            "component_overlap": (unit @ components).square().sum(1),
        }
    if unembedding is not None:
        findings["causal"] = gram_cosines(causal_gram(vectors, unembedding.detach().cpu(), space="residual"))
    return EntanglementReport(
        names=names,
        entanglement=measured,
        partner=tuple(names[j] for j in partner.tolist()),
        percentile=torch.as_tensor(random_entanglement_cdf(value, n_concepts, n_dims)),
        cosine=cosine,
        cosine_percentile=torch.as_tensor(random_cosine_cdf(gram.abs(), n_dims)),
        null_mean=random_entanglement_mean(n_concepts, n_dims),
        null_95=float(random_entanglement_quantile(0.95, n_concepts, n_dims)),
        settings={
            "site": getattr(directions, "site", None),
            "layer": getattr(directions, "layer", None),
            "head": getattr(directions, "head", None),
            "n_dims": n_dims,
            "estimator": getattr(refit, "__name__", "custom") if samples else None,
            "n_resamples": n_resamples,
            "n_permutations": n_permutations,
            "n_splits": n_splits,
            "n_components": n_components,
            "level": level,
            "seed": seed,
        },
        **findings,
    )


def _names(directions: Any, samples: Mapping[str, Sample], n: int) -> tuple[str, ...]:
    names = tuple(getattr(directions, "names", None) or samples or [str(i) for i in range(n)])
    if len(names) != n or (samples and set(samples) != set(names)):
        raise EntangleError(f"{n} directions named {list(names)} need examples for each; got {list(samples)}")
    return names


def _refit(directions: Any, estimator: str | Refit | None) -> Refit:
    chosen = estimator or getattr(directions, "estimator", None)
    if isinstance(chosen, str) and chosen in ESTIMATORS:
        return ESTIMATORS[chosen]
    if not callable(chosen):
        raise EntangleError(
            f"cannot refit directions found by {chosen!r}; give estimator= as one of {sorted(ESTIMATORS)} or a function"
        )
    refit: Refit = chosen
    return refit


def _seeds(samples: Sequence[Sample], seed: int) -> list[int]:
    """Concepts that share their activations share their resamples; the others are resampled independently."""
    own: dict[int, int] = {}
    return [seed + own.setdefault(id(s.x), len(own)) for s in samples]


def _around(value: Tensor, interval: Estimate) -> Estimate:
    low, high = torch.as_tensor(interval.low), torch.as_tensor(interval.high)
    return Estimate(value, torch.minimum(low, value), torch.maximum(high, value))


def _permuted_entanglement(
    vectors: Float[Tensor, "concept d"], shuffled: Float[Tensor, "concept permutation d"]
) -> Float[Tensor, "permutation concept"]:
    """E of each concept when the labels of all its partners are shuffled."""
    unit = unit_vectors(vectors)
    partners = torch.nn.functional.normalize(shuffled.double().cpu(), dim=-1)
    cosine = torch.einsum("id,jpd->pij", unit, partners).abs()
    cosine.diagonal(dim1=1, dim2=2).zero_()
    return cosine.amax(2)


def _split_half(sample: Sample, refit: Refit, n_splits: int, seed: int) -> Tensor:
    first, second = refits.halves(sample, refit, n_splits, seed)
    return torch.nn.functional.cosine_similarity(first, second, dim=1).mean().double().cpu()


def _together(samples: Sequence[Sample]) -> dict[str, Matrix]:
    """What concepts labelled on the same examples say of one another."""
    conditional = torch.full((len(samples), len(samples)), torch.nan, dtype=torch.float64)
    correlation = conditional.clone()
    for i, j in combinations(range(len(samples)), 2):
        if samples[i].x is samples[j].x:
            labels = torch.stack([samples[i].positive, samples[j].positive], dim=1).double()
            conditional[i, j] = conditional[j, i] = conditional_cosines(samples[i].x, labels)[0, 1].cpu()
            correlation[i, j] = correlation[j, i] = torch.corrcoef(labels.T)[0, 1].cpu()
    if bool(correlation.isnan().all()):
        return {}
    return {"conditional": conditional.fill_diagonal_(1), "label_correlation": correlation.fill_diagonal_(1)}


def _covariances(x: Float[Tensor, "example d"]) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """The sample covariance, and Ledoit & Wolf's (2004) shrunk one, which can be inverted."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    centred = x.double() - x.double().mean(0)
    covariance = centred.T @ centred / len(x)
    shrinkage = max(float(ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True)), 1e-6)
    if float(covariance.trace()) == 0:
        raise EntangleError("the activations do not vary at all; give other examples or another place")
    identity = torch.eye(len(covariance), dtype=torch.float64) * covariance.trace() / len(covariance)
    return covariance, (1 - shrinkage) * covariance + shrinkage * identity


def _share_below(draws: Float[Tensor, "draw concept"], value: Vector) -> Vector:
    return (draws < value).double().mean(0)


def _cosine(a: Float[Tensor, " d"], b: Float[Tensor, " d"]) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=0)


def _plain(value: Any) -> Any:
    """Tensors as nested lists, NaN as None."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
