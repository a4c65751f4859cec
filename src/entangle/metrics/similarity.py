"""How alike two sets of activations of the same examples are: between layers, between models.

All but `mutual_knn` and `mmcs` depend on the activations only through their joint second moments, which `PairMoments`
accumulates batch by batch: any number of examples, exactly, in memory quadratic in the width.
"""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.vectors import DirectionsLike, unit_vectors

Rows = Float[Tensor, "example d"]


class PairMoments:
    """Joint moments of two representations of the same examples, in float64; feed batches to `update`.

    Example:
        >>> x, y = torch.randn(100, 4), torch.randn(100, 6)
        >>> moments = en.metrics.PairMoments()
        >>> for batch in range(0, 100, 20):
        ...     _ = moments.update(x[batch : batch + 20], y[batch : batch + 20])
        ...
        >>> bool(torch.isclose(moments.cka(), en.metrics.cka(x, y)))
        True
    """

    def __init__(self) -> None:
        self.n = 0

    def update(self, x: Rows, y: Float[Tensor, "example e"]) -> Self:
        """Add examples; both must have the same rows in the same order."""
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) == 0:
            raise EntangleError(
                f"similarity needs [example, d] and [example, e] of the same examples, "
                f"not {tuple(x.shape)} and {tuple(y.shape)}"
            )
        x, y = x.detach().double(), y.detach().double()
        if not bool(x.isfinite().all() and y.isfinite().all()):
            raise EntangleError("the activations hold NaN or infinity; drop those examples from both")
        if self.n == 0:
            self._origins = x.mean(0), y.mean(0)  # nothing below depends on the origin, but rounding does
            self._sums = {key: x.new_zeros(()) for key in ("x", "y", "xx", "yy", "xy", "x|x", "x|y", "y|x", "y|y")}
            self._diagonals = {key: x.new_zeros(()) for key in ("x", "y", "xx", "yy", "xy")}
        elif (x.shape[1], y.shape[1]) != tuple(len(o) for o in self._origins):
            raise EntangleError(f"batches must keep their widths; got {x.shape[1]} and {y.shape[1]}")
        a, b = x - self._origins[0], y - self._origins[1]
        p, q = a.square().sum(1), b.square().sum(1)
        added = {"x": a.sum(0), "y": b.sum(0), "xx": a.T @ a, "yy": b.T @ b, "xy": a.T @ b}
        added |= {"x|x": p @ a, "x|y": q @ a, "y|x": p @ b, "y|y": q @ b}
        self._sums = {key: self._sums[key] + value for key, value in added.items()}
        diagonals = {"x": p.sum(), "y": q.sum(), "xx": p @ p, "yy": q @ q, "xy": p @ q}
        self._diagonals = {key: self._diagonals[key] + value for key, value in diagonals.items()}
        self.n += len(x)
        return self

    def covariance(self, which: str) -> Tensor:
        """Centred sums of products: `which` is "xx", "yy" or "xy"."""
        first, second = which[0], which[1]
        self._check(2)
        return self._sums[which] - torch.outer(self._sums[first], self._sums[second]) / self.n

    def hsic(self, which: str, *, unbiased: bool) -> Tensor:
        """Hilbert-Schmidt independence criterion with linear kernels: "xx", "yy" or "xy", up to a shared factor."""
        if not unbiased:
            return self.covariance(which).square().sum()
        self._check(4)
        s, n, first, second = self._sums, self.n, which[0], which[1]
        # Song et al. (2012, eq. 5) on kernels without diagonal, each term from sums over examples.
        together = s[which].square().sum() - self._diagonals[which]
        of_first = s[first].square().sum() - self._diagonals[first]
        of_second = s[second].square().sum() - self._diagonals[second]
        rows = (
            s[first] @ s[which] @ s[second]
            - s[first] @ s[f"{first}|{second}"]
            - s[second] @ s[f"{second}|{first}"]
            + self._diagonals[which]
        )
        return together + of_first * of_second / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)

    def cka(self, *, unbiased: bool = False) -> Tensor:
        """See `cka`."""
        xx, yy = (self.hsic(which, unbiased=unbiased) for which in ("xx", "yy"))
        if float(self.hsic("xx", unbiased=False)) == 0 or float(self.hsic("yy", unbiased=False)) == 0:
            raise EntangleError("one of the representations does not vary; nothing can be compared with it")
        ratio: Tensor = self.hsic("xy", unbiased=unbiased) / (xx.clamp(min=0) * yy.clamp(min=0)).sqrt()
        return ratio

    def procrustes(self) -> Tensor:
        """See `procrustes`."""
        lengths = self.covariance("xx").trace() * self.covariance("yy").trace()
        if float(lengths) == 0:
            raise EntangleError("one of the representations does not vary; nothing can be compared with it")
        nuclear: Tensor = torch.linalg.svdvals(self.covariance("xy")).sum()
        return nuclear / lengths.sqrt()

    def cca(self, *, keep: float = 1.0) -> Tensor:
        """See `cca`."""
        whiten_x, whiten_y = (_whitener(self.covariance(which), keep) for which in ("xx", "yy"))
        correlations: Tensor = torch.linalg.svdvals(whiten_x.T @ self.covariance("xy") @ whiten_y)
        return correlations.clamp(max=1)

    def _check(self, needed: int) -> None:
        if self.n < needed:
            raise EntangleError(f"this needs {needed} examples or more, not {self.n}")


