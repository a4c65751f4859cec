"""Which texts do what: to learn on, to stop by, and to keep the budget on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from entangle.errors import EntangleError
from entangle.learning.texts import Row, rows_of
from entangle.probes import encode_groups

FEWEST = 10
"""Pairs of texts, below which there is nothing to learn on and to stop by."""
SPARED = 0.2
"""Share of the pairs to stop by."""


@dataclass(frozen=True)
class Sides:
    """Texts as rows; of two sides, the one to steer toward comes first.

    Attributes:
        learned: Either side, to learn on.
        judged: Either side, to stop by.
        neutral: Neutral texts to learn the budget on.
        priced: Others, on which the budget is kept.
    """

    learned: list[list[Row]]
    judged: list[list[Row]]
    neutral: list[Row]
    priced: list[Row]

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        toward: Sequence[str],
        away: Sequence[str],
        prompts: tuple[Sequence[str], Sequence[str]] | None,
        selection: tuple[Sequence[str], Sequence[str]] | None,
        groups: Sequence[Any] | None,
        clean: Sequence[str] | None,
        max_length: int,
        generator: torch.Generator,
    ) -> Self:
        """Read and divide them; arguments as for `learn`.

        Raises:
            EntangleError: Too few texts, or sides that are not pairs.
        """
        if len(toward) != len(away):
            raise EntangleError(
                f"learning needs pairs, a text to steer toward and one to steer away from; got {len(toward)} and "
                f"{len(away)}: give as many"
            )
        sides = [
            rows_of(model, tokenizer, texts, heads, max_length)
            for texts, heads in zip((toward, away), prompts or (None, None), strict=True)
        ]
        if selection is None:
            fit, held = split(len(toward), groups, generator)
            judged = [[rows[i] for i in held] for rows in sides]
            sides = [[rows[i] for i in fit] for rows in sides]
        else:
            judged = [rows_of(model, tokenizer, texts, None, max_length) for texts in selection]
        neutral = [*sides[0], *sides[1]] if clean is None else rows_of(model, tokenizer, clean, None, max_length)
        if min(len(sides[0]), len(neutral) // 2) < FEWEST // 2 or len(judged[0]) != len(judged[1]) or not judged[0]:
            raise EntangleError(
                f"learning needs {FEWEST} pairs or more, {FEWEST} neutral texts, and pairs to stop by; got "
                f"{len(sides[0])} to learn on, {len(neutral)} and {len(judged[0])}: give more"
            )
        order = torch.randperm(len(neutral), generator=generator).tolist()
        half = len(neutral) // 2
        return cls(sides, judged, [neutral[i] for i in order[half:]], [neutral[i] for i in order[:half]])


def split(n: int, groups: Sequence[Any] | None, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Pairs to learn on and to stop by; no group is in both.

    Raises:
        EntangleError: Not one group for each pair.
    """
    names = list(range(n)) if groups is None else list(groups)
    if len(names) != n:
        raise EntangleError(f"groups must name one for each of {n} pairs; got {len(names)}")
    if groups is not None:
        names = encode_groups(names, n).tolist()  # type: ignore[union-attr]  # there are some; none may be missing
    distinct = list(dict.fromkeys(names))
    order = torch.randperm(len(distinct), generator=generator).tolist()
    spared = {distinct[i] for i in order[: max(1, round(SPARED * len(distinct)))]}
    return [i for i in range(n) if names[i] not in spared], [i for i in range(n) if names[i] in spared]
