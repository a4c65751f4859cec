"""The tokens that tell two kinds of text apart best, for a direction of the unembedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from entangle.errors import EntangleError
from entangle.models.rows import UNLIMITED, encode


def telling_tokens(
    tokenizer: Any, texts: Sequence[str], target: Bool[Tensor, " text"], *, n: int = 20
) -> tuple[list[int], list[int]]:
    """Tokens that texts of a class use more than the others do, and those that they use less.

    Ranked by log-odds over their standard error, with the counts of all texts as an informative prior (Monroe, Colaresi
    and Quinn 2008, "Fightin' words", eq. 16 and 22): rare tokens that one class uses by chance do not lead. A token
    counts once a text.

    Args:
        tokenizer: Makes tokens of texts.
        texts: Texts of both classes.
        target: Which of them are of the class.
        n: Tokens on each side; half of those that the texts use where they are fewer.

    Returns:
        The tokens' numbers, most telling first: of the class, and of the others.

    Raises:
        EntangleError: One class alone.

    Example:
        >>> more, less = en.evaluation.telling_tokens(tokenizer, texts, torch.tensor(labels) == 1, n=3)
        >>> len(more), len(less), set(more) & set(less)
        (3, 3, set())
    """
    target = torch.as_tensor(target).bool()
    if len(target) != len(texts) or not 0 < int(target.sum()) < len(texts):
        raise EntangleError("telling tokens need texts of both classes, and a mark for each text")
    rows = encode(tokenizer, texts, max_length=UNLIMITED, add_special_tokens=False)
    size = max(max(row, default=0) for row in rows) + 1
    counts = torch.zeros(2, size, dtype=torch.float64)
    for row, is_target in zip(rows, target.tolist(), strict=True):
        counts[int(is_target)][torch.tensor(sorted(set(row)), dtype=torch.long)] += 1
    prior = counts.sum(0)
    used = prior.nonzero()[:, 0]
    prior = prior[used]
    mixed = counts[:, used] + prior
    odds = (mixed / (mixed.sum(1, keepdim=True) - mixed)).log()
    z = (odds[1] - odds[0]) / mixed.reciprocal().sum(0).sqrt()
    order = used[z.sort(stable=True).indices].tolist()
    n = min(n, len(order) // 2)
    return order[::-1][:n], order[:n]
