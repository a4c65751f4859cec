"""Directions: unit vectors that know where they live."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.metrics import entanglement
from entangle.probes import fit_probes, split_half


def some(n: int, d: int = 8, seed: int = 0, **place) -> Directions:
    vectors = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return Directions(vectors, tuple(f"v{seed}.{i}" for i in range(n)), **place)


@given(scale=st.floats(1e-3, 1e3), n=st.integers(1, 6))
@settings(deadline=None, max_examples=25)
def test_vectors_are_unit_and_norms_remember(scale, n):
    vectors = scale * torch.randn(n, 5, generator=torch.Generator().manual_seed(n))
    directions = Directions(vectors, tuple(map(str, range(n))))
    torch.testing.assert_close(directions.vectors.norm(dim=1), torch.ones(n))
    torch.testing.assert_close(directions.vectors * directions.norms[:, None], vectors)


def test_stack_names_and_places():
    tense, mood = some(1, site="resid_post", layer=3), some(2, seed=1, site="resid_post", layer=3)
    stacked = Directions.stack(tense=tense, mood=mood, plain=np.eye(8)[0])
    assert stacked.names == ("tense", "mood.v1.0", "mood.v1.1", "plain")
    assert (stacked.site, stacked.layer) == ("resid_post", 3)
    assert entanglement(stacked).shape == (4,)
    with pytest.raises(EntangleError, match="their layer differs"):
        Directions.stack(tense=tense, other=some(1, site="resid_post", layer=4))
    with pytest.raises(EntangleError, match="one size"):
        Directions.stack(tense=tense, other=torch.ones(9))


def test_arithmetic_and_cosine():
    a, b = Directions(torch.eye(3)[:1], ("a",)), Directions(torch.eye(3)[1:2], ("b",))
    torch.testing.assert_close((a - b).vectors, torch.tensor([[0.5**0.5, -(0.5**0.5), 0.0]]))
    assert (a - b).names == ("a - b",)
    assert (a + b).cosine(a).item() == pytest.approx(0.5**0.5)
    assert (-a).cosine(a).item() == -1
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(Directions.stack(a=a, b=b).project(x), x[..., :2])
    with pytest.raises(EntangleError, match="length 0"):
        a - a


def test_without_leaves_nothing_along_the_others():
    a, others = some(2), some(3, seed=1)
    left = a.without(others)
    assert left.cosine(others).abs().max() < 1e-6
    assert a.cosine(others).abs().max() > 0.1
    with pytest.raises(EntangleError, match="in the span"):
        others["v1.0"].without(others)


def test_picking():
    three = some(3)
    assert three["v0.2"].names == ("v0.2",)
    assert three[["v0.2", 0]].names == ("v0.2", "v0.0")
    with pytest.raises(EntangleError, match="no direction is named 'x'"):
        three["x"]
    with pytest.raises(EntangleError, match="none number 3"):
        three[3]


def test_from_probes_knows_the_cell():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    grid = fit_probes(
        torch.randn(200, 2, 3, 4, generator=generator),
        y,
        layers=[5, 7],
        n_permutations=0,
        progress=False,
        fingerprint={"a": 1},
    )
    one = Directions.from_probes(grid, (1, 2), name="parity", site="z")
    assert (one.site, one.layer, one.head, one.estimator, one.names) == ("z", 7, 2, "logistic", ("parity",))
    torch.testing.assert_close(one.vectors[0], grid.directions[1, 2])
    assert torch.equal(one.split.fit, grid.split.fit)
    assert one.fingerprint == {"a": 1}
    with pytest.raises(EntangleError, match="has no cell"):
        Directions.from_probes(grid, (2, 0))
    with pytest.raises(EntangleError, match="has no cell"):
        Directions.from_probes(grid, 0)


def test_from_probes_that_do_not_know_their_layers_names_none():
    y = torch.arange(200) % 2
    grid = fit_probes(torch.randn(200, 2, 4), y, n_permutations=0, progress=False)
    assert Directions.from_probes(grid, 1).layer is None
    named = fit_probes(torch.randn(200, 2, 4), y, n_permutations=0, progress=False, layers=[4, 5])
    assert Directions.from_probes(named, 1).layer == 5


def test_from_probes_of_three_classes():
    y = np.array(["x", "y", "z"])[np.arange(300) % 3]
    grid = fit_probes(torch.randn(300, 4, 5), y, n_permutations=0, progress=False)
    assert Directions.from_probes(grid, 3, name="letter").names == ("letter=x", "letter=y", "letter=z")


def test_from_sae():
    decoder = torch.randn(10, 4)
    for source in (decoder, {"W_dec": decoder}, SimpleNamespace(W_dec=torch.nn.Parameter(decoder))):
        directions = Directions.from_sae(source, site="resid_post", layer=2)
        torch.testing.assert_close(directions.vectors, torch.nn.functional.normalize(decoder, dim=1))
    assert directions.names[9] == "9"
    with pytest.raises(EntangleError, match="W_dec"):
        Directions.from_sae(object())


def test_from_unembedding(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    table = model.get_output_embeddings().weight
    words = [word for word in tiny_tokenizer.get_vocab() if word.isalpha()][:3]
    ids = tiny_tokenizer.convert_tokens_to_ids(words)
    directions = Directions.from_unembedding(model, _Plain(tiny_tokenizer), [words[0], (words[1], words[2])])
    torch.testing.assert_close(directions.vectors[0] * directions.norms[0], table[ids[0]].detach())
    torch.testing.assert_close(directions.vectors[1] * directions.norms[1], (table[ids[1]] - table[ids[2]]).detach())
    assert directions.names[1] == f"{words[1]} - {words[2]}"
    with pytest.raises(EntangleError, match="is 2 tokens"):
        Directions.from_unembedding(model, _Plain(tiny_tokenizer), [f"{words[0]} {words[1]}"])


class _Plain:
    """Splits at spaces, so that a word is the vocabulary's own entry."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self.tokenizer.convert_tokens_to_ids(text.split())


