"""Every reading of "the entanglement of a feature" in a model of Markov chains, side by side.

Li et al. 2025 do not say which probe gives a feature its direction, where in the model, or among which others its
entanglement is taken. Each choice here is one cell of a table: feature x direction x scope x site x partners.

In every model each class has the same number of examples, and examples can be put in an order in which all models have
the same labels although their chains differ. So one linear problem with many cells, the library's own probes, serves
all models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from entangle.errors import EntangleError
from entangle.probes.estimators import LogisticProbe, make_probe

Feature = Literal["chain, start", "chain, token", "chain"]
Direction = Literal["mean_difference", "logistic", "lda", "ridge", "random"]
Scope = Literal["joint", "per token"]
Partners = Literal["all", "different next token"]

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
PARTNERS: tuple[Partners, ...] = get_args(Partners)
# The paper's words taken by the letter, and the definition under which its effect has a reason to appear.
LITERAL = {"feature": "chain, start", "direction": "logistic", "scope": "per token", "partners": "all"}
MOTIVATED = {
    "feature": "chain, token",
    "direction": "mean_difference",
    "scope": "joint",
    "partners": "different next token",
}


@dataclass(frozen=True)
class Classes:
    """Activations sorted into the classes of one feature, chains slowest.

    Attributes:
        feature: What a class is.
        scope: "joint", or "per token" for problems that each see the activations at one current token.
        examples: [model, layer, token, class, example, d]; one "token" where joint.
        chain: [class], the chain of each class.
        next_token: [model, token, class], the state that follows; None where a class does not determine it.
    """

    feature: Feature
    scope: Scope
    examples: Float[Tensor, "model layer token class example d"]
    chain: Int[Tensor, " class"]
    next_token: Int[Tensor, "model token class"] | None


def sort_into_classes(
    residuals: Float[Tensor, "model layer chain start pos d"],
    sequences: Int[Tensor, "model chain start pos"],
    next_state: Int[Tensor, "model chain state"],
) -> Iterator[Classes]:
    """The activations of every chain from every start, once for every feature and scope.

    Args:
        residuals: Of sequences without noise.
        sequences: Their tokens.
        next_state: Of each model's chains.

    Raises:
        EntangleError: Where the length is not a multiple of the number of states: then classes differ in size.
    """
    _, n_chains, n_states, length = sequences.shape
    if length % n_states:
        raise EntangleError(f"length must be a multiple of the {n_states} states to balance the classes, not {length}")
    joint = residuals.unsqueeze(2)
    each_chain = torch.arange(n_chains)
    # At a position, each state occurs in exactly one of a chain's sequences: the one from start_of.
    start_of = sequences.argsort(dim=2)  # [model, chain, state, pos]
    index = start_of[:, None, ..., None].expand(-1, residuals.shape[1], -1, -1, -1, residuals.shape[-1])
    by_token = residuals.gather(3, index)  # [model, layer, chain, state, pos, d]
    # The same, with the positions of each start side by side.
    order = start_of.argsort(dim=-1, stable=True)[:, None, ..., None].expand_as(index)
    by_start = by_token.gather(4, order)
    by_start = by_start.view(
        *by_start.shape[:4], n_states, length // n_states, -1
    )  # [model, layer, chain, token, start, example, d]

    of_pair = each_chain.repeat_interleave(n_states)
    at_token = next_state.mT  # [model, token, chain]
    yield Classes("chain, start", "joint", joint.flatten(3, 4), of_pair, None)
    per_token = by_start.transpose(2, 3).flatten(3, 4)
    yield Classes("chain, start", "per token", per_token, of_pair, at_token.repeat_interleave(n_states, dim=2))
    yield Classes("chain, token", "joint", by_token.unsqueeze(2).flatten(3, 4), of_pair, next_state.flatten(1)[:, None])
    yield Classes("chain", "joint", joint.flatten(4, 5), each_chain, None)
    yield Classes("chain", "per token", by_token.transpose(2, 3), each_chain, at_token)


def directions(
    classes: Classes, direction: Direction, *, generator: torch.Generator
) -> Float[Tensor, "model layer token class d"]:
    """A direction for every class against the rest, by the library's probes; or a random one.

    Args:
        classes: The activations.
        direction: "random" ignores them: the null for the same number of features in the same space.
        generator: For random directions.
    """
    shape = classes.examples.shape
    if direction == "random":
        return torch.randn(*shape[:4], shape[-1], generator=generator)
    n_classes, n_examples = shape[3:5]
    x = classes.examples.flatten(3, 4).flatten(0, 2)
    # A looser tolerance than for reported accuracies: two digits of a cosine are wanted.
    probe = LogisticProbe(tol=1e-5) if direction == "logistic" else make_probe(direction)
    labels = torch.eye(n_classes, dtype=torch.long).repeat_interleave(n_examples, dim=0)
    solution = probe.solver(x, np.array([0, 1]))(labels)
    return solution.coef[:, :, 0].float().view(*shape[:4], -1)


def pool_tokens(
    classes: Classes, vectors: Float[Tensor, "model layer token class d"]
) -> tuple[Classes, Float[Tensor, "model layer 1 pair d"]]:
    """Directions of chains that were each fitted at one token, as one set of features (chain, token)."""
    n_tokens = vectors.shape[2]
    if classes.feature != "chain" or classes.next_token is None:
        raise EntangleError(f"only directions of chains per token form (chain, token) features, not {classes.feature}")
    chain = classes.chain.repeat_interleave(n_tokens)
    next_token = classes.next_token.mT.flatten(1)[:, None]
    pooled = Classes("chain, token", "per token", classes.examples, chain, next_token)
    return pooled, vectors.transpose(2, 3).flatten(2, 3)[:, :, None]


def masked_entanglement(
    vectors: Float[Tensor, "*batch feature d"], partners: Bool[Tensor, "*#batch feature feature"]
) -> Float[Tensor, "*batch feature"]:
    """E_i = max |cos(v_i, v_j)| over the partners j of i only, for many sets at once; NaN where i has no partner."""
    unit = F.normalize(vectors, dim=-1)
    cosine = (unit @ unit.mT).abs().clamp(max=1)
    others = partners & ~torch.eye(vectors.shape[-2], dtype=torch.bool)
    largest = cosine.masked_fill(~others, -torch.inf).amax(-1)
    return largest.masked_fill(largest.isinf(), torch.nan)


def by_chain(
    classes: Classes,
    vectors: Float[Tensor, "model layer token class d"],
    minority: Int[Tensor, " model"],
    partners: Partners,
) -> tuple[Float[Tensor, "model layer"], Float[Tensor, "model layer"]] | None:
    """Mean entanglement of the minority chain's features, and of all others'; None where partners are not defined."""
    n_classes = len(classes.chain)
    if partners == "all":
        allowed = torch.ones(n_classes, n_classes, dtype=torch.bool)
    elif classes.next_token is None:
        return None
    else:
        following = classes.next_token[:, None]
        allowed = following[..., None] != following[..., None, :]
    values = masked_entanglement(vectors, allowed).nanmean(2)  # over tokens
    is_minority = (classes.chain == minority[:, None])[:, None]
    of_minority = torch.where(is_minority, values, torch.nan).nanmean(-1)
    of_others = torch.where(is_minority, torch.nan, values).nanmean(-1)
    return of_minority, of_others
