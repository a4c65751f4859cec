"""LinEAS: the distance falls on other texts, the edit is the map that was learned, and the lasso empties it."""

from __future__ import annotations

import pytest
import torch

import entangle as en
from entangle.errors import EntangleError
from entangle.interventions import LinearTransport, steer
from entangle.models import is_hooked


@pytest.fixture(scope="module")
def example():
    model, tokenizer, said, _, _, clean = en.example()
    return model, tokenizer, said[0::2], said[1::2], clean[:20]


def pooled(model, tokenizer, texts, edit=()):
    with steer(model, edit):
        acts = en.collect(model, tokenizer, texts, sites="resid_post", tokens="mean", progress=False)
    return acts["resid_post"]


def distance(a, b):
    """Between two samples, coordinate by coordinate, in spreads of the second."""
    return float(((a.sort(0).values - b.sort(0).values) / b.std(0)).square().mean())


def test_texts_that_took_no_part_come_to_look_like_the_other_side(example):
    model, tokenizer, polite, rude, clean = example
    few = {"clean": clean, "steps": 60, "must_converge": False, "progress": False}
    learned = en.learning.lineas(model, tokenizer, polite[:32], rude[:32], layers=[0, 1], **few)
    wanted, before = pooled(model, tokenizer, polite[32:]), pooled(model, tokenizer, rude[32:])
    after = pooled(model, tokenizer, rude[32:], learned.edit)
    assert distance(after[:, 1], wanted[:, 1]) < 0.8 * distance(before[:, 1], wanted[:, 1])
    assert learned.history[-1]["loss"] < learned.history[0]["loss"]
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        with steer(model, learned.edit):
            steered = model(ids).logits
        torch.testing.assert_close(learned.edit.bake(model)(ids).logits, steered, atol=1e-4, rtol=1e-4)
    assert [type(each) for each in learned.edit.edits] == [LinearTransport] * 2
    assert learned.kl > 0
    assert not is_hooked(model)


def test_the_lasso_takes_coordinates_out_and_in_the_end_everything(example):
    model, tokenizer, polite, rude, clean = example
    few = {"clean": clean, "layers": 1, "progress": False}
    sides = polite[:16], rude[:16]
    shares = []
    for sparsity in (0.0, 0.4):
        learned = en.learning.lineas(model, tokenizer, *sides, sparsity=sparsity, steps=30, must_converge=False, **few)
        shares.append(float((learned.edit.shift != 0).float().mean()))
    assert shares[1] < shares[0] == 1.0
    with pytest.raises(EntangleError, match="lineas found nothing that does better"):
        en.learning.lineas(model, tokenizer, *sides, sparsity=10.0, steps=50, **few)


@pytest.mark.parametrize(("options", "message"), [({"steps": 1}, "10 steps"), ({"sparsity": -1.0}, "0 or more")])
def test_bad_settings_are_refused_in_one_line(example, options, message):
    model, tokenizer, polite, rude, _ = example
    with pytest.raises(EntangleError, match=message):
        en.learning.lineas(model, tokenizer, polite, rude, layers=1, **options)
