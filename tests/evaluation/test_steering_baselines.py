"""The standard baselines are what they say, and run in one sweep."""

import numpy as np
import pytest
import torch

from entangle.activations import collect
from entangle.errors import EntangleError
from entangle.evaluation import baseline_methods, tradeoff
from entangle.evaluation.methods.baselines import RECIPES
from entangle.storage import digest

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


def test_all_that_activations_allow_is_handed_out_by_name(labelled):
    acts, labels = labelled
    methods = baseline_methods(acts, labels, top_k=4, names="all", sources=np.arange(80) % 4 // 2)
    model_free = {name for name, recipe in RECIPES.items() if set(recipe.needs) <= {"sources"}} - {"CAA by source"}
    assert set(methods) == model_free | {"CAA of 0", "CAA of 1"}
    assert methods.made_of.directions.names[:2] == ("mean difference", "logistic probe")


def test_a_model_and_texts_bring_the_rest(labelled, tiny_model, tiny_tokenizer):
    acts, labels = labelled
    texts = [f"{FOXES[i % 4] if y else CATS[i % 4]} {i}" for i, y in enumerate(labels)]
    clean = [f"the moon looked at {word} and sat" for word in ("it", "me", "us", "all", "one", "two", "mat", "dog")]
    names = ["contrast gradient", "natural shift", "logit lens", "DExperts", "contrastive decoding"]
    methods = baseline_methods(
        acts,
        labels,
        names=names,
        model=tiny_model("llama"),
        tokenizer=tiny_tokenizer,
        texts=texts,
        clean=clean,
        anti_expert=tiny_model("llama", seed=1),
    )
    assert list(methods) == names
    assert methods["natural shift"].layer in acts.layers("resid_post")
    fitting = {texts[i] for i in methods.split.fit.tolist()}
    assert not fitting & {texts[i] for i in methods.split.select.tolist()}
    assert len(methods.made_of.contrast("fit").toward) == int((labels[methods.split.fit.numpy()] == 0).sum())


def test_held_concepts_are_held_where_the_vector_acts(labelled):
    acts, labels = labelled
    other = np.arange(80) % 4 // 2
    methods = baseline_methods(acts, labels, names=["CAA", "CAA, others held"], others={"other": (acts, other)})
    caa, held = (method(torch.zeros(1, 32)) for method in methods.values())
    normal = methods.made_of.held_normals[0]
    assert abs(float(held[0] @ normal)) < 1e-4 < abs(float(caa[0] @ normal))


def test_no_group_straddles_fitting_choosing_and_reporting(labelled):
    acts, labels = labelled
    groups = np.arange(80) // 4
    methods = baseline_methods(acts, labels, top_k=4, groups=groups)
    parts = [set(groups[getattr(methods.split, part).numpy()]) for part in ("fit", "select", "report")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 20
    alone = baseline_methods(acts, labels, top_k=4)
    divided = [set(groups[getattr(alone.split, part).numpy()]) for part in ("fit", "select", "report")]
    assert sum(map(len, divided)) > 20  # without them, they are divided
    with pytest.raises(EntangleError, match="has examples in two parts of the split"):
        baseline_methods(acts, labels, top_k=4, groups=groups, grid=alone.made_of.grid)


def test_no_method_depends_on_the_report_rows(labelled):
    acts, labels = labelled
    methods = baseline_methods(acts, labels, top_k=4, names=["ITI", "CAA", "LAT", "logistic probe", "LEACE"])
    report = methods.split.report
    others = {site: acts[site].clone() for site in acts.sites}
    for numbers in others.values():
        numbers[report] = numbers[report].flip(0) * 1.5
    again = baseline_methods(Changed(acts, others), labels, top_k=4, names=list(methods))
    for name, method in methods.items():
        assert digest(method) == digest(again[name]), name
    others["resid_post"][methods.split.fit] *= 1.5
    assert digest(baseline_methods(Changed(acts, others), labels, names=["CAA"])["CAA"]) != digest(methods["CAA"])


class Changed:
    """Activations with other numbers."""

    def __init__(self, acts, numbers):
        self.acts, self.numbers = acts, numbers
        self.sites, self.fingerprint = acts.sites, acts.fingerprint

    def layers(self, site):
        return self.acts.layers(site)

    def __getitem__(self, site):
        return self.numbers[site]


def test_what_a_method_lacks_is_said_in_one_line(labelled):
    acts, labels = labelled
    for name, needed in (
        ("DExperts", "anti_expert= or expert="),
        ("natural shift", "model="),
        ("CAA by source", "sources="),
        ("SAE feature", "autoencoders="),
        ("logit lens", "words= .or model=, tokenizer= and texts=."),
    ):
        with pytest.raises(EntangleError, match=f'"{name}" needs {needed}; got None: give it, or leave the method out'):
            baseline_methods(acts, labels, top_k=4, names=[name])
    with pytest.raises(EntangleError, match="no method is called 'guess'; there are ITI"):
        baseline_methods(acts, labels, names=["guess"])
    with pytest.raises(EntangleError, match='names must be a list of methods, or "all"'):
        baseline_methods(acts, labels, names="ITI")
    with pytest.raises(EntangleError, match="groups must have one for each row; got 2 for 80 rows"):
        baseline_methods(acts, labels, groups=[0, 1])


def test_both_sites_are_needed(tiny_model, tiny_tokenizer):
    acts = collect(tiny_model("llama"), tiny_tokenizer, CATS, sites="z", progress=False)
    with pytest.raises(EntangleError, match="need activations of resid_post"):
        baseline_methods(acts, [0, 1, 0, 1])
