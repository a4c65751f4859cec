"""A stack of GPT-2s is GPT-2: in what it computes, in how it learns, and through the code for real models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import entangle
from entangle.activations import collect
from entangle.errors import EntangleError
from entangle.probes import LDAProbe, LogisticProbe, RidgeProbe
from entangle.toy import MarkovMixture, StackedGPT2
from entangle.toy.chains.definitions import directions, sort_into_classes


def in_double(stack: StackedGPT2) -> StackedGPT2:
    """Double precision: the keys' biases have no gradient but rounding, which Adam would blow up to full steps."""
    stack.weights = {name: weight.detach().double().requires_grad_() for name, weight in stack.weights.items()}
    return stack


def rows_of(mixtures) -> torch.Tensor:
    return torch.stack([mixture.sequences.flatten(0, 1) for mixture in mixtures])


def counts(n_models: int, seed: int):
    """Deterministic batches: how often each of the twelve sequences is drawn, as a share of 64."""
    rng = np.random.default_rng(seed)
    drawn = [torch.from_numpy(rng.multinomial(64, np.full((n_models, 12), 1 / 12))).double() / 64 for _ in range(40)]
    return lambda step: drawn[step % 40]


@pytest.mark.parametrize("n_positions", [0, 16])
def test_logits_and_residuals_are_those_of_huggingface(n_positions):
    rows = rows_of([MarkovMixture(seed=seed) for seed in range(3)])
    stack = StackedGPT2([5, 6, 7], 4, n_layers=3, d_model=6, n_heads=3, n_positions=n_positions)
    for number in range(3):
        single = stack.to_huggingface(number)
        with torch.no_grad():
            found = single(rows[number], output_hidden_states=True)
        log_probabilities = stack.log_probabilities(rows)[number]
        assert torch.allclose(found.logits.log_softmax(-1), log_probabilities, atol=1e-5)
        for layer in range(2):
            assert torch.allclose(found.hidden_states[layer + 1], stack.residuals(rows)[number, layer], atol=1e-5)


def test_without_positions_the_order_of_what_came_before_the_last_token_does_not_matter():
    """In one layer; with positions it does."""
    forward, backward = torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([[[2, 1, 0, 3]]])
    for n_positions, same in ((0, True), (4, False)):
        stack = StackedGPT2([0], 4, n_layers=1, n_positions=n_positions)
        last = [stack.log_probabilities(tokens)[..., -1, :] for tokens in (forward, backward)]
        assert torch.allclose(*last, atol=1e-6) == same


def test_a_model_does_not_depend_on_the_rest_of_the_stack():
    mixtures = [MarkovMixture(seed=seed) for seed in (3, 4)]
    together, alone = in_double(StackedGPT2([3, 4], 4)), in_double(StackedGPT2([4], 4))
    batch = counts(2, 0)
    together.fit(lambda s: (rows_of(mixtures), batch(s)), steps=20, compile=False, progress=False)
    alone.fit(lambda s: (rows_of(mixtures[1:]), batch(s)[1:]), steps=20, compile=False, progress=False)
    for name, weight in alone.weights.items():
        assert torch.allclose(weight[0], together.weights[name][1], atol=1e-8), name
        if not name.endswith("bias"):
            assert not torch.allclose(weight[0], together.weights[name][0], atol=1e-3), name


def train_single(model, rows: torch.Tensor, batch, number: int, steps: int) -> None:
    """What anyone would write to train one HuggingFace model on these sequences."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(steps):
        logits = model(rows[:, :-1]).logits
        losses = torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none").mean(1)
        optimizer.zero_grad()
        (losses * batch(step)[number]).sum().backward()
        optimizer.step()


def test_a_huggingface_model_trained_on_the_chains_gives_the_same_answer_through_capture_probes_and_metrics():
    """Weights, activations and entanglement agree, by code that shares nothing but GPT-2's definition."""
    mixture, steps = MarkovMixture(seed=11), 150
    rows, batch = rows_of([mixture]), counts(1, 1)
    stack = in_double(StackedGPT2([11], 4))
    single = stack.to_huggingface(0)
    single.transformer.wpe.weight.requires_grad_(False)
    untrained = stack.residuals(rows)
    train_single(single, rows[0], batch, 0, steps)
    stack.fit(lambda s: (rows, batch(s)), steps=steps, compile=False, progress=False)
    trained = stack.to_huggingface(0)
    for (name, a), b in zip(single.named_parameters(), trained.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name

    tokens = {"input_ids": rows[0], "attention_mask": torch.ones_like(rows[0])}
    captured = collect(single.float(), None, tokens, sites="resid_post", tokens="all", progress=False)
    x = captured["resid_post"]
    positions = captured.rows
    order = np.lexsort((np.asarray(positions)[:, 1], np.asarray(positions)[:, 0]))
    x = x[torch.from_numpy(order)].view(12, 16, 4, 4)
    ours = stack.residuals(rows)[0].permute(1, 2, 0, 3).float()
    assert torch.allclose(x, ours, atol=1e-4)
    assert not torch.allclose(x, untrained[0].permute(1, 2, 0, 3).float(), atol=0.1)

    chain = torch.arange(3).repeat_interleave(4)[:, None].expand(12, 16)
    label = (chain * 4 + rows[0]).flatten()
    wanted = entangle.metrics.entanglement(
        torch.stack([x.flatten(0, 1)[label == k, -1].mean(0) - x.flatten(0, 1)[:, -1].mean(0) for k in range(12)])
    )
    residuals = stack.residuals(rows).float().view(1, 4, 3, 4, 16, 4)

    def sorted_classes():
        return sort_into_classes(residuals, mixture.sequences[None], mixture.next_state[None])

    classes = next(c for c in sorted_classes() if c.feature == "chain, token")
    found = directions(classes, "mean_difference", generator=torch.Generator())[0, -1, 0]
    assert torch.allclose(entangle.metrics.entanglement(found), wanted, atol=1e-3)

    # A probe as for any real model, on what was captured, points where the study's batched one does.
    is_first = (chain.flatten() == 0).long().numpy()
    joint = next(c for c in sorted_classes() if (c.feature, c.scope) == ("chain", "joint"))
    for name, probe in (("logistic", LogisticProbe()), ("lda", LDAProbe()), ("ridge", RidgeProbe())):
        coef = torch.from_numpy(probe.fit(x.flatten(0, 1).double(), is_first).coef_).float()
        study = directions(joint, name, generator=torch.Generator())[0, :, 0, 0]
        assert torch.nn.functional.cosine_similarity(coef, study).min() > 0.999, name


@pytest.mark.slow
def test_compiled_training_gives_the_same_weights_up_to_rounding():
    rows, batch = rows_of([MarkovMixture(seed=0)]), counts(1, 2)
    eager, compiled = StackedGPT2([0], 4, n_layers=1), StackedGPT2([0], 4, n_layers=1)
    assert not eager.fit(lambda s: (rows, batch(s).float()), steps=5, compile=False, progress=False)
    assert compiled.fit(lambda s: (rows, batch(s).float()), steps=5, compile=True, progress=False)
    for name, weight in eager.weights.items():
        if name.endswith("c_attn.bias"):
            # Softmax ignores the keys' bias: its gradient is rounding alone, which Adam blows up to full steps.
            continue
        assert torch.allclose(weight, compiled.weights[name], atol=1e-3), name


def test_impossible_stacks_are_refused():
    with pytest.raises(EntangleError, match="3 does not divide 4"):
        StackedGPT2([0], 4, n_heads=3)
    with pytest.raises(EntangleError, match="a seed, a state and a layer or more"):
        StackedGPT2([], 4)
