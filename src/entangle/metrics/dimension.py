"""Intrinsic dimension: how many coordinates a curved set of activations needs, by scikit-dimension's estimators."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError

Method = Literal["TwoNN", "MLE", "lPCA", "MOM", "TLE", "CorrInt"]


def intrinsic_dimension(x: Float[Tensor, "example d"], method: Method = "TwoNN", **options: object) -> float:
    """The dimension of the manifold that activations lie near.

    Args:
        x: Activations, some hundreds of examples or more, without duplicates.
        method: An estimator of scikit-dimension (`pip install scikit-dimension`): "TwoNN" (Facco et al. 2017), "MLE"
            (Levina & Bickel 2004), "lPCA", ...
        **options: For the estimator.

    Returns:
        The estimate.

    Raises:
        EntangleError: Scikit-dimension is not installed, the method is unknown, or there are too few distinct examples.

    What it cannot tell: all estimators fall short above some ten dimensions unless examples are very many, and noise
    raises them. Compare layers with the same number of examples, not absolute values.

    Example:
        >>> angle = 6.28 * torch.rand(500)
        >>> circle = torch.stack([angle.cos(), angle.sin(), 0 * angle], dim=1)
        >>> round(en.metrics.intrinsic_dimension(circle))
        1
    """
    try:
        from skdim import id as estimators
    except ImportError:
        raise EntangleError("intrinsic_dimension needs scikit-dimension: pip install scikit-dimension") from None
    if method not in Method.__args__:  # type: ignore[attr-defined]
        raise EntangleError(f"method must be one of {', '.join(Method.__args__)}, not {method!r}")  # type: ignore[attr-defined]
    rows = np.unique(x.detach().double().cpu().numpy(), axis=0)
    if x.ndim != 2 or len(rows) < 20 or not np.isfinite(rows).all():
        raise EntangleError(
            f"intrinsic dimension needs 20 distinct finite rows [example, d], not {len(rows)} of {tuple(x.shape)}"
        )
    return float(getattr(estimators, method)(**options).fit(rows).dimension_)
