"""Many linear problems at once: every cell of a grid, and every labelling of its examples, in one batch.

The smooth losses are minimised by L-BFGS, preconditioned by the bound `curvature * X'X` on their Hessian (Boehning &
Lindsay 1988). The bound does not depend on the labels, so one Gram matrix and one factorisation per cell serve the true
labels and all their permutations, and a step costs two products with the data. Only the gradient must be accurate, so
`float32` data suffice. Fewer examples than features are solved in the space that they span, where every minimum lies.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from entangle.probes.solving.losses import Labels, Loss

Rows = Float[Tensor, "cell example feature"]
Weights = Float[Tensor, "example response"]

TOLERANCE = {torch.float32: 1e-10, torch.float64: 1e-16}
"""Default `tol`: some hundred times what rounding leaves of the gradient, in units of the mean loss."""


@dataclass(frozen=True)
class Design:
    """The examples of some cells, centred: what every solver starts from, whatever the labels.

    Attributes:
        rows: `x - mean`; features without variance are 0.
        mean: Weighted mean of each feature.
        weights: Of the examples; each labelling may have its own, `[example, 1]` where all share them.
        exact: Whether products are summed in float64.

    Example:
        >>> design = en.probes.Design.of(torch.randn(1, 20, 3))  # one cell
        >>> design.rows.mean(1).abs().max() < 1e-6, design.gram.shape
        (tensor(True), torch.Size([1, 3, 3]))
    """

    rows: Rows
    mean: Float[Tensor, "cell feature"]
    weights: Weights
    exact: bool = False

    @classmethod
    def of(cls, x: Rows, weights: Weights | None = None, *, exact: bool = False) -> Design:
        """Centre a copy of `x`, in float64 if it is that and else in float32.

        Args:
            x: Examples of each cell.
            weights: Of the examples.
            exact: Sum products in float64: for closed forms, which invert the Gram matrix. Those that only start from
                it need it only nearly.
        """
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        rows = x.to(dtype).clone(memory_format=torch.contiguous_format)
        if weights is None:
            weights = rows.new_ones(rows.shape[1], 1)
            mean = rows.mean(1)
        else:
            weights = weights.to(rows)
            weight = weights.mean(1)
            mean = torch.einsum("n,cnd->cd", weight / weight.sum(), rows)
        rows -= mean.unsqueeze(1)
        power = torch.einsum("n,cnd->cd", weights.mean(1), rows.square()).double()
        # A constant feature leaves only the rounding of its mean.
        noise = 10 * torch.finfo(dtype).eps * mean.double().abs()
        constant = power <= noise.square() * float(weights.mean(1).sum())
        if bool(constant.any()):
            rows.masked_fill_(constant.unsqueeze(1), 0)
        return cls(rows, mean, weights, exact)

    @cached_property
    def gram(self) -> Float[Tensor, "cell feature feature"]:
        """Weighted `rows' rows` in float64, made when it is asked for: fewer examples than features do without."""
        weight = self.weights.mean(1)
        weighted = self.rows if bool((weight == 1).all()) else self.rows * weight.sqrt().unsqueeze(-1)
        return _exact_gram(weighted) if self.exact else (weighted.mT @ weighted).double()

    @cached_property
    def narrowed(self) -> tuple[Design, Float[Tensor, "cell feature example"]]:
        """Fewer examples than features in the space that they span, and its orthonormal basis."""
        basis, triangle = torch.linalg.qr(self.rows.mT.double())
        rows = triangle.mT.to(self.rows).contiguous()
        return Design(rows, rows.new_zeros(len(rows), rows.shape[2]), self.weights), basis


@dataclass(frozen=True)
class Solution:
    """Linear scores `x @ coef + intercept` for each cell and labelling, and how well they solve their problem.

    Attributes:
        coef: `output` is 1 for two classes and else counts the classes.
        intercept: In the units of the score.
        objective: The minimised function at the solution; NaN for closed forms.
        gap: Estimated distance of the objective from its minimum per unit of example weight: half the squared gradient
            in the metric of the preconditioner. 0 for closed forms.
        n_iter: Steps taken; 0 for closed forms.
        converged: Whether `gap` is within the tolerance.
    """

    coef: Float[Tensor, "cell response output feature"]
    intercept: Float[Tensor, "cell response output"]
    objective: Float[Tensor, "cell response"]
    gap: Float[Tensor, "cell response"]
    n_iter: int
    converged: Bool[Tensor, "cell response"]


def minimise(
    loss: Loss,
    design: Design,
    labels: Labels,
    n_classes: int,
    *,
    C: float = 1.0,
    tol: float | None = None,
    max_iter: int = 200,
    memory: int = 10,
    start: Solution | None = None,
) -> Solution:
    """Minimise `.5 |coef|^2 + C sum_i weight_i loss_i` for each cell and labelling; the intercept is free.

    Args:
        loss: What to minimise.
        design: The examples of each cell.
        labels: Class numbers of each example, one column per labelling.
        n_classes: How many classes there are.
        C: Inverse strength of the penalty on the coefficients (of the raw features), as in scikit-learn.
        tol: Stop once half the squared gradient, in the metric of the preconditioner and per unit of weight, is below
            this. It estimates how far the mean loss is above its minimum, and does not depend on the features' units.
        max_iter: Steps after which a problem counts as not converged.
        memory: Pairs kept by L-BFGS.
        start: Where to begin, such as the solution under another penalty.

    Returns:
        The solutions, those not converged among them: the caller decides what they are worth.

    Example:
        >>> x, y = acts["resid_post"][:, -1:].movedim(1, 0), torch.as_tensor(labels)[:, None]
        >>> solution = en.probes.minimise(en.probes.LogisticLoss(), en.probes.Design.of(x), y, n_classes=2)
        >>> solution.coef.shape, bool(solution.converged.all())
        (torch.Size([1, 1, 1, 32]), True)
    """
    tol = TOLERANCE[design.rows.dtype] if tol is None else tol
    if design.rows.shape[1] < design.rows.shape[2]:
        narrow, basis = design.narrowed
        begun = None if start is None else _projected(start, basis, design.mean)
        found = minimise(loss, narrow, labels, n_classes, C=C, tol=tol, max_iter=max_iter, memory=memory, start=begun)
        return _lifted(found, basis, design.mean)
    rows, weights = design.rows, C * design.weights.unsqueeze(-1)
    n_cells, n_examples, n_features = rows.shape
    targets = loss.targets(labels, n_classes, rows.dtype)
    shape = (n_cells, n_features + 1, *targets.shape[1:])
    total = weights.sum((0, 2)).expand(shape[2])
    bound = C * loss.curvature * design.gram
    inverse = _inverse_factor(bound, float(total.mean()) * loss.curvature, rows.dtype)
    ridge = torch.cat([rows.new_ones(n_features), rows.new_zeros(1)])[:, None, None]

    def precondition(g: Tensor) -> Tensor:
        flat = g.flatten(2)
        if flat.shape[-1] == 1:
            return ((flat.mT @ inverse.mT) @ inverse).mT.view(shape)  # as below
        return (inverse.mT @ (inverse @ flat)).view(shape)

    def scores(v: Tensor) -> Tensor:
        coef, intercept = v[:, :-1].flatten(2), v[:, -1:].flatten(2)
        # Transposed, a product with one column reads a matrix as it lies, many times as fast.
        product = (coef.mT @ rows.mT).mT if coef.shape[-1] == 1 else rows @ coef
        return product.add_(intercept).reshape(n_cells, n_examples, *shape[2:])

    def gradient(slope: Tensor, v: Tensor) -> Tensor:
        flat = slope.flatten(2)
        return torch.cat([(flat.mT @ rows).mT, flat.sum(1, keepdim=True)], 1).view(shape) + ridge * v

    if start is None:
        v, z = rows.new_zeros(shape), rows.new_zeros(n_cells, n_examples, *shape[2:])
    else:
        about_mean = start.intercept + torch.einsum("crod,cd->cro", start.coef, design.mean.double())
        v = torch.cat([start.coef.movedim(-1, 1), about_mean.unsqueeze(1)], 1).to(rows)
        z = scores(v)
    slope = loss.slope(z, targets) * weights
    g = gradient(slope, v)
    history = _History(memory)
    natural = precondition(g)
    for n_iter in range(max_iter + 1):
        gap = _inner(g, natural) / (2 * total)
        if bool((gap <= tol).all()) or n_iter == max_iter:
            break
        # Solved problems stand still while the others go on.
        step = -history.apply(g, natural).masked_fill((gap <= tol)[:, None, :, None], 0)
        along = scores(step)
        length, slope = _line_search(
            loss, targets, weights, z, along, _inner(ridge * v, step), _inner(ridge * step, step)
        )
        step *= length[:, None, :, None]
        z += along.mul_(length[:, None, :, None])
        v = v + step
        before, g = (g, natural), gradient(slope, v)
        natural = precondition(g)
        history.add(step, g - before[0], natural - before[1])
    coef = v[:, :-1].movedim(1, -1).double()
    intercept = v[:, -1].double() - torch.einsum("crod,cd->cro", coef, design.mean.double())
    objective = 0.5 * coef.square().sum((-2, -1)) + (loss.value(z, targets) * weights.squeeze(-1)).sum(
        1, dtype=torch.float64
    )
    return Solution(coef, intercept, objective, gap, n_iter, gap <= tol)


def _projected(solution: Solution, basis: Tensor, mean: Tensor) -> Solution:
    """A solution in the space that the examples span, about their mean: no penalised one has a part outside."""
    about_mean = solution.intercept + torch.einsum("crod,cd->cro", solution.coef, mean.double())
    return replace(solution, coef=torch.einsum("crod,cdk->crok", solution.coef, basis), intercept=about_mean)


def _lifted(solution: Solution, basis: Tensor, mean: Tensor) -> Solution:
    """Back from there."""
    coef = torch.einsum("crok,cdk->crod", solution.coef, basis)
    intercept = solution.intercept - torch.einsum("crod,cd->cro", coef, mean.double())
    return replace(solution, coef=coef, intercept=intercept)


def warn_unconverged(n: int, of: int, what: str) -> None:
    """Say that some fits did not reach their minimum, once for all of them.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     en.probes.warn_unconverged(3, 20, "LogisticProbe")
        ...
        >>> str(caught[0].message)
        '3 of 20 LogisticProbe did not converge: they are not the minimum; scale the features, or lower C'
    """
    if n:
        warnings.warn(
            f"{n} of {of} {what} did not converge: they are not the minimum; scale the features, or lower C",
            ConvergenceWarning,
            stacklevel=3,
        )


def _exact_gram(rows: Rows) -> Float[Tensor, "cell feature feature"]:
    """Products summed in float64, a bounded number of examples at a time."""
    gram = rows.new_zeros(rows.shape[0], rows.shape[2], rows.shape[2], dtype=torch.float64)
    for part in torch.split(rows, max(1, (1 << 23) // max(1, rows.shape[0] * rows.shape[2])), dim=1):
        wide = part.double()
        gram += wide.mT @ wide
    return gram


class _History:
    """The inverse Hessian of L-BFGS (Nocedal & Wright 2006, algorithm 7.4), started from the preconditioner.

    The preconditioner is linear, so what it makes of a gradient, kept with the gradient, gives what it makes of every
    combination of gradients that the recursion forms: one product with it per step instead of three.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.pairs: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.shrink: Tensor | float = 1.0

    def add(self, step: Tensor, change: Tensor, natural_change: Tensor) -> None:
        curvature = _inner(step, change)
        inverse = torch.where(curvature > 0, 1 / curvature, 0)
        self.pairs = [*self.pairs, (step, change, natural_change, inverse)][-self.memory :]
        size = _inner(change, natural_change)
        self.shrink = torch.where(curvature > 0, curvature / size, 1)[:, None, :, None]

    def apply(self, g: Tensor, natural: Tensor) -> Tensor:
        if not self.pairs:
            return natural
        q, r, parts = g, natural, []
        for step, change, natural_change, inverse in reversed(self.pairs):
            part = (inverse * _inner(step, q))[:, None, :, None]
            q = q - part * change
            r = r - part * natural_change
            parts.append(part)
        r = self.shrink * r
        for (step, change, _, inverse), part in zip(self.pairs, reversed(parts), strict=True):
            r = r + (part - (inverse * _inner(change, r))[:, None, :, None]) * step
        return r


