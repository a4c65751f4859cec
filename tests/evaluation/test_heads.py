"""Heads that read a concept are kept, flipped or dropped by what pushing them does, where that is planted."""

from functools import partial

import numpy as np
import pytest
import torch

from entangle.activations import collect
from entangle.errors import EntangleError
from entangle.evaluation import RECIPES, baseline_methods, causal_heads, kl
from entangle.evaluation.methods.baselines import IN_MODEL
from entangle.interventions import ITI
from entangle.models import Atlas

WORDS = ["over", "at", "moon", "jumps", "and", "on", "lazy", "sat", "the", "dog"]
LAYER = 2


@pytest.fixture(scope="module")
def planted(tiny_model, tiny_tokenizer):
    """A model of which heads 0 and 1 of the last layer write "fox" against "cat" with one and the other sign, head 2
    writes nothing, and head 3 what it wrote; texts of cats and of foxes."""
    from copy import deepcopy

    model = deepcopy(tiny_model("llama"))
    tokens = [tiny_tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("fox", "cat")]
    away = torch.nn.functional.normalize(model.lm_head.weight[tokens[0]] - model.lm_head.weight[tokens[1]], dim=0)
    place = Atlas(model).place("z", LAYER)
    size = place.d_head
    theta = torch.nn.functional.normalize(torch.arange(1.0, size + 1), dim=0)
    output = model.model.layers[LAYER].self_attn.o_proj.weight
    with torch.no_grad():
        for head, sign in ((0, -1.0), (1, 1.0), (2, 0.0)):
            output[:, head * size : (head + 1) * size] = 6 * sign * torch.outer(away, theta)
    rng = np.random.default_rng(0)

    def texts(word, n):
        return [" ".join(rng.permutation([*rng.choice(WORDS, 4), word, word])) for _ in range(n)]

    iti = ITI([(LAYER, head) for head in range(3)], theta.repeat(3, 1), torch.ones(3))
    return model, tiny_tokenizer, iti, texts("cat", 40), texts("fox", 40)


@pytest.mark.parametrize("how", ["push", "gradient"])
def test_a_head_that_writes_is_kept_one_reversed_is_flipped_and_one_that_only_reads_is_dropped(planted, how):
    model, tokenizer, iti, cats, foxes = planted
    found = causal_heads(model, tokenizer, iti, toward=cats, away=foxes, alpha=2.0, how=how, progress=False)
    assert found.to_frame()["decision"].tolist() == ["keep", "flip", "drop"]
    assert found.iti.heads == [(LAYER, 0), (LAYER, 1)]
    torch.testing.assert_close(found.iti.directions, iti.directions[:2] * torch.tensor([[1.0], [-1.0]]))
    assert found.iti.selection == "causal"
    assert found.wrong_way.value == 0.5
    assert found.answer()[0].startswith("Of 3 heads that read the concept, 1 push it the way they read it, 1 the wrong")
    turned = causal_heads(model, tokenizer, iti, toward=foxes, away=cats, alpha=2.0, how=how, progress=False)
    assert turned.to_frame()["decision"].tolist() == ["flip", "keep", "drop"]


def test_the_gradient_foretells_a_small_push(planted):
    model, tokenizer, iti, cats, foxes = planted
    pushed, foretold = (
        causal_heads(model, tokenizer, iti, toward=cats, away=foxes, alpha=0.01, how=how, progress=False).to_frame()
        for how in ("push", "gradient")
    )
    np.testing.assert_allclose(pushed["effect"], foretold["effect"], rtol=0.05, atol=1e-6)
    assert pushed["kl"].iloc[0] > 0
    assert foretold["kl"].isna().all()


def test_with_permuted_labels_hardly_any_test_keeps_a_head(planted):
    model, tokenizer, iti, cats, foxes = planted
    mixed = [*cats, *foxes]
    rng = np.random.default_rng(1)
    kept = []
    for _ in range(20):
        order = rng.permutation(len(mixed))
        toward, away = ([mixed[i] for i in part] for part in np.split(order, 2))
        options = {"alpha": 2.0, "how": "gradient", "n_permutations": 200, "progress": False}
        kept.append(bool(causal_heads(model, tokenizer, iti, toward=toward, away=away, **options).signs.any()))
    assert sum(kept) <= 4  # of 20 tests at level .05; the chance of 5 or more is .003


def test_without_correction_each_head_is_tested_alone(planted):
    model, tokenizer, iti, cats, foxes = planted
    frame = causal_heads(
        model, tokenizer, iti, toward=cats[:8], away=foxes[:8], how="gradient", familywise=False, progress=False
    ).to_frame()
    assert (frame["p"] >= frame["p_alone"]).all()
    assert (frame["decision"].eq("drop") == (frame["p_alone"] >= 0.05)).all()


