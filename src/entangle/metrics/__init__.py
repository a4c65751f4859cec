"""Entanglement, superposition and similarity, each with its bound and its null: tensors in, tensors out."""

from entangle.metrics.bounds import coherence_bound, orthoplex_bound, welch_bound
from entangle.metrics.correlated import conditional_cosines
from entangle.metrics.dimension import intrinsic_dimension
from entangle.metrics.divergence import Compared, compared, kl_of, nats_of
from entangle.metrics.entanglement import babel, clusters, coherence, entanglement, interference
from entangle.metrics.inner_products import (
    causal_gram,
    gram_cosines,
    principal_angles,
    readout_cosines,
    subspace_overlap,
    unembedding_covariance,
    whitened_cosines,
)
from entangle.metrics.interaction import interaction_cosines, local_interaction_basis
from entangle.metrics.intervals.areas import auroc_interval
from entangle.metrics.intervals.bounded import Bounds, no_narrower
from entangle.metrics.intervals.prevalence import (
    Difference,
    ErrorRates,
    prevalence,
    prevalence_difference,
    unclipped_prevalence,
)
from entangle.metrics.intervals.ranking import auroc
from entangle.metrics.intervals.rates import clustered_rate, effective_number, paired_rate_interval, rate_interval
from entangle.metrics.intervals.ratios import fieller, fieller_of_sums, is_constant, least_variance
from entangle.metrics.intervals.rms import RootMeanSquare, root_mean_square
from entangle.metrics.neighbours import Partners, nearest_partners
from entangle.metrics.nulls import (
    random_cosine_cdf,
    random_entanglement_cdf,
    random_entanglement_draws,
    random_entanglement_mean,
    random_entanglement_quantile,
)
from entangle.metrics.preference import ches
from entangle.metrics.similarity import PairMoments, cca, cka, mmcs, mutual_knn, procrustes
from entangle.metrics.statistics import (
    Estimate,
    bias_corrected_interval,
    bootstrap_counts,
    bootstrap_mean,
    bootstrap_ratio,
    holm,
    max_statistic_p,
    paired_difference,
    paired_permutation_test,
    wilson_interval,
)
from entangle.metrics.superposition import (
    accessible_sparsity,
    capacity,
    dims_for_linear_access,
    effective_features,
    effective_rank,
    feature_dimensionality,
    features_per_dimension,
    leverage,
    participation_ratio,
    polysemanticity,
    stable_rank,
)
from entangle.metrics.vectors import DirectionsLike, as_vectors, cosines, massive_coordinates, unit_vectors

__all__ = [
    "Bounds",
    "Compared",
    "Difference",
    "DirectionsLike",
    "ErrorRates",
    "Estimate",
    "PairMoments",
    "Partners",
    "RootMeanSquare",
    "accessible_sparsity",
    "as_vectors",
    "auroc",
    "auroc_interval",
    "babel",
    "bias_corrected_interval",
    "bootstrap_counts",
    "bootstrap_mean",
    "bootstrap_ratio",
    "capacity",
    "causal_gram",
    "cca",
    "ches",
    "cka",
    "clustered_rate",
    "clusters",
    "coherence",
    "coherence_bound",
    "compared",
    "conditional_cosines",
    "cosines",
    "dims_for_linear_access",
    "effective_features",
    "effective_number",
    "effective_rank",
    "entanglement",
    "feature_dimensionality",
    "features_per_dimension",
    "fieller",
    "fieller_of_sums",
    "gram_cosines",
    "holm",
    "interaction_cosines",
    "interference",
    "intrinsic_dimension",
    "is_constant",
    "kl_of",
    "least_variance",
    "leverage",
    "local_interaction_basis",
    "massive_coordinates",
    "max_statistic_p",
    "mmcs",
    "mutual_knn",
    "nats_of",
    "nearest_partners",
    "no_narrower",
    "orthoplex_bound",
    "paired_difference",
    "paired_permutation_test",
    "paired_rate_interval",
    "participation_ratio",
    "polysemanticity",
    "prevalence",
    "prevalence_difference",
    "principal_angles",
    "procrustes",
    "random_cosine_cdf",
    "random_entanglement_cdf",
    "random_entanglement_draws",
    "random_entanglement_mean",
    "random_entanglement_quantile",
    "rate_interval",
    "readout_cosines",
    "root_mean_square",
    "stable_rank",
    "subspace_overlap",
    "unclipped_prevalence",
    "unembedding_covariance",
    "unit_vectors",
    "welch_bound",
    "whitened_cosines",
    "wilson_interval",
]
