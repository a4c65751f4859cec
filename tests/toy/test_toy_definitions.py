"""Definitions of entanglement: the classes hold what they say, directions are the probes', partners are respected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from entangle.errors import EntangleError
from entangle.metrics import entanglement, random_entanglement_mean
from entangle.toy import MarkovMixture
from entangle.toy.chains.definitions import (
    Classes,
    by_chain,
    directions,
    masked_entanglement,
    pool_tokens,
    sort_into_classes,
)

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def labelled():
    """Two mixtures whose "activations" are their own labels: chain, start, position, token."""
    mixtures = [MarkovMixture(seed=seed, length=8) for seed in (1, 2)]
    sequences = torch.stack([mixture.sequences for mixture in mixtures])
    next_state = torch.stack([mixture.next_state for mixture in mixtures])
    chain, start, position = torch.meshgrid(torch.arange(3), torch.arange(4), torch.arange(8), indexing="ij")
    place = torch.stack([chain, start, position], -1).expand(2, -1, -1, -1, -1)
    residuals = torch.cat([place, sequences.unsqueeze(-1)], -1).float().unsqueeze(1)
    return {(c.feature, c.scope): c for c in sort_into_classes(residuals, sequences, next_state)}, next_state


def test_every_class_holds_its_own_activations_and_all_of_them(labelled):
    classes, next_state = labelled
    sizes = {
        ("chain, start", "joint"): (1, 12, 8),
        ("chain, start", "per token"): (4, 12, 2),
        ("chain, token", "joint"): (1, 12, 8),
        ("chain", "joint"): (1, 3, 32),
        ("chain", "per token"): (4, 3, 8),
    }
    assert set(classes) == set(sizes)
    for key, found in classes.items():
        assert found.examples.shape == (2, 1, *sizes[key], 4)
        chain, start, _, token = found.examples.unbind(-1)
        assert bool((chain == found.chain[:, None]).all())
        constant = {"chain, start": start, "chain, token": token, "chain": chain}[found.feature]
        assert bool((constant == constant[..., :1]).all())
        if found.scope == "per token":
            assert bool((token == torch.arange(4)[:, None, None]).all())
        everything = found.examples.reshape(2, -1, 4)
        assert all(len(rows.unique(dim=0)) == 96 for rows in everything)
        if found.next_token is not None:
            for model in range(2):
                expected = next_state[model][chain[model, 0].long(), token[model, 0].long()]
                assert bool((expected == found.next_token[model, ..., None]).all())


def test_directions_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    examples = torch.randn(2, 1, 1, 3, 300, 4, generator=generator) + torch.randn(2, 1, 1, 3, 1, 4, generator=generator)
    classes = Classes("chain", "joint", examples, torch.arange(3), None)
    others = {
        "logistic": LogisticRegression(tol=1e-8),
        "ridge": RidgeClassifier(),
        "lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.0),
    }
    for name, other in others.items():
        found = directions(classes, name, generator=GENERATOR)
        for model in range(2):
            x = examples[model, 0, 0].flatten(0, 1).numpy()
            for k in range(3):
                wanted = np.ravel(other.fit(x, np.arange(900) // 300 == k).coef_)
                cosine = torch.nn.functional.cosine_similarity(
                    found[model, 0, 0, k], torch.tensor(wanted).float(), dim=0
                )
                assert float(cosine) > 0.995, (name, model, k)
    means = examples.mean(-2)
    wanted = means - means.mean(-2, keepdim=True)
    found = directions(classes, "mean_difference", generator=GENERATOR)
    assert torch.allclose(torch.nn.functional.cosine_similarity(found, wanted, dim=-1), torch.ones(2, 1, 1, 3))


def test_random_directions_are_at_the_random_level(labelled):
    classes, _ = labelled
    found = classes["chain, token", "joint"]
    draws = torch.cat([directions(found, "random", generator=GENERATOR) for _ in range(300)])
    everyone = torch.ones(12, 12, dtype=torch.bool)
    level = float(masked_entanglement(draws, everyone).mean())
    assert level == pytest.approx(random_entanglement_mean(12, 4), abs=0.01)
    assert level == pytest.approx(0.843, abs=0.01)


def test_all_partners_is_the_librarys_entanglement_and_a_mask_leaves_partners_out():
    vectors = torch.randn(5, 3, generator=GENERATOR)
    everyone = torch.ones(5, 5, dtype=torch.bool)
    assert torch.allclose(masked_entanglement(vectors, everyone), entanglement(vectors), atol=1e-6)
    twin = torch.cat([vectors, vectors[:1]])
    allowed = torch.ones(6, 6, dtype=torch.bool)
    assert float(masked_entanglement(twin, allowed)[0]) == pytest.approx(1)
    allowed[0, 5] = allowed[5, 0] = False
    assert float(masked_entanglement(twin, allowed)[0]) == pytest.approx(float(entanglement(vectors)[0]), abs=1e-6)
    assert bool(masked_entanglement(vectors, torch.eye(5, dtype=torch.bool)).isnan().all())


def test_minority_and_others_are_told_apart(labelled):
    classes, next_state = labelled
    found = classes["chain, token", "joint"]
    vectors = torch.eye(12).expand(2, 1, 1, -1, -1).clone()
    # In the first mixture, chain 2 at states 0 and 1 point the same way; in the second, chain 0 is the minority.
    vectors[0, 0, 0, 9] = vectors[0, 0, 0, 8]
    minority, others = by_chain(found, vectors, torch.tensor([2, 0]), "all")
    assert minority[:, 0].tolist() == [0.5, 0.0]
    assert others[:, 0].tolist() == [0.0, 0.0]
    different, _ = by_chain(found, vectors, torch.tensor([2, 0]), "different next token")
    assert next_state[0, 2, 0] != next_state[0, 2, 1]
    assert different[:, 0].tolist() == [0.5, 0.0]
    assert (
        by_chain(classes["chain", "joint"], vectors[..., :3, :], torch.tensor([2, 0]), "different next token") is None
    )


def test_pooling_tokens_keeps_chains_and_next_tokens_together(labelled):
    classes, next_state = labelled
    per_token = classes["chain", "per token"]
    vectors = torch.arange(4 * 3).view(4, 3, 1).expand(2, 1, -1, -1, 5).float()  # token * 3 + chain
    pooled, stacked = pool_tokens(per_token, vectors)
    assert stacked.shape == (2, 1, 1, 12, 5)
    token = stacked[0, 0, 0, :, 0].long() // 3
    assert torch.equal(stacked[0, 0, 0, :, 0].long() % 3, pooled.chain)
    assert torch.equal(pooled.next_token[1, 0], next_state[1][pooled.chain, token])
    with pytest.raises(EntangleError, match="only directions of chains per token"):
        pool_tokens(classes["chain", "joint"], vectors)


def test_unbalanced_lengths_are_refused():
    mixture = MarkovMixture(length=10)
    with pytest.raises(EntangleError, match="multiple of the 4 states"):
        next(sort_into_classes(torch.zeros(1, 1, 3, 4, 10, 4), mixture.sequences[None], mixture.next_state[None]))