def cka(x: Rows, y: Float[Tensor, "example e"], *, unbiased: bool = False) -> Float[Tensor, ""]:
    """Linear centred kernel alignment (Kornblith et al. 2019, section 3): |X'Y|_F^2 / (|X'X|_F |Y'Y|_F).

    Unchanged by rotating, shifting or scaling either side as a whole, not by other linear maps: directions of large
    variance decide.

    Args:
        x: Activations at one place.
        y: Activations of the same examples at another; its width may differ.
        unbiased: Use the unbiased HSIC (Song et al. 2012; Nguyen et al. 2021). The biased form tends to 1 for unrelated
            activations as the width approaches the number of examples; the unbiased one to 0, and it may be negative.

    Returns:
        1 for representations that are equal up to rotation and scale.

    What it cannot tell: a high value may come from a few outlying dimensions or examples alone.

    Example:
        >>> x = torch.randn(200, 3)
        >>> en.metrics.cka(x, 2 * x.flip(1) + 1)
        tensor(1.0000, dtype=torch.float64)
        >>> en.metrics.cka(acts["resid_post"][:, 0], acts["resid_post"][:, 1]) > 0.9  # two layers
        tensor(True)
    """
    return PairMoments().update(x, y).cka(unbiased=unbiased)


def cca(x: Rows, y: Float[Tensor, "example e"], *, keep: float = 1.0) -> Float[Tensor, " component"]:
    """Canonical correlations, largest first (Hotelling 1936).

    Their mean is the similarity of SVCCA (Raghu et al. 2017) with `keep=0.99`, of mean CCA with `keep=1`. Unchanged by
    any invertible linear map of either side (with `keep=1`), and therefore 1 throughout as soon as examples are no more
    than dimensions: have many times more, or keep less.

    Args:
        x: Activations at one place.
        y: Activations of the same examples at another.
        keep: Share of each side's variance to keep, in leading principal components.

    Example:
        >>> x = torch.randn(200, 3)
        >>> en.metrics.cca(x, x @ torch.randn(3, 3))  # any invertible map
        tensor([1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """
    return PairMoments().update(x, y).cca(keep=keep)


def procrustes(x: Rows, y: Float[Tensor, "example e"]) -> Float[Tensor, ""]:
    """How well one representation can be rotated onto the other: |X'Y|_* / (|X|_F |Y|_F), both centred.

    In [0, 1]; the squared Procrustes distance of Ding et al. (2021) and Williams et al. (2021) between the normalised
    representations is 2 - 2 times this. Unchanged by rotation, shift and scale. Unrelated activations are well above 0
    where the width is not small beside the number of examples.

    Example:
        >>> x = torch.randn(200, 3)
        >>> en.metrics.procrustes(x, 2 * x.flip(1) + 1)
        tensor(1.0000, dtype=torch.float64)
    """
    return PairMoments().update(x, y).procrustes()


