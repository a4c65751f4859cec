"""A causal model's head by itself: its own forward, with the result of its body given to it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from entangle.models.hooks import replaced_in


class Head:
    """What makes logits of the last hidden states: the model's own forward, with its body's result given to it.

    Made by `run_body`. The model itself is not touched: hooks on it do not run, other threads may use it meanwhile.

    Args:
        owner: The model whose forward calls the body and then the head.
        body: The body's path in it.
        output: What the body returned.
        key: Where the hidden states are in that; None where it is the tensor itself.
    """

    def __init__(self, owner: Any, body: str, output: Any, key: Any) -> None:
        # Without the hidden states themselves, which may be large and are not used.
        blank = None if key is None else replaced_in(output, key, torch.empty(0))
        self.body = _Given(blank, key)
        self.owner = _with(owner, body, self.body)
        embeddings = owner.get_output_embeddings() if hasattr(owner, "get_output_embeddings") else None
        names = [name for name, module in owner._modules.items() if module is embeddings]
        linear = embeddings if type(embeddings) is nn.Linear and names else None
        self._chosen = None if linear is None else _Chosen(linear)
        self._narrow = None if self._chosen is None else _with(self.owner, names[0], self._chosen)

    def __call__(self, states: Float[Tensor, "token d"]) -> Float[Tensor, "token vocab"]:
        """The logits of hidden states, in the model's own type."""
        return self._logits(self.owner, states)

    def of_tokens(
        self, states: Float[Tensor, "token d"], tokens: Int[Tensor, " token"]
    ) -> Float[Tensor, " token"] | None:
        """The logit of one token for each hidden state, without the others; None where the head is no plain matrix."""
        if self._narrow is None or self._chosen is None:
            return None
        self._chosen.tokens = tokens
        return self._logits(self._narrow, states)[:, 0]

    def _logits(self, owner: Any, states: Float[Tensor, "token d"]) -> Float[Tensor, "token logit"]:
        self.body.states = states[None]
        ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        output = owner.forward(input_ids=ids, use_cache=False)
        logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
        return logits[0]


class _Given(nn.Module):
    """Stands where a body stands and returns the hidden states that are given to it."""

    def __init__(self, output: Any, key: Any) -> None:
        super().__init__()
        self.output, self.key = output, key
        self.states: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.states if self.key is None else replaced_in(self.output, self.key, self.states)  # type: ignore[arg-type]


class _Chosen(nn.Module):
    """Stands where a linear head stands and computes one logit of each hidden state."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.tokens: Tensor | None = None

    def forward(self, states: Float[Tensor, "1 token d"]) -> Float[Tensor, "1 token 1"]:
        logits = (states * self.weight[self.tokens]).sum(-1, keepdim=True)
        return logits if self.bias is None else logits + self.bias[self.tokens][None, :, None]


def _with(owner: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """A shallow copy of a module with another part in one place: same weights, nothing changed in the original."""
    name, _, rest = path.partition(".")
    inner = owner._modules[name]
    other = copy.copy(owner)
    other._modules = {**owner._modules, name: _with(inner, rest, module) if rest and inner is not None else module}
    return other
