"""The entanglement report: concept x concept at one site and layer, every number beside its null and its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.concepts import refits
from entangle.concepts.noise import Refits, around, off_diagonal, refitted
from entangle.concepts.refits import ESTIMATORS, Refit, Sample, inputs
from entangle.concepts.result import EntanglementReport, Vector
from entangle.concepts.subspaces import subspace_overlaps
from entangle.errors import EntangleError
from entangle.metrics import (
    Estimate,
    bias_corrected_interval,
    bootstrap_counts,
    conditional_cosines,
    cosines,
    gram_cosines,
    random_cosine_cdf,
    random_entanglement_cdf,
    random_entanglement_draws,
    random_entanglement_mean,
    random_entanglement_quantile,
    unit_vectors,
)
from entangle.metrics.inner_products import unembedding_covariance
from entangle.metrics.vectors import DirectionsLike, as_vectors

Square = Float[Tensor, "d d"]
Measure = Callable[[Float[Tensor, "*batch concept d"]], Tensor]
_SUBSPACE_DRAWS = 200  # of a subspace, which takes a factorisation each


def entanglement_report(
    directions: DirectionsLike,
    activations: Any = None,
    labels: Mapping[str, Any] | None = None,
    *,
    estimator: str | Refit | None = None,
    unembedding: Float[Tensor, "vocabulary d"] | None = None,
    subspace_dims: int = 0,
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
        labels: For shared activations, a mapping from concept to labels of two classes, of any kind; which is 1 is
            decided by the rules of `entangle.data.labels`, and told in `settings`.
        estimator: How to refit a direction: the name of a probe, such as "mean_difference" (one matrix product for all
            resamples) or "logistic" (solved side by side; other probes are refitted one resample at a time), or a
            function of (activations, labels [resample, example], weights [resample, example]) giving [resample, d].
            By default what `directions.estimator` says.
        unembedding: Rows of the vocabulary, `model.get_output_embeddings().weight`; adds `causal`, which is meant for
            directions of the residual stream at the last layers.
        subspace_dims: Dimensions of each concept's subspace, for `subspace_overlap`, which needs labels; 0 leaves it
            out. The subspaces are those of iterated linear discriminants, on at most 200 resamples and shuffles.
        n_components: Leading principal components for `component_overlap`.
        n_resamples: Bootstrap resamples.
        n_permutations: Draws of the covariance null and of the permutation null.
        n_splits: Random splits for the noise floor.
        level: Coverage of the intervals.
        seed: Seed of everything random.

    Returns:
        The report. Noise in the directions pulls every cosine towards zero: intervals hold what would be found if the
        directions were measured again on as many examples, with the activations' covariance as it is (which makes those
        of `whitened` wider than need be), and not the number of the true directions, which E of noise alone is far
        above; `corrected` estimates the cosine of the true directions, with an interval for
        that.

    Raises:
        EntangleError: Fewer than two concepts, concepts that do not match, too few examples of a class, NaN.
    """
    vectors = unit_vectors(as_vectors(directions, at_least=2).detach().double().cpu())
    n_concepts, n_dims = vectors.shape
    shared, samples = inputs(directions, activations, labels, n_dims)
    names = _names(directions, samples, n_concepts)
    gram = cosines(vectors)
    value, partner = off_diagonal(gram).max(1)
    findings: dict[str, Any] = {}
    percentiles: dict[str, Tensor] = {}
    refound: Refits | None = None

    if samples:
        refit = _refit(directions, estimator)
        listed = [samples[name] for name in names]
        seeds = _seeds(listed, seed)
        refound = refitted(names, listed, seeds, refit, n_resamples)
        findings["corrected"] = refound.corrected(level)
        shuffled = torch.stack([refits.permuted(s, refit, n_permutations, seed + 1 + i) for i, s in enumerate(listed)])
        findings |= {
            "permutation_percentile": _share_below(_permuted_entanglement(vectors, shuffled), value),
            "split_half": torch.stack([_split_half(s, refit, n_splits, seed) for s in listed]),
            "agreement": torch.stack(
                [_cosine(refits.full(s, refit).double().cpu(), v).abs() for s, v in zip(listed, vectors, strict=True)]
            ),
            "n_examples": tuple(len(s.x) for s in listed),
        }
        findings |= _together(listed, seeds, n_resamples, level)
        if subspace_dims:
            findings["subspace_overlap"], percentiles["subspace_overlap"] = subspace_overlaps(
                listed,
                seeds,
                subspace_dims,
                n_resamples=min(n_resamples, _SUBSPACE_DRAWS),
                n_permutations=min(n_permutations, _SUBSPACE_DRAWS),
                level=level,
                seed=seed,
            )
    elif subspace_dims:
        raise EntangleError("subspaces are refitted from labelled examples; give activations and labels, or no dims")

    def estimate(measure: Measure, metric: Square | None = None, *, centred: bool = False) -> Estimate:
        """A function of directions, with the interval that holds what measuring them again would give."""
        found = measure(vectors)
        if refound is None:
            return Estimate(found, torch.full_like(found, torch.nan), torch.full_like(found, torch.nan))
        draws = measure(refound.remeasured(metric))
        if centred:  # a share: the noise in the direction and in the draws lies along other axes than the direction
            draws = (draws * (found / draws.median(0).values)).clamp(max=1)
        return around(found, draws, level, share=centred)

    metrics: dict[str, Square | None] = {"cosine": None}
    forms: dict[str, Square] = {}
    if unembedding is not None:
        metrics["causal"] = unembedding_covariance(unembedding.detach().cpu(), n_dims)
    if shared is not None:
        covariance, shrunk = _covariances(shared)
        null = random_entanglement_draws(n_concepts, n_dims, covariance=covariance, n_draws=n_permutations, seed=seed)
        findings["covariance_percentile"] = _share_below(null, value)
        metrics |= {"whitened": torch.linalg.inv(shrunk), "readout": covariance}
        forms = {
            "variance_share": covariance / covariance.trace(),
            "component_overlap": _projection(covariance, n_components),
        }
        by_chance = _random_pairs(covariance, n_permutations, seed)
        measures = {k: _metric_cosines(m) for k, m in metrics.items()} | {k: _quadratic(m) for k, m in forms.items()}
        percentiles |= {k: _percentile(measure(by_chance), measure(vectors)) for k, measure in measures.items()}
        if "conditional" in findings:
            percentiles["conditional"] = _percentile(_metric_cosines(None)(by_chance), findings["conditional"].value)
    findings |= {name: estimate(_metric_cosines(metric), metric) for name, metric in metrics.items()}
    findings |= {name: estimate(_quadratic(form), centred=True) for name, form in forms.items()}
    return EntanglementReport(
        names=names,
        entanglement=estimate(lambda v: off_diagonal(_metric_cosines(None)(v)).amax(-1)),
        partner=tuple(names[j] for j in partner.tolist()),
        percentile=torch.as_tensor(random_entanglement_cdf(value, n_concepts, n_dims)),
        cosine_percentile=torch.as_tensor(random_cosine_cdf(gram.abs(), n_dims)),
        null_mean=random_entanglement_mean(n_concepts, n_dims),
        null_95=float(random_entanglement_quantile(0.95, n_concepts, n_dims)),
        percentiles=percentiles,
        settings={
            "site": getattr(directions, "site", None),
            "layer": getattr(directions, "layer", None),
            "head": getattr(directions, "head", None),
            "n_dims": n_dims,
            "estimator": getattr(refit, "__name__", "custom") if samples else None,
            "positive": {name: samples[name].label_names[1] for name in names} if samples else None,
            "subspace_dims": subspace_dims,
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


def _permuted_entanglement(
    vectors: Float[Tensor, "concept d"], shuffled: Float[Tensor, "concept permutation d"]
) -> Float[Tensor, "permutation concept"]:
    """E of each concept when the labels of all its partners are shuffled."""
    partners = torch.nn.functional.normalize(shuffled.double().cpu(), dim=-1)
    cosine = torch.einsum("id,jpd->pij", vectors, partners).abs()
    cosine.diagonal(dim1=1, dim2=2).zero_()
    return cosine.amax(2)


def _split_half(sample: Sample, refit: Refit, n_splits: int, seed: int) -> Tensor:
    first, second = refits.halves(sample, refit, n_splits, seed)
    return torch.nn.functional.cosine_similarity(first, second, dim=1).mean().double().cpu()


def _together(samples: Sequence[Sample], seeds: Sequence[int], n_resamples: int, level: float) -> dict[str, Any]:
    """What concepts labelled on the same examples say of one another."""
    n = len(samples)
    ends = [torch.full((n, n), torch.nan, dtype=torch.float64).fill_diagonal_(1) for _ in range(3)]
    correlation = ends[0].clone()
    sets = {id(sample.x): [i for i in range(n) if samples[i].x is sample.x] for sample in samples}.values()
    for own in (members for members in sets if len(members) > 1):
        x, groups = samples[own[0]].x, samples[own[0]].groups
        labels = torch.stack([samples[i].positive for i in own], dim=1).double()
        counts = bootstrap_counts(len(x), n_resamples, seed=seeds[own[0]], groups=groups).to(x)
        value, draws = conditional_cosines(x, labels), conditional_cosines(x, labels, counts)
        found = bias_corrected_interval(value.cpu(), draws.cpu(), level=level)
        block = torch.tensor(own)[:, None], torch.tensor(own)
        for matrix, part in zip((*ends, correlation), (*found, torch.corrcoef(labels.T)), strict=True):
            matrix[block] = torch.as_tensor(part).cpu()
    if len(sets) == n:
        return {}
    return {"conditional": Estimate(*ends), "label_correlation": correlation}


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
    """Never 1: one less it is a p-value, `(1 + draws as large) / (1 + draws)` (Phipson & Smyth 2010)."""
    return (draws < value).double().sum(0) / (1 + len(draws))


def _cosine(a: Float[Tensor, " d"], b: Float[Tensor, " d"]) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=0)


def _percentile(by_chance: Float[Tensor, "draw 2 *other"], found: Tensor) -> Tensor:
    """Share of draws with a smaller absolute value: of pairs for a matrix, of directions for one value each."""
    null = (by_chance[:, 0, 1] if found.ndim == 2 else by_chance.flatten()).abs()
    share = _share_below(null[:, None], found.abs().flatten()).reshape(found.shape)
    return share.masked_fill(found.isnan(), torch.nan)


def _metric_cosines(metric: Square | None) -> Measure:
    """Cosines in an inner product; the coordinates' own by default."""

    def measure(v: Tensor) -> Tensor:
        v = torch.nn.functional.normalize(v, dim=-1)
        found: Tensor = gram_cosines((v if metric is None else v @ metric) @ v.mT)
        return found

    return measure


def _quadratic(form: Square) -> Measure:
    """A quadratic form of the unit directions."""

    def measure(v: Tensor) -> Tensor:
        v = torch.nn.functional.normalize(v, dim=-1)
        found: Tensor = ((v @ form) * v).sum(-1)
        return found

    return measure


def _projection(covariance: Square, n_components: int) -> Square:
    """Onto the leading principal components."""
    components: Tensor = torch.linalg.eigh(covariance).eigenvectors[:, -n_components:]
    return components @ components.T


def _random_pairs(covariance: Square, n: int, seed: int) -> Float[Tensor, "draw 2 d"]:
    """Pairs of directions with the activations' own covariance."""
    values, axes = torch.linalg.eigh(covariance)
    normal = torch.randn(n, 2, len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pairs: Tensor = normal * values.clamp(min=0).sqrt() @ axes.T
    return pairs
