"""ITI: planted heads and directions are found, and nothing is fitted where it should not be."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from entangle.activations import collect
from entangle.errors import EntangleError
from entangle.interventions import ITI, Compose, Edit, steer
from entangle.probes import fit_probes, three_way

N, LAYERS, HEADS, D = 400, 3, 4, 8
PLANTED = [(0, 3), (2, 1)]


def planted(seed=0, strength=3.0, scale=1.0):
    """Noise in every head; in two of them class 1 lies `strength` along a direction of its own."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(N, LAYERS, HEADS, D, generator=generator) * scale
    labels = torch.randint(2, (N,), generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(len(PLANTED), D, generator=generator), dim=1)
    for (layer, head), v in zip(PLANTED, directions, strict=True):
        z[:, layer, head] += scale * strength * labels[:, None] * v
    return z, labels, directions


@pytest.mark.parametrize("direction", ["mass_mean", "probe"])
def test_planted_heads_and_directions_are_found(direction):
    z, labels, directions = planted()
    iti = ITI.fit(z, labels, top_k=2, direction=direction, toward=1)
    assert sorted(iti.heads) == PLANTED
    for head, theta in zip(iti.heads, iti.directions, strict=True):
        cosine = torch.cosine_similarity(theta, directions[PLANTED.index(head)], dim=0)
        assert cosine > 0.95
    torch.testing.assert_close(iti.directions.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("direction", ["mass_mean", "probe"])
def test_positive_alpha_moves_away_from_label_1_unless_told_otherwise(direction):
    z, labels, directions = planted()
    away = ITI.fit(z, labels, top_k=2, direction=direction)
    toward = ITI.fit(z, labels, top_k=2, direction=direction, toward=1)
    torch.testing.assert_close(away.directions, -toward.directions)
    torch.testing.assert_close(away.sigmas, toward.sigmas)
    planted_direction = directions[PLANTED.index(away.heads[0])]
    assert (away.affine(8.0)[0].bias @ planted_direction) < 0
    assert (toward.affine(8.0)[0].bias @ planted_direction) > 0


def test_random_heads_and_directions_are_controls_with_no_knowledge_of_the_labels():
    z, labels, directions = planted()
    chosen = {tuple(sorted(ITI.fit(z, labels, top_k=2, heads="random", seed=seed).heads)) for seed in range(6)}
    assert len(chosen) > 3
    cosines = []
    grid = fit_probes(z, labels, n_permutations=0, progress=False)
    for seed in range(40):
        iti = ITI.fit(z, labels, top_k=2, direction="random", grid=grid, seed=seed)
        assert sorted(iti.heads) == PLANTED  # the heads still come from the probes
        cosines += [
            float(theta @ directions[PLANTED.index(head)])
            for head, theta in zip(iti.heads, iti.directions, strict=True)
        ]
    assert abs(sum(cosines) / 80) < 3 / math.sqrt(80 * D)


def test_directions_and_sigmas_are_of_the_fitting_split_only():
    """Changing every row outside the fitting split changes neither; sigma is the published one."""
    z, labels, _ = planted()
    split = three_way(labels, seed=0)
    grid = fit_probes(z, labels, seed=0, n_permutations=0, progress=False)
    iti = ITI.fit(z, labels, top_k=3, grid=grid)
    changed = z.clone()
    outside = torch.cat([split.select, split.report])
    changed[outside] = torch.randn(len(outside), LAYERS, HEADS, D) * 50
    again = ITI.fit(changed, labels, top_k=3, grid=grid)
    assert torch.equal(iti.directions, again.directions)
    assert torch.equal(iti.sigmas, again.sigmas)
    for (layer, head), theta, sigma in zip(iti.heads, iti.directions, iti.sigmas, strict=True):
        x, y = z[split.fit, layer, head], labels[split.fit]
        mass_mean = x[y == 0].mean(0) - x[y == 1].mean(0)
        torch.testing.assert_close(theta, mass_mean / mass_mean.norm(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(sigma, (x @ theta).std(correction=0), atol=1e-6, rtol=1e-5)
    # Changing the fitting rows does change them, so the test could fail.
    moved = z.clone()
    moved[split.fit] += torch.randn(len(split.fit), LAYERS, HEADS, D)
    assert not torch.allclose(ITI.fit(moved, labels, top_k=3, grid=grid).directions, iti.directions, atol=1e-3)


def test_heads_come_from_the_selection_split():
    """Rows whose labels are noise in the selection split hide the planted heads there; the report split has no say."""
    z, labels, _ = planted()
    split = three_way(labels, seed=0)
    scrambled = z.clone()
    scrambled[split.report] = torch.randn(len(split.report), LAYERS, HEADS, D)
    assert sorted(ITI.fit(scrambled, labels, top_k=2).heads) == PLANTED
    swapped = z.clone()
    swapped[split.select] = z[split.select][:, [1, 2, 0]]  # in these rows the planted heads are one layer away
    assert sorted(ITI.fit(swapped, labels, top_k=2).heads) != PLANTED


def test_alpha_counts_standard_deviations():
    """Ten times larger activations give ten times longer steps along the same directions."""
    z, labels, _ = planted()
    small, large = (ITI.fit(scale * z, labels, top_k=12, heads="random") for scale in (1.0, 10.0))
    torch.testing.assert_close(large.sigmas, 10 * small.sigmas)
    torch.testing.assert_close(large.directions, small.directions, atol=1e-5, rtol=1e-5)
    for form, theta, sigma in zip(small.affine(4), small.directions, small.sigmas, strict=True):
        torch.testing.assert_close(form.bias, 4 * sigma * theta)


def test_layers_name_the_models_layers():
    z, labels, _ = planted()
    assert sorted(ITI.fit(z, labels, top_k=2, layers=[2, 5, 9]).heads) == [(2, 3), (9, 1)]
    grid = fit_probes(z, labels, n_permutations=0, layers=[1, 3, 4], progress=False)
    assert sorted(ITI.fit(z, labels, top_k=2, grid=grid).heads) == [(1, 3), (4, 1)]


def collected(model, tokenizer, layers):
    texts = [f"{a} {b}" for a in ("the quick", "a lazy", "the brown", "a cat") for b in ("fox", "dog", "mat", "moon")]
    acts = collect(model, tokenizer, texts * 2, sites="z", layers=layers, progress=False)
    return acts, torch.arange(len(texts) * 2) % 2


@pytest.fixture
def six_layers():
    config = copy.deepcopy(tiny.build("llama", 0).config)
    config.num_hidden_layers, config.layer_types = 6, None
    torch.manual_seed(0)
    return tiny.enlarge(AutoModelForCausalLM.from_config(config).eval())


def test_a_bare_tensor_of_some_layers_is_refused_wherever_it_would_be_used(six_layers, tiny_tokenizer, tmp_path):
    acts, labels = collected(six_layers, tiny_tokenizer, [3, 4, 5])
    edit = ITI.fit(acts["z"], labels, top_k=3)
    edit.save_pretrained(tmp_path / "edit")
    later = Edit.from_pretrained(tmp_path / "edit")
    refused = [
        lambda: steer(six_layers, edit),
        lambda: steer(six_layers, later),
        lambda: steer(six_layers, Compose([edit])),
        lambda: edit.bake(six_layers, 1.0),
        lambda: edit.export(tmp_path / "steer.pt", format="lm-eval", model=six_layers),
    ]
    for use in refused:
        with pytest.raises(EntangleError, match="a bare tensor of 3 layers, but the model has 6") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_activations_know_their_layers_and_so_do_grids(six_layers, tiny_tokenizer):
    acts, labels = collected(six_layers, tiny_tokenizer, [3, 4, 5])
    grid = fit_probes(acts["z"], labels, layers=acts.layers("z"), n_permutations=0, progress=False)
    edits = [
        ITI.fit(acts, labels, top_k=3),
        ITI.fit(acts, labels, top_k=3, grid=fit_probes(acts["z"], labels, n_permutations=0, progress=False)),
        ITI.fit(acts["z"], labels, top_k=3, layers=[3, 4, 5]),
        ITI.fit(acts["z"], labels, top_k=3, grid=grid),
    ]
    for edit in edits:
        assert edit.heads == edits[0].heads
        assert {layer for layer, _ in edit.heads} <= {3, 4, 5}
        assert edit.of_layers is None
        with steer(six_layers, edit) as handle, torch.no_grad():
            six_layers(input_ids=torch.tensor([[5, 6, 7]]))
        assert handle.counts == [3]


def test_a_bare_tensor_of_all_layers_is_what_it_seems(six_layers, tiny_tokenizer):
    acts, labels = collected(six_layers, tiny_tokenizer, None)
    bare, known = ITI.fit(acts["z"], labels, top_k=3), ITI.fit(acts, labels, top_k=3)
    assert bare.heads == known.heads
    with steer(six_layers, bare), torch.no_grad():
        one = six_layers(input_ids=torch.tensor([[5, 6, 7]])).logits
    with steer(six_layers, known), torch.no_grad():
        assert torch.equal(one, six_layers(input_ids=torch.tensor([[5, 6, 7]])).logits)


def test_layers_named_in_two_ways_must_agree(six_layers, tiny_tokenizer):
    acts, labels = collected(six_layers, tiny_tokenizer, [3, 4, 5])
    with pytest.raises(EntangleError, match=r"named differently \(layers \[0, 1, 2\], the activations \[3, 4, 5\]\)"):
        ITI.fit(acts, labels, top_k=3, layers=[0, 1, 2])
    other = fit_probes(acts["z"], labels, layers=[1, 2, 3], n_permutations=0, progress=False)
    with pytest.raises(EntangleError, match="named differently"):
        ITI.fit(acts, labels, top_k=3, grid=other)


def test_the_same_seed_gives_the_same_edit():
    z, labels, _ = planted()
    for how in [{}, {"heads": "random"}, {"direction": "random"}]:
        first, again = (ITI.fit(z, labels, top_k=3, seed=7, **how) for _ in range(2))
        assert first.heads == again.heads
        assert torch.equal(first.directions, again.directions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 13}, "from 1 to the 12 heads in z, got 13"),
        ({"top_k": 0}, "from 1 to the 12 heads in z, got 0"),
        ({"z": torch.randn(N, LAYERS, D)}, r"\[example, layer, head, d_head\], got \[400, 3, 8\]"),
        ({"z": torch.full((N, LAYERS, HEADS, D), float("nan"))}, "NaN or infinity"),
        ({"labels": torch.ones(N)}, "only the label '1'"),
        ({"labels": torch.arange(N) % 3}, "have 3 values"),
        ({"labels": torch.arange(7) % 2}, "each of 400 examples"),
        ({"toward": 2}, "toward must be one of the labels"),
        ({"layers": [0, 1]}, "names 2 layers but z has 3"),
        ({"heads": "best"}, "heads must be"),
        ({"direction": "up"}, "direction must be"),
        (
            {"z": torch.zeros(N, LAYERS, HEADS, D), "heads": "random"},
            "top_k is 2, but only 0 heads of z ever change",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    z, labels, _ = planted()
    arguments = {"z": z, "labels": labels, "top_k": 2, **change}
    with pytest.raises(EntangleError, match=message) as caught:
        ITI.fit(arguments.pop("z"), arguments.pop("labels"), **arguments)
    assert "\n" not in str(caught.value)


def test_a_grid_of_other_rows_is_refused():
    z, labels, _ = planted()
    grid = fit_probes(z, labels, n_permutations=0, progress=False)
    with pytest.raises(EntangleError, match="other labels"):
        ITI.fit(z, 1 - labels, top_k=2, grid=grid)
    with pytest.raises(EntangleError, match="2 layers x 4 heads"):
        ITI.fit(z[:, :2], labels, top_k=2, grid=grid)


def test_bad_fields_are_refused():
    with pytest.raises(EntangleError, match="needs directions"):
        ITI([(0, 1)], torch.ones(2, 4), torch.ones(1))
    with pytest.raises(EntangleError, match="NaN"):
        ITI([(0, 1)], torch.full((1, 4), float("nan")), torch.ones(1))
