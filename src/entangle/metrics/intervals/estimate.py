"""A value with the interval around it, and the few helpers that everything which makes one shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike
from torch import Tensor

from entangle.errors import EntangleError

_BLOCK = 1 << 23  # elements of one block of counts: 64 MB in float64


class Estimate(NamedTuple):
    """A value and the interval around it: three floats, or three tensors of one shape.

    Example:
        >>> estimate = en.metrics.Estimate(0.5, 0.4, 0.6)
        >>> estimate.columns("accuracy")
        {'accuracy': 0.5, 'accuracy_low': 0.4, 'accuracy_high': 0.6}
        >>> en.metrics.Estimate.of({"ce": 2.6, "ce_low": 2.5, "ce_high": 2.7}, "ce")
        Estimate(value=2.6, low=2.5, high=2.7)
    """

    value: float | Tensor
    low: float | Tensor
    high: float | Tensor

    def columns(self, name: str) -> dict[str, Any]:
        """The three columns of a table: `name`, `name_low` and `name_high`; single numbers as floats."""
        numbers = [part if isinstance(part, Tensor) and part.ndim else float(part) for part in self]
        return dict(zip(_names(name), numbers, strict=True))

    @classmethod
    def of(cls, row: Any, name: str) -> Estimate:
        """What `columns` wrote, from anything that columns are looked up in: a mapping, a row of a table, a table.

        Raises:
            EntangleError: One of the three columns is missing.
        """
        missing = [column for column in _names(name) if column not in row]
        if missing:
            raise EntangleError(f"an estimate of {name!r} needs the columns {', '.join(_names(name))}; no {missing[0]}")
        return cls(*(row[column] for column in _names(name)))

    @property
    def is_bounded(self) -> bool:
        """Whether both ends are finite everywhere: False where the data exclude nothing on one side, or are NaN."""
        return all(bool(torch.as_tensor(end, dtype=torch.float64).isfinite().all()) for end in (self.low, self.high))


def _names(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def shaped(value: Tensor, low: Tensor, high: Tensor, shape: Sequence[int]) -> Estimate:
    """Floats for the single number of a vector of examples, else tensors of the shape of a cell."""
    if not len(shape):
        return Estimate(float(value), float(low), float(high))
    return Estimate(*(part.reshape(tuple(shape)) for part in (value, low, high)))


def finite(values: Tensor | ArrayLike | Sequence[float], what: str) -> Tensor:
    """As a float64 tensor on the CPU with at least one value, all finite."""
    try:
        x = (values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))).double()
    except (TypeError, ValueError, RuntimeError):
        raise EntangleError(
            f"{what} must hold one number per example or test; got other things among them: turn names into 0 and 1, "
            "and leave out what is missing"
        ) from None
    if x.ndim == 0 or x.numel() == 0:
        raise EntangleError(f"{what} must hold one value per example or test; got shape {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise EntangleError(f"{what} holds {int((~x.isfinite()).sum())} of {x.numel()} values that are not finite")
    return x


def check_level(level: float) -> None:
    """Refuse a coverage that is not a share."""
    if not (math.isfinite(level) and 0 < level < 1):
        raise EntangleError(f"level must lie strictly between 0 and 1, such as 0.95, not {level}")


def group_indices(groups: ArrayLike | None, n: int) -> Int[Tensor, " example"]:
    """Groups of any sortable kind as 0, 1, 2...; every example its own without them."""
    if groups is None:
        return torch.arange(n)
    names = np.asarray(groups)
    if names.shape != (n,):
        raise EntangleError(f"groups must name a group for each of {n} examples, not have shape {names.shape}")
    # numpy would write what is missing among names as a name, and all of it is one group.
    missing = pd.isna(names) if names.dtype.kind not in "OUS" else pd.isna(pd.Series(list(groups), dtype=object))  # type: ignore[arg-type]
    if np.any(missing):
        raise EntangleError(
            f"groups are missing (None or NaN) for {int(np.sum(missing))} of {n} examples: name a group of its own for "
            "each that has none"
        )
    try:
        return torch.from_numpy(np.unique(names, return_inverse=True)[1].reshape(-1))
    except TypeError:
        raise EntangleError("groups must be of one kind, names or numbers, not both: write them one way") from None


def by_group(
    values: Float[Tensor, "example *cell"], groups: ArrayLike | None
) -> tuple[Float[Tensor, "group cell"], Float[Tensor, " group"]]:
    """Sums over each group, cells flattened, and how many examples each has; two groups or more."""
    index = group_indices(groups, len(values))
    n_groups = int(index.max()) + 1
    if n_groups < 2:
        raise EntangleError(f"an interval needs at least 2 examples (or groups), not {n_groups}; give more")
    cells = values.flatten(1) if values.ndim > 1 else values[:, None]
    sums = cells.new_zeros(n_groups, cells.shape[1]).index_add_(0, index, cells)
    return sums, torch.bincount(index, minlength=n_groups).to(cells)


def quantile(level: float, freedom: float | None = None) -> float:
    """Of the normal distribution, or of Student's t with so many degrees of freedom: the two-sided critical value."""
    from scipy import stats

    return float(stats.norm.ppf((1 + level) / 2) if freedom is None else stats.t.ppf((1 + level) / 2, freedom))


def is_one_of(values: Shaped[Tensor, "..."], *allowed: float) -> bool:
    """Whether every value is one of a few."""
    return bool(torch.isin(values, values.new_tensor(allowed)).all())


def block_sizes(rows: int, row_length: int) -> list[int]:
    """How many rows of this length to take at once, until all are taken, within a bounded memory."""
    block = max(1, _BLOCK // row_length)
    return [min(block, rows - start) for start in range(0, rows, block)]
