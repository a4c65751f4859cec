"""What probes are given: a grid of activations, read a few cells at a time, and labels of any kind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.data import read_labels
from entangle.errors import EntangleError

Classes = npt.NDArray[Any]


class Cells:
    """`[example, *grid, feature]` as a row of cells, of which a block at a time is brought into memory and checked.

    Args:
        x: A tensor, an array (memory-mapped ones included), or anything with a `shape` that gives an array for `x[:,
            i:j]`.
        device: Where blocks go; by default where a tensor already is, else the CPU.
    """

    def __init__(self, x: Any, *, device: torch.device | str | None = None) -> None:
        if not hasattr(x, "shape"):
            x = np.asarray(x)
        self.shape = tuple(int(size) for size in x.shape)
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise EntangleError(
                f"activations must be [example, *grid, feature], none of them empty; got shape {self.shape}"
            )
        self.n_examples, *grid, self.n_features = self.shape
        self.grid = tuple(grid)
        self.n_cells = math.prod(self.grid)
        self.device = device if device is not None else (x.device if isinstance(x, Tensor) else "cpu")
        self.x = x.detach() if isinstance(x, Tensor) else x

    def name(self, cell: int) -> str:
        """The index of a cell in the grid, for messages."""
        index = self.index(cell)
        return f"cell ({', '.join(map(str, index))})" if index else "the activations"

    def index(self, cell: int) -> list[int]:
        """The index of a cell along each axis of the grid."""
        return [int(i) for i in np.unravel_index(cell, self.grid)] if self.grid else []

    def read(
        self,
        start: int,
        stop: int,
        examples: Int[Tensor, " row"] | None = None,
        *,
        broken: dict[int, str] | None = None,
    ) -> Float[Tensor, "cell row feature"]:
        """Cells `start` to `stop`, of the given examples or all, in float32 (float64 if they are that).

        Args:
            start: The first cell.
            stop: The cell after the last.
            examples: Numbers of the examples; all by default.
            broken: Takes the reason for each cell that is not finite, which is then read as zeros.

        Raises:
            EntangleError: A value is NaN or infinite, and there is no `broken`; says where.
        """
        block = self._slice(start, stop)
        if examples is not None:
            block = block[examples.to(block.device)]
        block = block.to(self.device, torch.float64 if block.dtype == torch.float64 else torch.float32).transpose(0, 1)
        # A sum is finite only if its terms are: one pass, and only a failure looks closer.
        if not bool(block.sum().isfinite()) and not bool(block.isfinite().all()):
            is_broken = (~block.isfinite()).flatten(1).any(1)
            for cell in is_broken.nonzero()[:, 0].tolist():
                row, feature = (int(i) for i in (~block[cell].isfinite()).nonzero()[0])
                example = row if examples is None else int(examples[row])
                reason = (
                    f"activations hold NaN or inf: example {example}, {self.name(start + cell)}, feature {feature} is "
                    f"{block[cell, row, feature].item()}; leave such examples out, or capture in a wider dtype"
                )
                if broken is None:
                    raise EntangleError(reason)
                broken[start + cell] = reason
            block = torch.where(is_broken[:, None, None], 0, block)
        return block

    def blocks(self, n_bytes: int, extra_columns: int = 0) -> Iterator[tuple[int, int]]:
        """Ranges of cells whose examples, with `extra_columns` more numbers for each, take about `n_bytes`."""
        size = max(1, n_bytes // (4 * self.n_examples * (self.n_features + extra_columns)))
        for start in range(0, self.n_cells, size):
            yield start, min(start + size, self.n_cells)

    def _slice(self, start: int, stop: int) -> Float[Tensor, "example cell feature"]:
        if isinstance(self.x, Tensor | np.ndarray):
            part = self.x.reshape(self.n_examples, self.n_cells, self.n_features)[:, start:stop]
            return part if isinstance(part, Tensor) else torch.from_numpy(_as_float(part))
        inner = math.prod(self.grid[1:])  # a store is cut along its first grid axis
        first, last = start // inner, -(-stop // inner)
        outer = self.x[:, first:last] if self.grid else self.x[:]
        part = outer if isinstance(outer, Tensor) else torch.from_numpy(_as_float(np.asarray(outer)))
        flat = part.reshape(self.n_examples, -1, self.n_features)
        return flat[:, start - first * inner : stop - first * inner]


def encode_labels(
    y: Any, n_examples: int | None = None, *, positive: Any = None, in_sorted_order: bool = False
) -> tuple[Int[Tensor, " example"], Classes]:
    """Labels of any kind as class numbers 0, 1, ..., of which two are ordered by the rules of `entangle.data.labels`.

    Args:
        y: One label per example.
        n_examples: How many examples there are, if that is to be checked.
        positive: The label that becomes 1, all others becoming 0.
        in_sorted_order: Keep the classes as numpy sorts them, as scikit-learn asks of its estimators.

    Returns:
        The class number of each example, and the classes.

    Raises:
        EntangleError: Labels of another length or of more than one dimension, missing, mixed or continuous ones, or one
            class only.
    """
    labels = read_labels(y, n_examples, positive=positive, in_sorted_order=in_sorted_order)
    classes = labels.classes
    if len(classes) < 2:
        raise EntangleError(f"a probe needs two classes or more, but every label is one class: {classes.tolist()}")
    if len(classes) > max(2, len(labels) // 2):
        raise EntangleError(
            f"labels must name classes, but {len(classes)} of {len(labels)} differ; threshold or group them first"
        )
    return torch.from_numpy(labels.codes), classes


def encode_groups(
    groups: Sequence[Any] | npt.ArrayLike | Tensor | None, n_examples: int
) -> Int[Tensor, " example"] | None:
    """Groups of any kind as 0, 1, ..., or None.

    Raises:
        EntangleError: Not one group per example, or a missing group.

    Example:
        >>> en.probes.encode_groups(["b", "a", "b"], 3)
        tensor([1, 0, 1])
    """
    if groups is None:
        return None
    names = groups.detach().cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if names.shape != (n_examples,):
        raise EntangleError(f"groups must name one for each of {n_examples} examples; got shape {names.shape}")
    # Among names numpy would write NaN as one, and all that are missing would be one group.
    missing = pd.isna(names) if names.dtype.kind not in "OUS" else pd.isna(pd.Series(list(groups), dtype=object))  # type: ignore[arg-type]
    if np.any(missing):
        raise EntangleError(
            f"groups must name one for each example, but example {int(np.argmax(missing))} has NaN or None: give those "
            "without a group one of their own"
        )
    try:
        return torch.from_numpy(np.unique(names, return_inverse=True)[1].reshape(-1).astype(np.int64))
    except TypeError:
        raise EntangleError("groups must be of one kind, names or numbers, not both: write them one way") from None


def _as_float(part: npt.NDArray[Any]) -> npt.NDArray[np.floating[Any]]:
    if part.dtype.kind not in "fiub":
        raise EntangleError(f"activations must be numbers, not {part.dtype}")
    return np.ascontiguousarray(part, dtype=np.float64 if part.dtype == np.float64 else np.float32)