def test_groups_of_texts_are_permuted_whole(planted):
    model, tokenizer, iti, cats, foxes = planted
    options = {"how": "gradient", "alpha": 2.0, "n_permutations": 400, "progress": False}
    alone = causal_heads(model, tokenizer, iti, toward=cats[:8] * 4, away=foxes[:8] * 4, **options)
    groups = list(range(8)) * 4, list(range(8, 16)) * 4
    together = causal_heads(model, tokenizer, iti, toward=cats[:8] * 4, away=foxes[:8] * 4, groups=groups, **options)
    np.testing.assert_allclose(alone.table["effect"], together.table["effect"])
    assert alone.table["p"].iloc[0] == pytest.approx(1 / 401)
    assert together.table["p"].iloc[0] >= alone.table["p"].iloc[0]
    with pytest.raises(EntangleError, match="groups must name one for each text"):
        causal_heads(model, tokenizer, iti, toward=cats, away=foxes, groups=([0], [1]), **options)
    with pytest.raises(EntangleError, match="groups must name one for each text of either side, as a pair of lists"):
        causal_heads(model, tokenizer, iti, toward=cats[:8], away=foxes[:8], groups=[0] * 16, **options)
    with pytest.raises(EntangleError, match="groups must name one for each example, but example 0 has NaN or None"):
        causal_heads(
            model, tokenizer, iti, toward=cats[:8], away=foxes[:8], groups=([None] * 8, list(range(8))), **options
        )


def test_iti_takes_the_test_where_it_is_fitted(planted):
    model, tokenizer, _, cats, foxes = planted
    texts = [*cats[:30], *foxes[:30]]
    acts = collect(model, tokenizer, texts, sites="z", layers=[LAYER], progress=False)
    labels = [0] * 30 + [1] * 30
    test = partial(
        causal_heads, model, tokenizer, toward=cats[30:], away=foxes[30:], how="gradient", level=0.5, progress=False
    )
    plain, tested = (
        ITI.fit(acts, labels, top_k=4, heads=heads, test=t) for heads, t in (("probe", None), ("causal", test))
    )
    assert tested.selection == "causal"
    signs = test(plain).signs
    assert tested.heads == [head for head, sign in zip(plain.heads, signs, strict=True) if sign]
    with pytest.raises(EntangleError, match='heads="causal" and test= belong together'):
        ITI.fit(acts, labels, top_k=4, heads="causal")
    with pytest.raises(EntangleError, match="none of the 4 heads is left"):
        ITI.fit(acts, labels, top_k=4, heads="causal", test=partial(test, level=1e-6))


def test_baselines_hand_it_out_by_name(planted):
    model, tokenizer, _, cats, foxes = planted
    texts, labels = [*cats, *foxes], [0] * 40 + [1] * 40
    acts = collect(model, tokenizer, texts, sites=["z", "resid_post"], progress=False)
    methods = baseline_methods(
        acts, labels, top_k=6, names=["ITI", "ITI, causal heads"], model=model, tokenizer=tokenizer, texts=texts
    )
    found = methods.made_of.causal
    assert found.n_texts == (8, 8)  # of the selection rows alone
    assert methods["ITI, causal heads"].heads == found.iti.heads
    mixed = {"top_k": 6, "names": ["ITI", "ITI, causal heads"], "model": model, "tokenizer": tokenizer, "texts": texts}
    senseless = np.random.default_rng(0).permutation(labels)
    with pytest.raises(EntangleError, match="none of the 6 heads is left"):
        baseline_methods(acts, senseless, strict=True, **mixed)
    with pytest.warns(UserWarning, match='"ITI, causal heads" is left out: none of the 6 heads is left'):
        left = baseline_methods(acts, senseless, **mixed)
    assert list(left) == ["ITI"]
    with pytest.warns(UserWarning, match="none of the 6 heads is left"):
        whole = baseline_methods(acts, senseless, **{**mixed, "names": "all"})
    assert set(whole) == {name for name, recipe in RECIPES.items() if set(recipe.needs) <= {*IN_MODEL, "words"}} - {
        "ITI, causal heads"
    }
    assert left.missing["ITI, causal heads"].startswith("none of the 6 heads is left")
    with pytest.raises(EntangleError, match='"ITI, causal heads" needs model=; got None'):
        baseline_methods(acts, labels, top_k=6, names=["ITI, causal heads"])


def test_signs_choose_and_turn_heads(planted):
    iti = planted[2]
    part = iti.signed([0, -1, 1])
    assert part.heads == iti.heads[1:]
    torch.testing.assert_close(part.directions, iti.directions[1:] * torch.tensor([[-1.0], [1.0]]))
    assert kl(planted[0], planted[1], planted[3][:2], part, alpha=0.0, progress=False).mean == 0
    for signs in ([1, 1], [2, 1, 1]):
        with pytest.raises(EntangleError, match="3 heads need a sign each"):
            iti.signed(signs)


def test_too_few_texts_and_senseless_settings_are_refused(planted):
    model, tokenizer, iti, cats, foxes = planted
    with pytest.raises(EntangleError, match="8 texts or more on each side; got 2 and 40"):
        causal_heads(model, tokenizer, iti, toward=cats[:2], away=foxes)
    for bad in ({"alpha": 0.0}, {"level": 1.0}, {"how": "guess"}):
        with pytest.raises(EntangleError, match="a test of heads needs alpha > 0"):
            causal_heads(model, tokenizer, iti, toward=cats, away=foxes, **bad)
