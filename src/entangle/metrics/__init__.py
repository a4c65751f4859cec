"""Entanglement, superposition and similarity, each with its bound and its null: tensors in, tensors out."""

from entangle.metrics.bounds import coherence_bound, orthoplex_bound, welch_bound
from entangle.metrics.entanglement import babel, clusters, coherence, entanglement, interference
from entangle.metrics.neighbours import Partners, nearest_partners
from entangle.metrics.nulls import (
    random_cosine_cdf,
    random_entanglement_cdf,
    random_entanglement_draws,
    random_entanglement_mean,
    random_entanglement_quantile,
)
from entangle.metrics.statistics import (
    Estimate,
    auroc,
    bias_corrected_interval,
    bootstrap_counts,
    bootstrap_mean,
    holm,
    max_statistic_p,
    paired_difference,
    paired_permutation_test,
    wilson_interval,
)
from entangle.metrics.vectors import cosines, unit_vectors

__all__ = [
    "Estimate",
    "Partners",
    "auroc",
    "babel",
    "bias_corrected_interval",
    "bootstrap_counts",
    "bootstrap_mean",
    "clusters",
    "coherence",
    "coherence_bound",
    "cosines",
    "entanglement",
    "holm",
    "interference",
    "max_statistic_p",
    "nearest_partners",
    "orthoplex_bound",
    "paired_difference",
    "paired_permutation_test",
    "random_cosine_cdf",
    "random_entanglement_cdf",
    "random_entanglement_draws",
    "random_entanglement_mean",
    "random_entanglement_quantile",
    "unit_vectors",
    "welch_bound",
    "wilson_interval",
]
