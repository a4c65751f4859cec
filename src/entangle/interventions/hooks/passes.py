"""One forward pass, told in columns of the padded text whatever the model's arguments are called."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from entangle.errors import EntangleError


@dataclass(eq=False)
class Pass:
    """One forward pass: the columns of the padded text it computes.

    Columns below 0 are virtual: what prompt tuning and its relatives put before a text is part of no prompt.

    Attributes:
        start: Columns before these, computed in earlier passes and cached; negative where virtual ones are computed.
        size: Columns computed now.
        prompt: Columns of the prompt; the columns after it are generated.
        given: The mask, 0 at padding, for all columns from 0 up to the last one computed; `None` where nothing is
            padded.
        generating: Whether `generate` runs it.
        positions_given: The positions that the model was told, `[row or 1, pos]`.
        virtual: Columns before the text, which the positions given may count or not; `None` where they may begin
            anywhere, since `generate` itself says which columns these are.
        aside: Whether it computes another text than the one that `generate` goes on with, such as a negative prompt.
        unknown: Why its columns are not known; `None` where they are.
        texts: How many prompts `generate` was given; each may be several neighbouring rows, of beams or samples. `None`
            outside it.
        unplaced: Why the tokens' places in their texts are not known, although their columns are.
        kept: What each scope on the model found in this pass, so that many places ask once.
    """

    start: int
    size: int
    prompt: int
    given: Tensor | None
    generating: bool
    positions_given: Tensor | None = None
    virtual: int | None = 0
    aside: bool = False
    unknown: str | None = None
    unplaced: str | None = None
    texts: int | None = None
    kept: dict[Any, Any] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The columns of the text up to and with the last one computed now."""
        return self.start + self.size

    @functools.cached_property
    def mask(self) -> Bool[Tensor, "row column"] | None:
        """The mask as bool."""
        return None if self.given is None else self.given.bool()

    @property
    def padded(self) -> bool:
        """Whether there may be padding among the tokens computed now."""
        return self.given is not None and not (self.generating and self.start >= self.prompt)  # it pads prompts only

    @property
    def real(self) -> Bool[Tensor, "row pos"] | None:
        """True at real tokens among those computed now, virtual ones among them; `None` where all are."""
        if not self.padded or self.mask is None:
            return None
        return _from(self.mask, self.start, True)

    def columns(self, device: torch.device) -> Int[Tensor, "1 pos"]:
        """The column of each token computed now."""
        return torch.arange(self.start, self.end, device=device)[None]

    def places(self, device: torch.device) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
        """Each token's place in its own text, padding not counted, and the length of the prompt that it belongs to.

        Returns:
            The places, -1 at virtual tokens and before the first token; and the lengths, `[row or 1, pos or 1]`.

        Raises:
            EntangleError: If the positions that the model was given are those of no text that the mask and the cache
                leave room for.
        """
        if self.unplaced is not None:
            raise EntangleError(self.unplaced)
        if self.mask is None:
            counted = self.columns(device).clamp_min(-1)
            lengths = torch.full((1, 1), self.prompt, device=device)
        else:
            mask = self.mask.to(device)
            counted = _from(mask.long().cumsum(1) - 1, self.start, -1)
            ahead = max(0, self.prompt - mask.shape[1])  # a long prompt may run in chunks; its padding is on the left
            lengths = mask[:, : self.prompt].sum(1, keepdim=True) + ahead
        given = self.positions_given
        if given is None or self.start < 0:
            return counted, lengths
        given = given.to(device)
        real = torch.ones_like(given, dtype=torch.bool) if self.mask is None else _from(self.mask, self.start, True)
        differences = given - counted
        differences = differences[real.to(device).expand(differences.shape)]
        shift = int(differences[0]) if len(differences) else 0
        if bool((differences == shift).all()) and (self.virtual is None or shift in (0, self.virtual)):
            return counted, lengths
        return self._packed(given)

    def _packed(self, given: Int[Tensor, "row pos"]) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
        """Several texts in one row, each of which begins at position 0."""
        begins = given == 0
        steps = given[:, 1:] == given[:, :-1] + 1
        if (
            self.start
            or self.mask is not None
            or not bool(begins[:, 0].all())
            or not bool((steps | begins[:, 1:]).all())
        ):
            first, last = int(given.min()), int(given.max())
            raise EntangleError(
                "a position as a scope counts a text's tokens, but the position_ids given "
                f"({first} to {last}, for columns {self.start} to {self.end - 1}) count otherwise than its mask and "
                "cache do: leave position_ids out, or name the tokens by a bool mask"
            )
        text = begins.long().cumsum(1) - 1
        lengths = torch.zeros_like(given).scatter_add_(1, text, torch.ones_like(given))
        return given, lengths.gather(1, text)


def _from(per_column: Tensor, start: int, virtual: bool | int) -> Tensor:
    """The columns from `start` on, with a filling for virtual ones."""
    if start >= 0:
        return per_column[:, start:]
    return torch.nn.functional.pad(per_column, (-start, 0), value=virtual)