def test_they_come_back_from_disk(tmp_path):
    before = some(3, site="z", layer=1, head=0, estimator="lda", fingerprint={"sha": "a"})
    before.save(tmp_path)
    after = Directions.load(tmp_path, fingerprint={"sha": "a"})
    assert torch.equal(after.vectors, before.vectors) or torch.allclose(after.vectors, before.vectors)
    assert torch.equal(after.norms, before.norms)
    assert (after.names, after.site, after.layer, after.head, after.estimator) == (before.names, "z", 1, 0, "lda")
    with pytest.raises(EntangleError, match="these directions came from another model"):
        Directions.load(tmp_path, fingerprint={"sha": "b"})


def test_split_half_tells_signal_from_noise():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    x = torch.randn(400, 2, 64, generator=generator)
    x[:, 1, 0] += 3 * y
    robustness = split_half(x, y, n_splits=10)
    assert robustness.value.shape == (2,)
    assert robustness.value[1] > 0.8
    assert robustness.value[0].abs() < 0.3
    assert bool((robustness.low <= robustness.value).all())
    groups = torch.arange(400) // 4
    assert split_half(x, y, groups=groups, n_splits=10).value[1] > 0.8


@pytest.mark.parametrize("bad", [torch.zeros(1, 3), torch.full((1, 3), torch.nan), torch.ones(3), torch.ones(2, 3)])
def test_bad_vectors_are_refused(bad):
    with pytest.raises(EntangleError):
        Directions(bad, ("a",))


@pytest.mark.parametrize("token", [-1, 96 * 100, True, np.int64(-2)])
def test_the_number_of_a_token_is_one_that_there_is(token, tiny_model, tiny_tokenizer):
    """Below 0 the table would be read from its end, another token's row."""
    with pytest.raises(EntangleError, match=r"a token is a number from 0 to \d+, got .* in the set 'x'"):
        Directions.from_unembedding(tiny_model("llama"), tiny_tokenizer, {"x": ([5], [token])})
    assert len(Directions.from_unembedding(tiny_model("llama"), tiny_tokenizer, {"x": ([np.int64(5)], [6])})) == 1
