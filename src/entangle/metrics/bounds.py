"""How far apart N directions in M dimensions can be: lower bounds on the largest absolute cosine of a set."""

from __future__ import annotations

import math
from numbers import Real

from entangle.errors import EntangleError


def welch_bound(n_features: int, n_dims: int) -> float:
    """The least coherence of `n_features` directions in `n_dims` dimensions: sqrt((N - M) / ((N - 1) M)).

    Welch (1974). Met with equality by equiangular tight frames only, which needs N <= M(M + 1) / 2 in real space
    (Strohmer & Heath 2003); beyond that `orthoplex_bound` is tighter.

    Args:
        n_features: N, at least 1.
        n_dims: M, at least 1.

    Returns:
        The bound; 0 where N <= M, since N directions can then be orthogonal.

    What it cannot tell: it bounds the *largest* cosine of the set. Any one feature may be free of interference.

    Example:
        >>> en.metrics.welch_bound(12, 4)  # twelve features in four dimensions
        0.426
    """
    _check(n_features, n_dims)
    if n_features <= n_dims:
        return 0.0
    return math.sqrt((n_features - n_dims) / ((n_features - 1) * n_dims))


def orthoplex_bound(n_features: int, n_dims: int) -> float:
    """The least coherence where there are more directions than any equiangular tight frame holds: 1 / sqrt(M).

    The orthoplex bound of Conway, Hardin & Sloane (1996, "Packing lines, planes, etc."), from Rankin (1955). It holds
    only for N > M(M + 1) / 2 real directions.

    Args:
        n_features: N, at least 1.
        n_dims: M, at least 1.

    Returns:
        The bound; 0, which says nothing, where its condition fails.

    Example:
        >>> en.metrics.orthoplex_bound(12, 4), en.metrics.orthoplex_bound(10, 4)
        (0.5, 0.0)
    """
    _check(n_features, n_dims)
    return 1 / math.sqrt(n_dims) if n_features > n_dims * (n_dims + 1) // 2 else 0.0


def coherence_bound(n_features: int, n_dims: int) -> float:
    """The tighter of `welch_bound` and `orthoplex_bound`: no set of directions has a smaller coherence.

    Example:
        >>> en.metrics.coherence_bound(12, 4), en.metrics.welch_bound(12, 4)
        (0.5, 0.426)
    """
    return max(welch_bound(n_features, n_dims), orthoplex_bound(n_features, n_dims))


def _check(n_features: int, n_dims: int) -> None:
    if not (isinstance(n_features, Real) and isinstance(n_dims, Real) and n_features >= 1 and n_dims >= 1):
        raise EntangleError(f"a bound needs a feature and a dimension or more, not N={n_features!r}, M={n_dims!r}")
