"""The entanglement report: concept x concept at one site and layer, every number beside its null and its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.concepts import refits
from entangle.concepts.noise import Refits, around, off_diagonal, refitted
from entangle.concepts.refits import ESTIMATORS, Refit, Sample, inputs
from entangle.concepts.result import EntanglementReport, Vector
from entangle.concepts.spread import Maps, Measure, Spread, largest, pairwise, root_of, squared, without
from entangle.concepts.subspaces import subspace_overlaps
from entangle.errors import EntangleError
from entangle.metrics import (
    Estimate,
    bias_corrected_interval,
    bootstrap_counts,
    conditional_cosines,
    cosines,
    massive_coordinates,
    random_cosine_cdf,
    random_entanglement_cdf,
    random_entanglement_mean,
    random_entanglement_quantile,
    unit_vectors,
)
from entangle.metrics.inner_products import unembedding_covariance
from entangle.metrics.vectors import DirectionsLike, as_vectors

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
        activations: One of.

            - nothing: cosines and the random-direction null only;
            - activations at the directions' place, `[example, d]` (or an `Activations` that holds it): adds the
              covariance null, whitened cosines, variance share and component overlap;
            - those and `labels`: adds intervals, the permutation null and the split-half floor, all concepts resampled
              together on the same examples;
            - a mapping from concept to `(activations [example, d], labels)` or `(activations, labels, groups)`: the
              same where every concept has its own examples, and its own data set's covariance, about that set's mean.
              Give the examples the directions were fitted on.
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

    Example:
        >>> v = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
        >>> en.entanglement_report(v).entanglement.value  # of directions alone
        tensor([0.6000, 0.6000, 0.0000], dtype=torch.float64)
        >>> x = acts["resid_post"][:, 1]
        >>> samples = {"rudeness": (x, labels), "noise": (x, np.roll(labels, 1))}  # each concept's own examples
        >>> few = {"estimator": "mean_difference", "n_resamples": 50, "n_permutations": 50}
        >>> en.entanglement_report(directions.vectors[[0, 2]], samples, **few).partner
        ('noise', 'rudeness')
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

    def estimate(measure: Measure, maps: Maps | None = None) -> Estimate:
        """Of directions through their maps, with the interval that holds what measuring them again would give."""
        value = measure(vectors if maps is None else maps(vectors))
        if refound is None:
            return Estimate(value, torch.full_like(value, torch.nan), torch.full_like(value, torch.nan))
        return around(value, measure(refound.remeasured(maps)), level)

    def share(measure: Measure) -> Estimate:
        """The same of a share: the noise in the direction and in the draws lies along other axes than the direction."""
        value = measure(vectors)
        if refound is None:
            return Estimate(value, torch.full_like(value, torch.nan), torch.full_like(value, torch.nan))
        draws = measure(refound.remeasured())
        return around(value, (draws * (value / draws.median(0).values)).clamp(max=1), level, share=True)

    maps: dict[str, Maps | None] = {"cosine": None}
    shares: dict[str, Maps] = {}
    if unembedding is not None:
        maps["causal"] = root_of(unembedding_covariance(unembedding.detach().cpu(), n_dims))
    spread = _spread(shared, samples, names)
    if spread is not None:
        findings["massive"], aside = _massive(shared, samples, vectors)
        maps |= {"whitened": spread.whitening(), "readout": spread.readout(), "set_aside": aside}
        findings["entanglement_set_aside"] = estimate(largest, aside)
        shares = {"variance_share": spread.shares(), "component_overlap": spread.components(n_components)}
    measures = {k: pairwise(own) for k, own in maps.items()} | {k: squared(own) for k, own in shares.items()}
    if spread is not None:
        values = {name: measure(vectors) for name, measure in measures.items()}
        if "conditional" in findings:
            measures["conditional"], values["conditional"] = pairwise(), findings["conditional"].value
        percentiles |= spread.percentiles(measures, values, n_permutations, seed)
        findings["covariance_percentile"] = spread.percentile_of_largest(value, n_permutations, seed)
    findings |= {k: estimate(pairwise(), own) for k, own in maps.items()} | {k: share(measures[k]) for k in shares}
    return EntanglementReport(
        names=names,
        entanglement=estimate(largest),
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


def _spread(shared: Tensor | None, samples: Mapping[str, Sample], names: Sequence[str]) -> Spread | None:
    """How activations are spread at the place: over the data set that concepts share, or each over its own."""
    if shared is not None:
        return Spread.of([shared] * len(names))
    return Spread.of([samples[name].x for name in names]) if samples else None


def _massive(
    shared: Tensor | None, samples: Mapping[str, Sample], vectors: Float[Tensor, "concept d"]
) -> tuple[tuple[int, ...], Maps]:
    """Coordinates that are massive in some data set, and what sets them aside; none where a direction has no others."""
    sets = [shared] if shared is not None else list({id(s.x): s.x for s in samples.values()}.values())
    coordinates = torch.unique(torch.cat([massive_coordinates(x.cpu()) for x in sets]))
    aside = without(coordinates, vectors.shape[1])
    if not bool((aside(vectors).norm(dim=1) > 0).all()):
        coordinates, aside = coordinates[:0], without(coordinates[:0], vectors.shape[1])
    return tuple(coordinates.tolist()), aside


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
        interval = bias_corrected_interval(value.cpu(), draws.cpu(), level=level)
        block = torch.tensor(own)[:, None], torch.tensor(own)
        for matrix, part in zip((*ends, correlation), (*interval, torch.corrcoef(labels.T)), strict=True):
            matrix[block] = torch.as_tensor(part).cpu()
    if len(sets) == n:
        return {}
    return {"conditional": Estimate(*ends), "label_correlation": correlation}


def _share_below(draws: Float[Tensor, "draw concept"], value: Vector) -> Vector:
    """Never 1: one less it is a p-value, `(1 + draws as large) / (1 + draws)` (Phipson & Smyth 2010)."""
    return (draws < value).double().sum(0) / (1 + len(draws))


def _cosine(a: Float[Tensor, " d"], b: Float[Tensor, " d"]) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=0)
