"""Readers pulled back: what a small shift does to a later score, read by running the model with it."""

from __future__ import annotations

import pytest
import torch

import entangle as en
from entangle.errors import EntangleError
from entangle.interventions import AddDirection, Hold, steer
from entangle.learning import pulled_back

TEXTS = ["the quick brown fox", "a cat sat on the mat and looked at the moon", "the lazy dog jumps", "a moon"]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scores(model, tokenizer, readers, tokens, edit=(), alpha=1.0):
    """The mean score at the last layer, text by text and then over texts."""
    with steer(model, edit, alpha=alpha):
        acts = en.collect(model, tokenizer, TEXTS, sites="resid_post", layers=[2], tokens=tokens, progress=False)
    x = acts["resid_post"][:, 0].double() @ readers.T.double()
    if tokens == "last":
        return x.mean(0)
    owner = torch.as_tensor(acts.rows)[:, 0]
    return torch.stack([x[owner == i].mean(0) for i in range(len(TEXTS))]).mean(0)


@pytest.mark.parametrize("tokens", ["last", "all"])
@pytest.mark.parametrize("site", ["resid_post", "z"])
def test_it_is_the_slope_of_the_score_along_any_shift(tiny_model, tiny_tokenizer, tokens, site):
    model, readers = tiny_model("llama").double(), drawn(2, 32)
    try:
        found = pulled_back(
            model, tiny_tokenizer, TEXTS, readers, later=2, layer=0, site=site, tokens=tokens, batch_tokens=20
        )
        for seed in range(3):
            v, step = drawn(32, seed=seed + 5), 1e-4
            up, down = (
                scores(model, tiny_tokenizer, readers, tokens, AddDirection(v, site, 0), sign * step)
                for sign in (1, -1)
            )
            torch.testing.assert_close(found @ v, ((up - down) / (2 * step)).float(), rtol=5e-3, atol=1e-3)
    finally:
        model.float()
    # It is not the reader itself: the layers between change it.
    assert torch.cosine_similarity(found, readers).max() < 0.95


def test_held_pulled_back_a_later_probe_stays_where_one_held_here_moves(tiny_model, tiny_tokenizer):
    model, readers, v = tiny_model("llama"), drawn(2, 32), drawn(32, seed=1)
    back = pulled_back(model, tiny_tokenizer, TEXTS, readers, later=2, layer=0)
    plain, moved = scores(model, tiny_tokenizer, readers, "last"), []
    for still in (readers, back):
        edit = Hold.fit(AddDirection(v, layer=0), still)
        after = scores(model, tiny_tokenizer, readers, "last", edit, 0.003)
        moved.append(float((after - plain).abs().max()))
    assert moved[1] < moved[0] / 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": torch.ones(5)}, "has 32 numbers per token"),
        ({"texts": []}, "needs texts"),
        ({"tokens": "first"}, 'tokens="last" or "all"'),
        ({"later": 0, "layer": 2}, "nothing at resid_post of layer 0 depends on resid_post of layer 2"),
    ],
)
def test_what_cannot_be_pulled_back_says_so_in_one_line(tiny_model, tiny_tokenizer, options, message):
    given = {"texts": TEXTS, "directions": torch.ones(32), "later": 2, "layer": 0, **options}
    with pytest.raises(EntangleError, match=message) as caught:
        pulled_back(tiny_model("llama"), tiny_tokenizer, given.pop("texts"), given.pop("directions"), **given)
    assert "\n" not in str(caught.value)
