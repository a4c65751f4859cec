"""At the place of the push, cross-talk is geometry exactly; below it there is none; the model is left as it was."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from entangle.activations import collect
from entangle.concepts.crosstalk import CrossTalk, cross_talk
from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.evaluation import kl
from entangle.interventions import AddDirection
from entangle.metrics import Estimate
from entangle.probes import fit_probes

WORDS = ["the quick brown fox", "a lazy dog", "the cat sat", "on the mat", "looked at the moon", "jumps over"]
TEXTS = [" ".join(pair) for pair in itertools.permutations(WORDS, 2)]
NAMES = ("fox", "moon", "mat")


@pytest.fixture(scope="module")
def setting(tiny_model, tiny_tokenizer):
    model = tiny_model("olmo2")
    acts = collect(model, tiny_tokenizer, TEXTS, sites="resid_post", progress=False)["resid_post"]
    labels = {name: torch.tensor([int(name in text) for text in TEXTS]) for name in NAMES}
    readers = {k: fit_probes(acts, y, n_permutations=0, n_resamples=10, progress=False) for k, y in labels.items()}
    differences = [acts[y == 1, 1].mean(0) - acts[y == 0, 1].mean(0) for y in labels.values()]
    directions = Directions(torch.stack(differences), NAMES, "resid_post", 1, estimator="mean_difference")
    return model, tiny_tokenizer, directions, readers, acts


@pytest.fixture(scope="module")
def found(setting):
    model, tokenizer, directions, readers, _ = setting
    return cross_talk(model, tokenizer, directions, readers, TEXTS, n_random=6, n_resamples=100, progress=False)


def test_where_it_pushes_the_shift_is_geometry(setting, found):
    _, _, directions, readers, acts = setting
    sigma = (acts[:, 1] @ directions.vectors.T).std(0)
    weights = torch.stack([readers[name].coef_[1].float() for name in NAMES])
    expected = sigma[:, None] * (directions.vectors @ weights.T) / (acts[:, 1] @ weights.T).std(0)
    assert torch.allclose(found.shift.value[1].float(), expected, atol=1e-4)
    assert torch.allclose(found.sigma.float(), sigma, atol=1e-5)


def test_nothing_moves_below_the_push_and_everything_above(found):
    assert found.layers == (0, 1, 2)
    assert found.shift.value[0].abs().max() == 0
    assert found.shift.value[2].abs().min() > 0
    assert (found.shift.low[2] <= found.shift.value[2]).all()
    assert (found.shift.high[2] >= found.shift.value[2]).all()
    assert (found.shift.high[2] > found.shift.low[2]).all()
    assert found.null.shape == (6, 3, 3)
    assert found.null[:, 0].abs().max() == 0


def test_kl_is_that_of_the_same_edit(setting, found):
    model, tokenizer, directions, _, _ = setting
    edit = AddDirection(float(found.sigma[1]) * directions.vectors[1], "resid_post", 1)
    assert float(found.kl.value[1]) == pytest.approx(kl(model, tokenizer, TEXTS, edit, progress=False).mean, rel=1e-4)
    assert (found.kl.low > 0).all()
    assert (found.kl.low <= found.kl.value).all()
    assert len(found.null_kl) == 6


def test_no_push_no_shift_and_no_trace(setting):
    model, tokenizer, directions, readers, acts = setting
    still = cross_talk(model, tokenizer, directions, readers, TEXTS, strength=0.0, n_random=0, progress=False)
    assert still.shift.value.abs().max() == 0
    assert still.kl.value.abs().max() == 0
    again = collect(model, tokenizer, TEXTS, sites="resid_post", progress=False)["resid_post"]
    assert torch.equal(again, acts)


def test_one_head_can_be_pushed(setting):
    model, tokenizer, _, readers, _ = setting
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    directions = Directions(vectors, NAMES, "z", 1, 2)
    result = cross_talk(model, tokenizer, directions, readers, TEXTS, n_random=2, n_resamples=20, progress=False)
    assert result.shift.value[0].abs().max() == 0
    assert result.shift.value[1].abs().min() > 0


def made(effect, cosine):
    n = len(cosine)
    value = torch.as_tensor(effect).double()[None]
    return CrossTalk(
        tuple(map(str, range(n))),
        (5,),
        Estimate(value, value, value),
        torch.zeros(0, 1, n),
        Estimate(*[value[0, 0]] * 3),
        torch.zeros(0),
        torch.as_tensor(cosine).double(),
        torch.ones(n),
    )


def test_correlation_is_spearmans_and_its_p_value_is_honest():
    rng = np.random.default_rng(0)
    pairs = ~np.eye(6, dtype=bool)
    p_values = []
    for _ in range(100):
        cosine, effect = (m + m.T for m in rng.normal(size=(2, 6, 6)))
        result = made(effect, cosine).correlation(5, n_permutations=99)
        assert result.rho == pytest.approx(spearmanr(abs(cosine)[pairs], abs(effect)[pairs]).statistic)
        p_values.append(result.p_value)
    assert np.mean(np.array(p_values) <= 0.1) < 0.2
    cosine = rng.normal(size=(6, 6))
    assert made(3 * cosine, cosine).correlation(5).rho == pytest.approx(1)
    assert made(3 * cosine, cosine).correlation(5).p_value < 0.02


def test_frame_json_and_plot(found):
    frame = found.to_frame()
    assert len(frame) == 27
    row = frame[(frame.layer == 2) & (frame.source == "moon") & (frame.target == "fox")].iloc[0]
    assert row["shift"] == pytest.approx(float(found.shift.value[2, 1, 0]))
    assert row["cosine"] == pytest.approx(float(found.cosine[1, 0]))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["names"] == list(NAMES)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    assert "layer 2" in found.plot().get_title(loc="left")


def test_bad_input_is_one_clear_line(setting):
    model, tokenizer, directions, readers, _ = setting
    two = {k: readers[k] for k in NAMES[:2]}
    for call, message in [
        (lambda: cross_talk(model, tokenizer, directions, two, TEXTS), "readers must be of"),
        (lambda: cross_talk(model, tokenizer, Directions(directions.vectors, NAMES), readers, TEXTS), "where to push"),
        (lambda: cross_talk(model, tokenizer, directions, readers, []), "text"),
        (lambda: made(np.eye(2), np.eye(2)).correlation(5), "3 concepts"),
        (lambda: made(np.eye(3), np.eye(3)).correlation(4), "not at 4"),
    ]:
        with pytest.raises(EntangleError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_readers_of_some_layers_must_know_which(setting):
    model, tokenizer, directions, _, acts = setting
    labels = {name: torch.tensor([int(name in text) for text in TEXTS]) for name in NAMES}
    some = {k: fit_probes(acts[:, 1:], y, n_permutations=0, n_resamples=10, progress=False) for k, y in labels.items()}
    with pytest.raises(EntangleError, match="a reader of 2 layers does not know which of the model's 3 they are"):
        cross_talk(model, tokenizer, directions, some, TEXTS, progress=False)