def _line_search(
    loss: Loss, targets: Tensor, weights: Tensor, z: Tensor, along: Tensor, tilt: Tensor, bend: Tensor
) -> tuple[Tensor, Tensor]:
    """How far to go from scores `z` in the direction `along`, and the weighted slopes of the loss there.

    The objective is convex along the line, so its derivative alone brackets the minimum and no difference of two nearly
    equal objectives is ever formed. `tilt` and `bend` are the linear and quadratic parts that the penalty adds to that
    derivative.
    """

    def derivative(t: Tensor) -> tuple[Tensor, Tensor]:
        slope = loss.slope(torch.addcmul(z, along, t[:, None, :, None]), targets).mul_(weights)
        return _inner(slope, along) + tilt + t * bend, slope

    low = torch.zeros_like(tilt)
    start, _ = derivative(low)
    at_low, high, at_high = start, torch.full_like(low, torch.inf), torch.full_like(low, torch.nan)
    t = torch.ones_like(low)
    for _ in range(30):
        at_t, slope = derivative(t)
        wrong = (at_t < 0.9 * start) | (at_t > -0.3 * start)
        if not bool(wrong.any()):
            break
        short = at_t < 0
        low, at_low = torch.where(short, t, low), torch.where(short, at_t, at_low)
        high, at_high = torch.where(short, high, t), torch.where(short, at_high, at_t)
        secant = low - at_low * (high - low) / (at_high - at_low)
        inside = torch.clamp(secant, low + 0.1 * (high - low), high - 0.1 * (high - low))
        t = torch.where(wrong, torch.where(high.isinf(), 2 * t, inside), t)
    return t, slope


def _inner(a: Tensor, b: Tensor) -> Float[Tensor, "cell response"]:
    """Inner product over all but the cells and labellings, of float32 products summed pairwise."""
    return (a * b).sum((1, 3))


def _inverse_factor(curvature: Tensor, intercept: float, dtype: torch.dtype) -> Tensor:
    """`inv(L)` for the bound `LL'` on the Hessian in coefficients and intercept, which centring makes independent."""
    n_cells, n_features, _ = curvature.shape
    bound = curvature.new_zeros(n_cells, n_features + 1, n_features + 1)
    bound[:, :-1, :-1] = curvature
    diagonal = bound.diagonal(dim1=-2, dim2=-1)
    # Keep rounding, of the Gram matrix and of what follows, from making the bound indefinite: it need only be near.
    diagonal *= 1 + 10 * n_features * torch.finfo(dtype).eps
    diagonal += 1
    diagonal[:, -1] = intercept
    factor, failed = torch.linalg.cholesky_ex(bound.to(dtype))
    if bool(failed.any()):
        factor = torch.linalg.cholesky(bound)
    identity = torch.eye(n_features + 1, dtype=factor.dtype, device=bound.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).to(dtype)
    return inverse
