"""Mixtures of cycles: what they emit, and what a reader of them can know."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.toy import MarkovMixture

sizes = st.integers(2, 6).flatmap(
    lambda v: st.tuples(st.integers(1, min(4, math.factorial(v - 1))), st.just(v), st.integers(0, 1000))
)


@settings(max_examples=50, deadline=None)
@given(sizes)
def test_chains_are_different_cycles_through_all_states(size):
    n_chains, n_states, seed = size
    mixture = MarkovMixture(n_chains, n_states, length=2 * n_states, seed=seed)
    rows = mixture.sequences
    assert bool((rows[..., :n_states].sort(-1).values == torch.arange(n_states)).all())
    assert bool((rows[..., n_states:] == rows[..., :n_states]).all())
    assert len({tuple(chain.tolist()) for chain in mixture.next_state}) == n_chains
    assert bool((rows[:, :, 0] == torch.arange(n_states)).all())


def test_seeds_change_chains_and_minority_and_repeat():
    mixtures = [MarkovMixture(seed=seed) for seed in range(40)]
    assert {mixture.minority for mixture in mixtures} == {0, 1, 2}
    assert len({tuple(mixture.next_state.flatten().tolist()) for mixture in mixtures}) > 20
    assert torch.equal(MarkovMixture(seed=3).next_state, mixtures[3].next_state)


def test_three_cycles_on_four_states_always_share_a_transition():
    for seed in range(40):
        next_state = MarkovMixture(3, 4, seed=seed).next_state
        assert any(len(set(column.tolist())) < 3 for column in next_state.T)


def test_share_is_relative_to_each_other_chain():
    mixture = MarkovMixture(seed=1)
    p = mixture.chain_probabilities(0.1)
    others = p[torch.arange(3) != mixture.minority]
    assert torch.allclose(p[mixture.minority] / others, torch.tensor(0.1))
    assert float(p.sum()) == pytest.approx(1)
    assert float(mixture.chain_probabilities(0)[mixture.minority]) == 0


def test_samples_follow_their_chain_but_for_the_noise():
    chains = torch.arange(3).repeat(4000)
    generator = torch.Generator().manual_seed(0)
    for noise in (0.0, 0.4):
        mixture = MarkovMixture(noise=noise, seed=2)
        rows = mixture.sample(chains, generator)
        followed = mixture.next_state[chains[:, None], rows[:, :-1]] == rows[:, 1:]
        # A random step goes where the chain goes one time in four.
        assert float(followed.float().mean()) == pytest.approx(1 - 0.75 * noise, abs=0.01)
        starts = torch.bincount(rows[:, 0], minlength=4) / len(rows)
        assert torch.allclose(starts, torch.full((4,), 0.25), atol=0.02)


def test_determined_agrees_with_reading_the_sequences_one_by_one():
    mixture = MarkovMixture(3, 5, length=7, seed=4)
    rows = mixture.sequences.flatten(0, 1).tolist()
    for row, flags in zip(rows, mixture.determined.flatten(0, 1).tolist(), strict=True):
        for position, flag in enumerate(flags):
            following = {other[position + 1] for other in rows if other[: position + 1] == row[: position + 1]}
            assert flag == (len(following) == 1)
    assert not mixture.determined[..., 0].all()
    assert bool(mixture.determined[..., -1].all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_chains": 7}, "4 states have 1 to 6 different cycles, not 7"),
        ({"n_chains": 0}, "not 0"),
        ({"n_states": 1}, "at least 2 states"),
        ({"noise": 1.0}, r"noise must lie in \[0, 1\)"),
    ],
)
def test_impossible_mixtures_are_refused(arguments, message):
    with pytest.raises(EntangleError, match=message):
        MarkovMixture(**arguments)


@pytest.mark.parametrize("share", [-0.1, math.nan, math.inf])
def test_shares_must_be_fractions(share):
    with pytest.raises(EntangleError, match="share must be a finite number"):
        MarkovMixture().chain_probabilities(share)
