"""A score's first step back: from what is said of a token to the hidden states, a few positions at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.models.readout import logit_chunks

BLOCK = 2**18
"""Logits worked on at once: what a processor's cache holds."""
RUN = 512
"""Tokens that are drawn from together: a running sum is made over one such run alone."""


def state_slopes(
    head: Any,
    states: Float[Tensor, "token k"],
    targets: Int[Tensor, " token"],
    counted: Bool[Tensor, "row pos"],
    draws: int,
    seeds: Sequence[tuple[int, int]],
    logits: int,
) -> Float[Tensor, "which token k"]:
    """Gradients of log p by the hidden states of the tokens that count: of the text's next token, then of each draw.

    The slope of log p(y) in the logits is one at y less the probabilities. What the probabilities give is the same for
    every y and goes back through the head once; a single logit of a plain matrix goes back through one of its rows. So
    the head's price does not grow with the draws.

    Args:
        head: Makes logits of hidden states.
        states: Of the tokens that count, row after row.
        targets: The text's own next tokens.
        counted: Which tokens of the batch these are.
        draws: Next tokens drawn from the model's own distribution at each.
        seeds: Of each row's draws.
        logits: Numbers of logits computed at once, at most.

    Raises:
        EntangleError: Logits that are not finite.
    """
    uniform = torch.cat([_uniform(row, draws, seed) for row, seed in zip(counted, seeds, strict=True)])
    with torch.no_grad():
        vocabulary = head(states[:1].detach()).shape[-1]
    slopes = torch.empty(1 + draws, *states.shape, device=states.device)
    for part in logit_chunks(len(states), vocabulary, logits):
        x = states[part].detach().requires_grad_()
        outputs = head(x)
        probabilities, draws_of = _said(outputs.detach(), uniform[part].to(states.device))
        tokens = torch.cat([targets[part][None], draws_of.T])
        (shared,) = torch.autograd.grad(outputs, x, probabilities, retain_graph=True)
        for number, row in enumerate(_single(head, x, outputs, tokens)):
            slopes[number, part] = row.float() - shared.float()
    return slopes


def _single(
    head: Any, x: Float[Tensor, "token k"], outputs: Float[Tensor, "token vocab"], tokens: Int[Tensor, "which token"]
) -> list[Float[Tensor, "token k"]]:
    """Gradients of single logits by the hidden states."""
    which = tokens.shape[0]
    if hasattr(head, "of_tokens"):
        copies = x.detach().repeat(which, 1).requires_grad_()
        single = head.of_tokens(copies, tokens.flatten())
        if single is not None:
            wanted = torch.cat([outputs.detach().gather(-1, each[:, None])[:, 0] for each in tokens])
            if torch.allclose(single.detach(), wanted, rtol=0.0, atol=1e-2 * float(wanted.abs().max())):
                return list(torch.autograd.grad(single.sum(), copies)[0].view(which, *x.shape))
    return [
        torch.autograd.grad(outputs, x, torch.zeros_like(outputs).scatter_(1, each[:, None], 1.0), retain_graph=True)[0]
        for each in tokens
    ]


def _uniform(counted: Bool[Tensor, " pos"], draws: int, seed: tuple[int, int]) -> Float[Tensor, "token draw"]:
    """What decides a row's draws: it depends on the row's own seed and positions alone."""
    places = counted.nonzero()[:, 0].cpu()
    generator = torch.Generator().manual_seed(mixed(*seed, 0))
    return torch.rand(int(places.max()) + 1, draws, generator=generator, dtype=torch.float64)[places]


def _said(
    logits: Float[Tensor, "token vocab"], uniform: Float[Tensor, "token draw"]
) -> tuple[Float[Tensor, "token vocab"], Int[Tensor, "token draw"]]:
    """Probabilities in the model's own type, and next tokens drawn from what they are in single precision.

    As many positions at a time as stay in a cache: none of what is made on the way is as large as the logits.

    Raises:
        EntangleError: Logits that are not finite.
    """
    probabilities = torch.empty_like(logits)
    tokens = []
    for part in logit_chunks(len(logits), logits.shape[-1], BLOCK):
        exact = logits[part].softmax(-1, dtype=torch.float32)
        if not bool(torch.isfinite(exact.amax(-1)).all()):
            raise EntangleError("the model's logits are not finite on these texts: load it in a wider dtype")
        probabilities[part] = exact
        tokens.append(_drawn(exact, uniform[part]))
    return probabilities, torch.cat(tokens)


def _drawn(
    probabilities: Float[Tensor, "token vocab"], uniform: Float[Tensor, "token draw"]
) -> Int[Tensor, "token draw"]:
    """Next tokens by inverse transform, in two steps: which run of `RUN` tokens, by the runs' sums, then which in it.

    A running sum over a quarter of a million tokens takes as long as the head that made them; sums of runs do not.
    """
    token, vocabulary = probabilities.shape
    if not uniform.shape[1]:
        return torch.zeros(token, 0, dtype=torch.long, device=probabilities.device)
    runs = nn.functional.pad(probabilities, (0, -vocabulary % RUN)).view(token, -1, RUN)
    ends = runs.sum(-1).double().cumsum(-1)
    target = uniform * ends[:, -1:]
    run = torch.searchsorted(ends, target)
    before = nn.functional.pad(ends, (1, 0)).gather(-1, run)
    inside = runs[torch.arange(token, device=run.device)[:, None], run].double().cumsum(-1)
    within = torch.minimum(target - before, inside[..., -1])  # which rounding may exceed, and no token is behind
    return run * RUN + torch.searchsorted(inside, within[..., None])[..., 0]


def mixed(seed: int, number: int, stream: int) -> int:
    """One seed of three numbers."""
    return (seed * 1_000_003 + number * 2 + stream) % 2**63
