"""Mixtures of cyclic Markov chains over shared states: sequences of known features (Li et al. 2025, section 2)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entangle.errors import EntangleError


class MarkovMixture:
    """K different cycles through the same V states; one of them is the minority.

    A sequence picks a chain, starts in a random state, and moves along the chain's cycle; with probability `noise` a
    step goes to a uniformly random state instead. Without noise there are only K x V sequences, one per (chain, start).

    Args:
        n_chains: K, at most (V - 1)!, the number of different cycles.
        n_states: V, shared by all chains.
        length: Tokens per sequence.
        noise: Probability that a step is random.
        seed: Of the cycles and of which chain is the minority. Three of the six cycles on four states always share some
            transition, so which chains were drawn matters: average over seeds.

    Attributes:
        next_state: [chain, state], the state that follows.
        minority: Index of the minority chain.

    Raises:
        EntangleError: For more chains than cycles, fewer than two states, or noise outside [0, 1).

    Example:
        >>> mixture = en.toy.MarkovMixture(3, 4, length=8)
        >>> mixture.sequences.shape  # [chain, start, pos]
        torch.Size([3, 4, 8])
        >>> mixture.chain_probabilities(0.0).sort().values  # the minority's is 0
        tensor([0.0000, 0.5000, 0.5000])
    """

    def __init__(
        self, n_chains: int = 3, n_states: int = 4, *, length: int = 16, noise: float = 0.0, seed: int = 0
    ) -> None:
        if n_states < 2 or length < 2:
            raise EntangleError(
                f"a chain needs at least 2 states and sequences at least 2 tokens, not {n_states}, {length}"
            )
        if not 1 <= n_chains <= math.factorial(n_states - 1):
            raise EntangleError(
                f"{n_states} states have 1 to {math.factorial(n_states - 1)} different cycles, not {n_chains};"
                " change n_chains or n_states"
            )
        if not 0 <= noise < 1:
            raise EntangleError(f"noise must lie in [0, 1), but is {noise}")
        self.n_chains, self.n_states, self.length, self.noise, self.seed = n_chains, n_states, length, noise, seed
        generator = torch.Generator().manual_seed(seed)
        orders: dict[tuple[int, ...], None] = {}
        while len(orders) < n_chains:
            # A cycle is an order of the states that starts with state 0.
            orders[tuple(torch.randperm(n_states - 1, generator=generator).add(1).tolist())] = None
        self.next_state: Int[Tensor, "chain state"] = torch.empty(n_chains, n_states, dtype=torch.long)
        for chain, order in enumerate(orders):
            cycle = torch.tensor([0, *order])
            self.next_state[chain, cycle] = cycle.roll(-1)
        self.minority = int(torch.randint(n_chains, (), generator=generator))

    @property
    def sequences(self) -> Int[Tensor, "chain start pos"]:
        """What each chain does from each start without noise."""
        state = torch.arange(self.n_states).expand(self.n_chains, -1)
        states = [state]
        for _ in range(self.length - 1):
            state = self.next_state.gather(1, state)
            states.append(state)
        return torch.stack(states, dim=-1)

    def chain_probabilities(self, share: float) -> Float[Tensor, " chain"]:
        """How often each chain is drawn when the minority has `share` times the data of each other chain.

        Raises:
            EntangleError: Where the share is negative or not finite.
        """
        if not (math.isfinite(share) and share >= 0):
            raise EntangleError(
                f"share must be a finite number of at least 0 (1: as much data as the others), not {share}"
            )
        weights = torch.ones(self.n_chains)
        weights[self.minority] = share
        return weights / weights.sum()

    def sample(self, chains: Int[Tensor, " row"], generator: torch.Generator) -> Int[Tensor, "row pos"]:
        """Draw a sequence from each of the given chains, each from a random start."""
        return walk(self.next_state[None], chains[None], self.length, self.noise, generator)[0]

    @property
    def determined(self) -> Bool[Tensor, "chain start pos"]:
        """Whether the next token follows from the tokens so far: all chains that fit them, without noise, agree on it.

        The last position has no next token and is left out, so pos is length - 1. The best loss there is zero; at the
        first token it is not, since chains differ in where they go.
        """
        rows = self.sequences.flatten(0, 1)
        same_so_far = (rows[:, None] == rows[None]).cumprod(-1).bool()  # [row, row, pos]
        agree = same_so_far[..., 1:] | ~same_so_far[..., :-1]
        return agree.all(1).view(self.n_chains, self.n_states, -1)


def walk(
    next_state: Int[Tensor, "mixture chain state"],
    chains: Int[Tensor, "mixture row"],
    length: int,
    noise: float,
    generator: torch.Generator,
) -> Int[Tensor, "mixture row pos"]:
    """Follow chains of several mixtures at once, from random starts; see `MarkovMixture`."""
    n_mixtures, _, n_states = next_state.shape
    here = torch.arange(n_mixtures)[:, None]
    state = torch.randint(n_states, chains.shape, generator=generator)
    states = [state]
    for _ in range(length - 1):
        strays = torch.rand(chains.shape, generator=generator) < noise
        anywhere = torch.randint(n_states, chains.shape, generator=generator)
        state = torch.where(strays, anywhere, next_state[here, chains, state])
        states.append(state)
    return torch.stack(states, dim=-1)
