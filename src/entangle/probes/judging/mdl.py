"""Online minimum description length (Voita & Titov 2020): the bits that send labels to one who has the activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.errors import EntangleError
from entangle.probes.estimators import LogisticProbe
from entangle.probes.inputs import Cells, encode_labels
from entangle.probes.judging.calibration import log_loss
from entangle.probes.linear import BLOCK_BYTES
from entangle.probes.solving.solvers import warn_unconverged
from entangle.progress import progress_bar

PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class CodeLength:
    """The online code of the labels.

    Attributes:
        bits: Its length in each cell.
        uniform: Length of the code that knows nothing: `n log2 K`.
        unconverged: How many of each cell's probes did not converge; such a probe is not the minimum it stands for, and
            the code is not the one that was asked for.

    Example:
        >>> code = en.probes.online_mdl(acts["resid_post"], labels, progress=False)
        >>> code.uniform, bool((code.compression > 1).all())
        (96.0, True)
    """

    bits: Float[Tensor, "*grid"]
    uniform: float
    unconverged: Int[Tensor, "*grid"]

    @property
    def compression(self) -> Float[Tensor, "*grid"]:
        """How many times shorter than the uniform code: 1 is nothing known."""
        return self.uniform / self.bits


def online_mdl(
    x: Any, y: Any, *, C: float = 1.0, portions: Sequence[float] = PORTIONS, seed: int = 0, progress: bool = True
) -> CodeLength:
    """Send the labels portion by portion, each coded by a logistic probe fitted to those before it.

    The first portion is sent uniformly, as is any that follows labels of one class only.

    Args:
        x: Activations `[example, *grid, feature]`.
        y: One label per example.
        C: Inverse strength of the probe's penalty.
        portions: Where portions end, as rising shares of the examples, the last of them 1.
        seed: Seed of the order in which examples are sent.
        progress: Show a progress bar.

    Returns:
        The code, with the number of probes in each cell that did not converge; a warning names the cells.

    Raises:
        EntangleError: Portions that do not rise to 1, or anything `fit_probes` refuses.

    Example:
        >>> code = en.probes.online_mdl(acts["resid_post"][:, -1], labels, progress=False)
        >>> code.bits < code.uniform
        tensor(True)
    """
    cells = Cells(x)
    codes, classes = encode_labels(y, cells.n_examples)
    if list(portions) != sorted(set(portions)) or portions[0] <= 0 or portions[-1] != 1:
        raise EntangleError(f"portions must be rising shares of the examples that end in 1, not {tuple(portions)}")
    ends = sorted({math.ceil(portion * cells.n_examples) for portion in portions})
    order = torch.from_numpy(np.random.default_rng(seed).permutation(cells.n_examples))
    sent = codes[order]
    probe = LogisticProbe(C)
    bits = torch.full((cells.n_cells,), ends[0] * math.log2(len(classes)), dtype=torch.float64)
    unconverged = torch.zeros(cells.n_cells, dtype=torch.int64)
    with progress_bar(total=cells.n_cells, desc="description length", unit="cell", disable=not progress) as bar:
        for start, stop in cells.blocks(BLOCK_BYTES):
            rows = cells.read(start, stop, order)
            for known, end in pairwise(ends):
                if len(set(sent[:known].tolist())) < len(classes):
                    bits[start:stop] += (end - known) * math.log2(len(classes))
                    continue
                solution = probe.solver(rows[:, :known], classes)(sent[:known, None].to(rows.device))
                unconverged[start:stop] += (~solution.converged[:, 0]).cpu()
                scores = torch.baddbmm(
                    solution.intercept[:, 0, None], rows[:, known:end].double(), solution.coef[:, 0].mT
                )
                ordered = scores.transpose(0, 1).cpu()
                loss = log_loss(ordered[..., 0] if len(classes) == 2 else ordered, sent[known:end], len(classes))
                bits[start:stop] += loss * (end - known) / math.log(2)
            bar.update(stop - start)
    warn_unconverged(
        int(unconverged.sum()),
        cells.n_cells * (len(ends) - 1),
        f"probes of the code ({', '.join(cells.name(int(i)) for i in unconverged.nonzero()[:5, 0])})",
    )
    return CodeLength(
        bits.reshape(cells.grid), cells.n_examples * math.log2(len(classes)), unconverged.reshape(cells.grid)
    )
