"""One method at several places: a part of the whole, where its name says, told in the table."""

import numpy as np
import pytest
import torch

from entangle.activations import collect
from entangle.errors import EntangleError
from entangle.evaluation import caa_places, iti_places, tradeoff
from entangle.interventions import ITI

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


def test_fewer_heads_are_the_best_of_more_and_the_same_as_fitted_alone(labelled):
    found = iti_places(*labelled, top_k=[2, 5])
    assert list(found) == ["ITI 2 heads", "ITI 5 heads"]
    alone = ITI.fit(labelled[0], torch.as_tensor(labelled[1]), top_k=5)
    assert found["ITI 5 heads"].heads == alone.heads
    assert found["ITI 2 heads"].heads == alone.heads[:2]
    torch.testing.assert_close(found["ITI 5 heads"].directions, alone.directions)
    torch.testing.assert_close(found["ITI 5 heads"].sigmas, alone.sigmas)


def test_layers_are_kept_to_and_told_in_the_table(labelled, tiny_model, tiny_tokenizer):
    methods = iti_places(*labelled, top_k=[1, 3], layers={"early": [0], "late": [1, 2]}) | caa_places(*labelled)
    assert list(methods) == [
        "ITI 1 heads early", "ITI 3 heads early", "ITI 1 heads late", "ITI 3 heads late",
        "CAA layer 0", "CAA layer 1", "CAA layer 2",
    ]  # fmt: skip
    frame = tradeoff(
        tiny_model("llama"),
        tiny_tokenizer,
        methods,
        alphas=[1.0],
        prompts=["the cat", "a fox"],
        scorer=vowels,
        texts=CATS,
        max_new_tokens=3,
        progress=False,
    ).to_frame()
    changed = frame[frame["alpha"] == 1].set_index("method")
    assert changed.loc["ITI 3 heads early", ["sites", "layers", "heads"]].tolist() == ["z", "0", 3]
    assert set(changed.loc["ITI 3 heads late", "layers"].split()) <= {"1", "2"}
    assert changed.loc["CAA layer 2", ["sites", "layers", "heads"]].tolist() == ["resid_post", "2", 0]
    assert (frame.loc[frame["alpha"] == 0, "sites"] == "").all()


def vowels(texts):
    return np.array([sum(c in "aeiou" for c in text) / len(text) for text in texts])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (iti_places, {"top_k": [0]}, "top_k must be from 1 to the"),
        (iti_places, {"top_k": [5], "layers": {"early": [0]}}, "top_k must be from 1 to the 4 heads of early layers"),
        (iti_places, {"top_k": [1], "layers": {"late": [9]}}, "no activations of layer 9; there are those of 0, 1, 2"),
        (caa_places, {"layers": [9]}, "no activations of layer 9"),
    ],
)
def test_bad_places(make, options, message, labelled):
    with pytest.raises(EntangleError, match=message):
        make(*labelled, **options)
