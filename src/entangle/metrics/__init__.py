"""Entanglement, superposition and similarity, each with its bound and its null: tensors in, tensors out."""

from entangle.metrics.statistics import (
    Estimate,
    auroc,
    bootstrap_counts,
    bootstrap_mean,
    holm,
    max_statistic_p,
    paired_difference,
    paired_permutation_test,
    wilson_interval,
)

__all__ = [
    "Estimate",
    "auroc",
    "bootstrap_counts",
    "bootstrap_mean",
    "holm",
    "max_statistic_p",
    "paired_difference",
    "paired_permutation_test",
    "wilson_interval",
]
