"""Which tokens an edit is applied to."""

from __future__ import annotations

import torch
from torch import Tensor

from entangle.errors import EntangleError
from entangle.interventions.hooks.passes import Pass
from entangle.interventions.hooks.timeline import Timeline  # noqa: F401 (its name of old)

Tokens = str | int | Tensor
Keep = bool | Tensor


class Scope:
    """Which tokens: decides for each forward pass.

    Args:
        tokens: `"all"`; `"prompt"`; `"generated"`, everything after the prompt; an integer p, the tokens from position
            p of each text on, padding not counted, or for negative p from p before the end of its prompt on (-1: the
            prompt's last token and what follows); or a bool mask `[row, column]` over the padded prompts, False for
            everything after.

    Raises:
        EntangleError: If it is none of these.
    """

    def __init__(self, tokens: Tokens) -> None:
        known = (
            tokens in ("all", "prompt", "generated") if isinstance(tokens, str) else isinstance(tokens, int | Tensor)
        )
        if not known or isinstance(tokens, bool):
            raise EntangleError(
                f'tokens must be "all", "prompt", "generated", a position or a bool mask [row, column], got {tokens!r}'
            )
        if isinstance(tokens, Tensor) and (tokens.ndim != 2 or tokens.dtype != torch.bool):
            shape = f"{list(tokens.shape)} of {tokens.dtype}"
            raise EntangleError(f"a token mask must be bool [row, column], shaped as the input ids; got {shape}")
        self.tokens = tokens

    @property
    def is_all(self) -> bool:
        """Whether every token is in it, whatever the pass."""
        return isinstance(self.tokens, str) and self.tokens == "all"

    def keep(self, now: Pass, n_rows: int, device: torch.device) -> Keep:
        """The tokens of this pass that are in the scope.

        Args:
            now: The pass.
            n_rows: Rows of the batch.
            device: Where to put the answer.

        Returns:
            True for all, False for none, or a bool tensor `[row or 1, pos]`.

        Raises:
            EntangleError: If a mask does not fit the batch, or what the pass computes is not known.
        """
        if self.is_all:
            return True
        key = id(self), n_rows, device
        if key not in now.kept:
            now.kept[key] = self._keep(now, n_rows, device)
        kept: Keep = now.kept[key]
        return kept

    def _keep(self, now: Pass, n_rows: int, device: torch.device) -> Keep:
        if now.unknown is not None:
            raise EntangleError(f'{now.unknown}; only tokens="all" can be followed there, got tokens={self._spelled}')
        if isinstance(self.tokens, Tensor):
            return self._masked(self.tokens, now, n_rows, device)
        if isinstance(self.tokens, int):
            if self.tokens < 0 and now.start >= now.prompt:
                return True
            places, lengths = now.places(device)
            first = self.tokens if self.tokens >= 0 else (lengths + self.tokens).clamp_min(0)
            return places >= first
        in_prompt = self.tokens == "prompt"
        if now.start >= now.prompt:
            return not in_prompt
        if now.start >= 0 and now.end <= now.prompt:
            return in_prompt
        columns = now.columns(device)
        return (columns >= 0) & (columns < now.prompt) if in_prompt else columns >= now.prompt

    @property
    def _spelled(self) -> str:
        """The scope as a user would write it."""
        return "a mask" if isinstance(self.tokens, Tensor) else repr(self.tokens)

    def _masked(self, mask: Tensor, now: Pass, n_rows: int, device: torch.device) -> Keep:
        rows, columns = mask.shape
        if now.aside:
            raise EntangleError(
                "a token mask is of the prompts, but this pass computes another text beside them, such as a negative "
                'prompt: name the tokens by "prompt", "generated" or a position'
            )
        if columns != now.prompt or n_rows % rows or (n_rows != rows and not now.generating):
            raise EntangleError(
                f"the token mask is {rows} rows x {columns} columns, but the prompts are {n_rows} x {now.prompt}: "
                "shape it as the input ids"
            )
        if now.start >= columns:
            return False
        # generate() lays out beams and samples of a prompt as neighbouring rows.
        mask = mask.to(device).repeat_interleave(n_rows // rows, dim=0)[:, max(0, now.start) : now.end]
        ahead = max(0, -now.start)
        return torch.nn.functional.pad(mask, (ahead, now.size - ahead - mask.shape[1]))
