"""Two next-token distributions beside each other, token by token, from their logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK = 2**18  # logits compared at once: what a processor's cache holds of two tensors and what is made of them
_FAR = 50.0  # nats: how much likelier a token may become for single precision to see all of what it takes


class Compared(NamedTuple):
    """What two distributions say of tokens, one number per token.

    Attributes:
        nats: Cross-entropy of the token under the second.
        plain_nats: The same under the first.
        kl: KL(first || second), in nats.
        same: Whether both have one likeliest token.

    Example:
        >>> logits = torch.zeros(3, 5)
        >>> en.metrics.compared(logits, logits, torch.tensor([0, 1, 2])).kl.tolist()
        [0.0, 0.0, 0.0]
    """

    nats: Float[Tensor, " token"]
    plain_nats: Float[Tensor, " token"]
    kl: Float[Tensor, " token"]
    same: Float[Tensor, " token"]


def nats_of(logits: Float[Tensor, "token vocab"], targets: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """Cross-entropy of each target, in nats, in double precision.

    Args:
        logits: Next-token logits.
        targets: The tokens that came.

    Example:
        >>> en.metrics.nats_of(torch.zeros(1, 8), torch.tensor([3])).round(decimals=4)  # log 8
        tensor([2.0794], dtype=torch.float64)
    """
    parts = [
        _exponentials(rows.float())[1] - rows.gather(-1, ids[:, None])[:, 0].double()
        for rows, ids in _blocks(logits, targets)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def compared(
    plain: Float[Tensor, "token vocab"], changed: Float[Tensor, "token vocab"], targets: Int[Tensor, " token"]
) -> Compared:
    """Both distributions' cross-entropy, the divergence between them, and whether they agree.

    Args:
        plain: Logits of the first.
        changed: Logits of the second.
        targets: The tokens that came.

    Example:
        >>> plain, changed = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> en.metrics.compared(plain, changed, torch.tensor([1])).same  # another token is likeliest now
        tensor([0.], dtype=torch.float64)
    """
    parts: list[list[Tensor]] = [[], [], [], []]
    for first, second, ids in _blocks(plain, changed, targets):
        p, q = first.float(), second.float()
        weights, p_sum = _exponentials(p)
        nats = (
            total - logits.gather(-1, ids[:, None])[:, 0].double()
            for logits, total in ((q, _exponentials(q)[1]), (p, p_sum))
        )
        same = (_likeliest(p) == _likeliest(q)).double()
        for part, value in zip(parts, (*nats, _kl(p, q, weights), same), strict=True):
            part.append(value)
    return Compared(*(torch.cat(part) if part else torch.zeros(0, dtype=torch.float64) for part in parts))


def kl_of(p: Float[Tensor, "token vocab"], q: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    """KL(p || q) of logits, never below 0; a token that p forbids adds nothing.

    With d = q - p, known exactly where the two are near, and x = d less its mean under p,
    KL = log(1 + sum p (exp(x) - 1 - x)): no term is negative, so single precision holds the smallest divergence. The
    rounding of the mean enters squared. Where the second makes some token so much likelier that single precision does
    not see what it was before, or forbids one, the sum is taken in double precision instead.

    Args:
        p: Logits of the first distribution.
        q: Logits of the second.

    Returns:
        Nats per token, in double precision.

    Example:
        >>> logits = torch.randn(2, 50)
        >>> en.metrics.kl_of(logits, logits + 3.0).abs().max() < 1e-12  # a constant changes no distribution
        tensor(True)
    """
    if not len(p):
        return p.new_zeros(0, dtype=torch.float64)
    values = []
    for first, second in _blocks(p, q):
        one, other = first.float(), second.float()
        values.append(_kl(one, other, _exponentials(one)[0]))
    return torch.cat(values)


def _kl(
    p: Float[Tensor, "token vocab"], q: Float[Tensor, "token vocab"], weights: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    """The same of rows that stay in a cache, with the first's probabilities."""
    d = q - p
    mean = (weights * d).sum(-1, keepdim=True)
    x = d.sub_(mean)
    most, least = x.amax(-1), x.amin()
    nats = torch.expm1(x).sub_(x).clamp_(min=0).mul_(weights).sum(-1).double().log1p()
    if not bool((most - nats < _FAR).all()) or not bool(torch.isfinite(least)):
        return _kl_double(p, q)
    return nats


def _exponentials(logits: Float[Tensor, "token vocab"]) -> tuple[Float[Tensor, "token vocab"], Float[Tensor, " token"]]:
    """Probabilities, and the logarithm of the sum of exponentials: as exact as single precision, so that sums over
    tokens do not depend on their order, and given in double."""
    weights = logits.softmax(-1)
    weights.div_(weights.sum(-1, keepdim=True))  # of a quarter of a million tokens softmax's own sum is off by 1e-5
    log_sum = logits.amax(-1).double() - weights.amax(-1).double().log()
    return weights, log_sum.float().double()


def _likeliest(logits: Float[Tensor, "token vocab"]) -> Int[Tensor, " token"]:
    """The first of the likeliest tokens; by numpy on a CPU, which finds it ten times faster than torch."""
    return logits.argmax(-1) if logits.device.type != "cpu" else torch.from_numpy(logits.detach().numpy().argmax(-1))


def _kl_double(p: Float[Tensor, "token vocab"], q: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    wide_p, wide_q = (x.double().log_softmax(-1) for x in (p, q))
    return torch.where(wide_p > -torch.inf, wide_p.exp() * (wide_p - wide_q), 0.0).sum(-1).clamp(min=0)


def _blocks(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of several tensors, few enough of them to stay in a cache."""
    size = max(1, _BLOCK // first.shape[-1])
    yield from zip(*(torch.split(x, size) for x in (first, *others)), strict=True)