def mutual_knn(x: Rows, y: Float[Tensor, "example e"], k: int = 10, *, block: int = 2048) -> Float[Tensor, ""]:
    """Share of each example's k nearest neighbours, by cosine, that both representations agree on, averaged.

    The mutual nearest-neighbour metric of Huh et al. (2024), "The Platonic representation hypothesis"; as in their code
    on features of length one. k / (examples - 1) by chance. Neighbours are among all examples, so both sets must be
    whole; memory is `block` rows of cosines at a time, and time quadratic in the examples.

    Args:
        x: Activations at one place.
        y: Activations of the same examples at another.
        k: Neighbours, fewer than the other examples.
        block: Examples looked at together.

    Example:
        >>> x = torch.randn(200, 3)
        >>> en.metrics.mutual_knn(x, 2 * x.flip(1)), en.metrics.mutual_knn(x, torch.randn(200, 3)) < 0.2
        (tensor(1.), tensor(True))
    """
    if len(x) != len(y):
        raise EntangleError(f"mutual_knn needs the same examples twice, not {len(x)} and {len(y)}")
    a, b = unit_vectors(x), unit_vectors(y)
    if not 1 <= k < len(a):
        raise EntangleError(f"k must be from 1 to {len(a) - 1}, the number of other examples, not {k}")
    shared = 0
    for start in range(0, len(a), block):
        near = [_nearest(side, start, block, k) for side in (a, b)]
        shared += int((near[0][:, :, None] == near[1][:, None, :]).sum())
    return torch.tensor(shared / (len(a) * k))


def mmcs(
    a: DirectionsLike, b: DirectionsLike, *, one_to_one: bool = False, block: int = 4096
) -> Float[Tensor, " feature"]:
    """Cosine of each feature of one dictionary with its match in another; the mean is the MMCS.

    Sharkey et al. (2022). By default each feature takes its nearest, so that several may share a match and the measure
    is not symmetric; `one_to_one` pairs features off by the best assignment (Hungarian algorithm).

    Args:
        a: `[feature, d]`.
        b: `[other, d]` in the same space; for a one-to-one match at least as many as in `a`.
        one_to_one: Match each feature of `b` at most once; cubic in time, quadratic in memory.
        block: Features looked at together.

    Returns:
        Signed cosines, one per feature of `a`. By chance, what `random_entanglement_mean(len(b) + 1, d)` gives for the
        absolute value.

    Example:
        >>> en.metrics.mmcs(torch.eye(3), torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]))
        tensor([0.6000, 0.8000, 1.0000])
    """
    u, v = unit_vectors(a), unit_vectors(b)
    if u.shape[1] != v.shape[1]:
        raise EntangleError(f"dictionaries of {u.shape[1]} and {v.shape[1]} dimensions cannot be matched")
    if not one_to_one:
        best = [(u[i : i + block] @ v.to(u).T).amax(1) for i in range(0, len(u), block)]
        return torch.cat(best).clamp(-1, 1)
    if len(u) > len(v):
        raise EntangleError(f"a one-to-one match of {len(u)} features needs as many in the other, not {len(v)}")
    cosine = (u @ v.to(u).T).clamp(-1, 1)
    rows, columns = linear_sum_assignment(cosine.detach().cpu().numpy(), maximize=True)
    return cosine[rows, columns]


def _nearest(unit: Rows, start: int, block: int, k: int) -> Tensor:
    cosine = unit[start : start + block] @ unit.T
    rows = torch.arange(len(cosine))
    cosine[rows, rows + start] = -torch.inf
    return cosine.topk(k, dim=1).indices


def _whitener(covariance: Float[Tensor, "d d"], keep: float) -> Float[Tensor, "d component"]:
    """Maps to uncorrelated coordinates of unit variance, along the components that hold `keep` of the variance."""
    if not 0 < keep <= 1:
        raise EntangleError(f"keep is a share of the variance in (0, 1], not {keep}")
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    if float(values[0]) <= 0:
        raise EntangleError("one of the representations does not vary; nothing can be compared with it")
    real = values > values[0] * len(values) * torch.finfo(values.dtype).eps
    before = values.clamp(min=0).cumsum(0) - values
    kept = real & (before < keep * values.clamp(min=0).sum())
    whitener: Tensor = vectors[:, kept] / values[kept].sqrt()
    return whitener
