"""The end of a model: where logits are a linear map of the last hidden state, gradients need not pass the vocabulary.

The gradient of log p(y) by the logits is one at y less p; by the hidden state before a linear map W it is the row
W[y] less the mean row p W, which all draws share. So a draw costs a look-up instead of a product with W.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from entangle.models import Handle


class Ending:
    """The output projection's input and output in one pass.

    Args:
        model: A causal language model.
    """

    def __init__(self, model: nn.Module) -> None:
        found: Any = getattr(model, "get_output_embeddings", lambda: None)()
        self._module: nn.Linear | None = found if type(found) is nn.Linear else None
        self._hidden: Tensor | None = None
        self._given: Tensor | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """See what passes for the length of a `with` block."""
        handle = Handle()

        def see(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            self._hidden, self._given = (arguments[0] if arguments else None), output

        try:
            if self._module is not None:
                handle.put(self._module, see, after=True)
            yield
        finally:
            handle.remove()

    def hidden(self, logits: Float[Tensor, "row pos vocab"]) -> Float[Tensor, "row pos d"] | None:
        """What the projection read, if it was a linear map and the logits are its very output; `None` otherwise."""
        if self._module is None or self._hidden is None or self._given is None:
            return None
        if self._hidden.shape[:-1] != logits.shape[:-1] or self._given.shape != logits.shape:
            return None
        with torch.no_grad():
            anew = nn.functional.linear(self._hidden[:1, :1], self._module.weight, self._module.bias)
            same = torch.equal(self._given.to(logits.dtype), logits) and torch.allclose(
                anew.to(logits.dtype), logits[:1, :1], rtol=1e-3, atol=1e-3
            )
        return self._hidden if same and self._hidden.requires_grad else None

    @torch.no_grad()
    def expected(self, probabilities: Float[Tensor, "row pos vocab"]) -> Float[Tensor, "row pos d"]:
        """The mean row p W of each position."""
        return probabilities @ self._weight.to(probabilities.dtype)

    @torch.no_grad()
    def slope(
        self,
        tokens: Int[Tensor, "row pos"],
        expected: Float[Tensor, "row pos d"],
        counted: Bool[Tensor, "row pos"],
    ) -> Float[Tensor, "row pos d"]:
        """The gradient of sum log p(tokens) over the counted positions, by the hidden state."""
        return (self._weight[tokens].to(expected.dtype) - expected) * counted[..., None]

    @property
    def _weight(self) -> Float[Tensor, "vocab d"]:
        if self._module is None:
            raise RuntimeError("the logits are no linear map")  # `hidden` was asked first
        return self._module.weight
