"""The standard baselines are what they say, and run in one sweep."""

import numpy as np
import pytest
import torch

from entangle.activations import collect
from entangle.errors import EntangleError
from entangle.evaluation import baseline_methods, tradeoff

CATS = ["the cat sat on the mat", "a cat looked at the moon", "the cat and the dog", "a cat on the mat"]
FOXES = ["the quick brown fox", "a brown fox jumps over", "the lazy dog and the fox", "a quick fox"]


@pytest.fixture(scope="module")
def labelled(tiny_model, tiny_tokenizer):
    rng = np.random.default_rng(0)
    words = ["over", "at", "the moon", "jumps", "and", "on", "lazy", "sat"]
    labels = np.arange(80) % 2
    texts = [f"{rng.choice(words)} {rng.choice(FOXES if y else CATS)} {' '.join(rng.choice(words, 3))}" for y in labels]
    acts = collect(tiny_model("llama"), tiny_tokenizer, texts, sites=["z", "resid_post"], progress=False)
    return acts, labels


def test_steering_toward_a_class_moves_its_projection_there(labelled):
    acts, labels = labelled
    for toward in (0, 1):
        caa = baseline_methods(acts, labels, top_k=4, toward=toward)["CAA"]
        rows = acts["resid_post"][:, acts.layers("resid_post").index(caa.layer)]
        along = rows @ torch.nn.functional.normalize(caa.vector, dim=0)
        means = [along[labels == y].mean() for y in (0, 1)]
        assert means[toward] > means[1 - toward]
        assert caa.vector.norm().item() == pytest.approx(along.std().item(), rel=0.25)


def test_controls_change_one_thing_each(labelled):
    methods = baseline_methods(*labelled, top_k=4)
    iti, heads, directions = (methods[name] for name in ("ITI", "random heads", "random directions"))
    assert directions.heads == iti.heads
    assert not torch.allclose(directions.directions, iti.directions)
    assert heads.heads != iti.heads
    shared = [h for h in iti.heads if h in heads.heads]
    for head in shared:
        torch.testing.assert_close(
            heads.directions[heads.heads.index(head)], iti.directions[iti.heads.index(head)], rtol=1e-4, atol=1e-5
        )


def test_all_of_them_run_and_all_but_the_plain_model_change_something(labelled, tiny_model, tiny_tokenizer):
    def vowels(texts):
        return np.array([sum(c in "aeiou" for c in text) / len(text) for text in texts])

    methods = baseline_methods(*labelled, top_k=4)
    methods["prompting"] = type(methods["prompting"])("the ")
    methods["self-debias"] = type(methods["self-debias"])("the lazy dog", alphas=(10.0,))
    frame = tradeoff(
        tiny_model("llama"),
        tiny_tokenizer,
        methods,
        alphas=[4.0],
        prompts=["the cat", "a fox", "moon"],
        scorer=vowels,
        texts=CATS,
        max_new_tokens=4,
        progress=False,
    ).to_frame()
    assert frame["method"].unique().tolist() == list(methods)
    assert (frame["error"] == "").all()
    assert (frame.loc[frame["alpha"] > 0, "kl"] > 0).all()


def test_both_sites_are_needed(tiny_model, tiny_tokenizer):
    acts = collect(tiny_model("llama"), tiny_tokenizer, CATS, sites="z", progress=False)
    with pytest.raises(EntangleError, match="need activations of resid_post"):
        baseline_methods(acts, [0, 1, 0, 1])
