"""How entangled the two answers of a preference pair are in the model's hidden states."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entangle.errors import EntangleError


def ches(
    preferred: Float[Tensor, "batch pos d"],
    dispreferred: Float[Tensor, "batch other_pos d"],
    preferred_mask: Bool[Tensor, "batch pos"] | None = None,
    dispreferred_mask: Bool[Tensor, "batch other_pos"] | None = None,
    *,
    length_normalised: bool = True,
) -> Float[Tensor, " batch"]:
    """Centred hidden embedding similarity of preference pairs (CHES; Razin et al. 2024, arXiv 2410.08847).

    With sums H of the last hidden states (before the unembedding) that predict each token of an answer,
    CHES = H+ . H- - |H+|^2, as in the authors' code. Pairs of high CHES make preference training lower the likelihood
    of the *preferred* answer.

    Args:
        preferred: Hidden states that predict the tokens of the preferred answer: those of the last prompt token and of
            all answer tokens but the last.
        dispreferred: The same for the dispreferred answer.
        preferred_mask: True where `preferred` holds a state rather than padding; all by default.
        dispreferred_mask: The same for `dispreferred`.
        length_normalised: Use means in place of sums (their length-normalised CHES), without which long answers rank
            high or low by their length.

    Returns:
        One score per pair; 0 for equal answers. Scales with the square of the hidden states: rank pairs of one model,
        do not compare models.

    Example:
        >>> preferred, dispreferred = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.8, 0.6]]])
        >>> en.metrics.ches(preferred, dispreferred), en.metrics.ches(preferred, preferred)
        (tensor([-0.2000]), tensor([0.]))
    """
    plus = _total(preferred, preferred_mask, length_normalised)
    minus = _total(dispreferred, dispreferred_mask, length_normalised)
    if plus.shape != minus.shape:
        raise EntangleError(f"pairs must match in batch and width, not {tuple(plus.shape)} and {tuple(minus.shape)}")
    return (plus * (minus - plus)).sum(1)


def _total(states: Tensor, mask: Tensor | None, mean: bool) -> Float[Tensor, "batch d"]:
    if states.ndim != 3 or (mask is not None and mask.shape != states.shape[:2]):
        raise EntangleError(
            f"hidden states must be [batch, pos, d] with a mask [batch, pos], not {tuple(states.shape)}"
            + ("" if mask is None else f" and {tuple(mask.shape)}")
        )
    weights = torch.ones_like(states[..., 0]) if mask is None else mask.to(states)
    lengths = weights.sum(1, keepdim=True)
    if bool((lengths == 0).any()):
        raise EntangleError("an answer has no token; drop empty answers")
    total = torch.einsum("bpd,bp->bd", states, weights)
    return total / lengths if mean else total
