"""Control tasks (Hewitt & Liang 2019): does a probe read the concept, or does it just remember words?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics.intervals.rates import paired_rate_interval
from entangle.metrics.statistics import Estimate
from entangle.probes.fit import fit_probes
from entangle.probes.grid import ProbeGrid
from entangle.probes.inputs import encode_groups, encode_labels
from entangle.probes.judging.scores import correct
from entangle.probes.splits import three_way


@dataclass(frozen=True)
class Selectivity:
    """A probe beside one of the same kind that had to remember a random label for each word type.

    Attributes:
        task: The probes of the concept.
        control: The probes of the control labels, reported on the same examples.
        difference: Accuracy of the task minus that of the control, with its paired interval over examples.

    Example:
        >>> last_words = [text.split()[-1] for text in texts]
        >>> result = en.probes.selectivity(acts["resid_post"], labels, last_words, n_permutations=0, progress=False)
        >>> result.task.shape, result.control.shape
        ((2,), (2,))
    """

    task: ProbeGrid
    control: ProbeGrid
    difference: Estimate


def control_labels(types: Sequence[Any], labels: Any, *, seed: int = 0) -> Int[Tensor, " example"]:
    """Every word type's own random class, drawn as often as the classes occur.

    Args:
        types: The word type of each example (its token, say).
        labels: The labels whose classes and shares are imitated.
        seed: Seed of the draw.

    Raises:
        EntangleError: Too few types to draw every class.

    Example:
        >>> control = en.probes.control_labels(["gem", "turnip", "gem", "beacon"], [0, 1, 0, 1])
        >>> bool(control[0] == control[2])  # a word keeps the class that it was given at random
        True
    """
    codes, classes = encode_labels(labels)
    units = encode_groups(types, len(codes))
    if units is None:
        raise EntangleError("control labels need the word type of each example")
    share = torch.bincount(codes).double().numpy() / len(codes)
    drawn = np.random.default_rng(seed).choice(len(classes), int(units.max()) + 1, p=share)
    control = torch.from_numpy(drawn)[units]
    if len(set(control.tolist())) < len(classes):
        raise EntangleError(
            f"{int(units.max()) + 1} word types are too few to draw every class; give more, or another seed"
        )
    return control


def selectivity(x: Any, y: Any, types: Sequence[Any], *, seed: int = 0, **options: Any) -> Selectivity:
    """Fit the same probes to the concept and to control labels.

    A word type must occur in the fit and in the report part to be remembered, so examples are split one by one:
    grouping them by type would leave the control at chance and say nothing.

    Args:
        x: Activations of tokens, `[example, *grid, feature]`.
        y: One label per token.
        types: The word type of each token.
        seed: Seed of the control labels and of the split.
        **options: For `fit_probes`.

    Example:
        >>> last_words = [text.split()[-1] for text in texts]
        >>> result = en.probes.selectivity(acts["resid_post"], labels, last_words, n_permutations=0, progress=False)
        >>> result.difference.value.shape  # of each layer: how much better than random classes of words
        torch.Size([2])
    """
    codes, _ = encode_labels(y, positive=options.pop("positive", None))
    control = control_labels(types, codes, seed=seed)
    joint = codes * (int(control.max()) + 1) + control
    split = options.pop("split", None) or three_way(joint, seed=seed)
    task, other = (fit_probes(x, labels, split=split, seed=seed, **options) for labels in (codes, control))
    hits = [correct(grid.report_scores, grid.report_labels, grid.n_classes) for grid in (task, other)]
    return Selectivity(task, other, paired_rate_interval(hits[0] - hits[1], level=task.settings["level"]))
