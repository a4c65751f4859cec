"""Directions by name: each finds what is planted, from the fitting rows alone, and is chosen and judged on others."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.evaluation import (
    agreement,
    concept_directions,
    feature_direction,
    leading_component,
    paired_rows,
    telling_tokens,
)
from entangle.forecast import Contrast, ShiftMetric

D, N, LAYERS = 24, 240, 3


class Acts:
    """Activations of a concept that lies along the first axis, clearer in the middle layer; two sources differ."""

    sites = ("z", "resid_post")
    fingerprint = None

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.y = np.arange(N) % 2
        self.group = np.arange(N) // 4
        self.source = np.where(self.group % 2, "posts", "mails")
        x = rng.normal(size=(N, LAYERS, D))
        x[:, :, 1] *= 3  # where rows vary most, whatever their class
        x[:, :, 0] += np.array([1.0, 4.0, 2.0]) * (self.y[:, None] - 0.5)
        x[:, :, 2] += 2.0 * ((self.y - 0.5) * (self.source == "mails"))[:, None]
        self.x = torch.from_numpy(x).float()

    def layers(self, site):
        return [3, 5, 7]

    def __getitem__(self, site):
        return self.x if site == "resid_post" else self.x.reshape(N, LAYERS, 4, D // 4)


@pytest.fixture(scope="module")
def acts():
    return Acts()


def test_every_reading_finds_the_planted_axis_and_its_clearest_layer(acts):
    found = concept_directions(acts, acts.y, groups=acts.group, sources=acts.source)
    for name in ("mean difference", "logistic probe", "lda probe", "ridge probe", "svm probe", "LAT"):
        assert found.best(name) == 5
        assert found.vectors[name][5][0] < (-0.5 if name.endswith("probe") else -0.8), name  # toward class 0
        assert found.edit(name).vector.norm().item() == pytest.approx(found.spreads[name][5], rel=1e-5)
    frame = found.to_frame()
    chosen = frame[frame["chosen"]].set_index("direction")
    assert chosen.loc["mean difference", "auroc"] > 0.95
    assert chosen.loc["mean difference", "agreement"] > 0.4
    assert 0.2 < chosen.loc["random", "auroc"] < 0.8
    mails, posts = (found.vectors[f"mean difference of {name}"][5] for name in ("mails", "posts"))
    assert mails[2] < -0.2 < posts[2] + 0.15


def test_a_centred_component_may_miss_what_all_pairs_share(acts):
    found = concept_directions(acts, acts.y)
    centred, uncentred = (found.vectors[name][5] for name in ("centred PCA", "LAT"))
    assert abs(centred[1]) > 0.95
    assert abs(uncentred[0]) > abs(centred[0])


def test_pairs_share_names_and_stay_in_one_part(acts):
    names = np.repeat(np.arange(N // 2), 2)
    found = concept_directions(acts, acts.y, pairs=names)
    parts = {int(i): part for part in ("fit", "select", "report") for i in getattr(found.split, part)}
    assert all(parts[i] == parts[i + 1] for i in range(0, N, 2))
    one, other = paired_rows(torch.tensor(acts.y == 0), names.tolist())
    assert (names[one.numpy()] == names[other.numpy()]).all()
    assert len(one) == N // 2


def test_no_group_is_in_two_parts_and_a_split_that_divides_one_is_refused(acts):
    found = concept_directions(acts, acts.y, groups=acts.group)
    groups = [set(acts.group[getattr(found.split, part).numpy()]) for part in ("fit", "select", "report")]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    divided = concept_directions(acts, acts.y).split
    with pytest.raises(EntangleError, match="has examples in two parts of the split"):
        concept_directions(acts, acts.y, groups=acts.group, split=divided)


def test_the_report_rows_make_and_choose_nothing(acts):
    found = concept_directions(acts, acts.y, sources=acts.source)
    other = Acts()
    other.x[found.split.report] = torch.randn(
        len(found.split.report), LAYERS, D, generator=torch.Generator().manual_seed(1)
    )
    again = concept_directions(other, acts.y, sources=acts.source)
    for name in found.names:
        assert found.best(name) == again.best(name)
        for layer, vector in found.vectors[name].items():
            assert torch.equal(vector, again.vectors[name][layer])
    assert not found.to_frame()["auroc"].equals(again.to_frame()["auroc"])


def test_the_other_class_is_the_other_way(acts):
    one, other = (concept_directions(acts, acts.y, toward=toward, probes=["logistic"]) for toward in (0, 1))
    for name in ("mean difference", "LAT", "centred PCA"):
        torch.testing.assert_close(one.vectors[name][5], -other.vectors[name][5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        one.vectors["logistic probe"][5], -other.vectors["logistic probe"][5], rtol=1e-2, atol=1e-3
    )


def test_a_feature_is_chosen_by_its_contrast_and_signed_by_it():
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 8, generator=rng)
    target = torch.arange(200) % 2 == 0
    rows[:, 3] -= 3 * target.float()  # active on the other class
    sae = SimpleNamespace(encode=torch.relu, W_dec=torch.eye(8), site="resid_post", layer=0)
    number, direction = feature_direction(sae, rows, target)
    assert number == 3
    assert torch.equal(direction, -torch.eye(8)[3])
    with pytest.raises(EntangleError, match="needs a decoder W_dec"):
        feature_direction(SimpleNamespace(encode=torch.relu), rows, target)
    with pytest.raises(EntangleError, match="no feature of the autoencoder is active"):
        feature_direction(SimpleNamespace(encode=lambda x: 0 * x, W_dec=torch.eye(8)), rows, target)


def test_gradient_shift_and_lens_of_a_model_are_those_of_their_own_rooms(tiny_model, tiny_tokenizer):
    from entangle.activations import collect
    from entangle.forecast import NaturalShift

    model = tiny_model("llama")
    cats = [
        f"the cat sat on {word}" for word in ("mat", "moon", "fox", "dog", "it", "me", "us", "all", "one", "two")
    ] * 2
    foxes = [text.replace("cat sat", "fox jumps") for text in cats]
    texts, y = [*cats, *foxes], [0] * 20 + [1] * 20
    acts = collect(model, tiny_tokenizer, texts, sites="resid_post", progress=False)
    contrast = Contrast.fit(model, tiny_tokenizer, cats, foxes, progress=False)
    clean = [
        f"a quick brown dog looked {word}" for word in ("up", "at the moon", "over", "on", "and sat", "a", "b", "c")
    ]
    metric = ShiftMetric.fit(model, tiny_tokenizer, clean * 2, samples=2, directions=0, progress=False)
    up, down = telling_tokens(tiny_tokenizer, texts, torch.tensor(y) == 0, n=3)
    words = Directions.from_unembedding(model, tiny_tokenizer, {"cats": (up, down)})
    found = concept_directions(acts, y, contrast=contrast, metric=metric, words=words)
    gradient = torch.nn.functional.normalize(contrast.at([("resid_post", 1)]).gradient, dim=0)
    torch.testing.assert_close(found.vectors["contrast gradient"][1], gradient.float())
    shift = NaturalShift.fit(metric, contrast, layers=[1]).vector
    torch.testing.assert_close(found.vectors["natural shift"][1], torch.nn.functional.normalize(shift, dim=0))
    table = model.lm_head.weight
    lens = torch.nn.functional.normalize(table[up].mean(0) - table[down].mean(0), dim=0)
    torch.testing.assert_close(found.vectors["logit lens"][2], lens.detach())
    decoded = {tiny_tokenizer.decode([token]).strip() for token in up}
    assert "▁cat" in decoded


def test_components_and_agreement_are_what_their_formulas_say():
    differences = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0, 0, 0, 0, 0])
    for centred in (False, True):
        x = differences - differences.mean(0) if centred else differences
        first = torch.linalg.svd(x, full_matrices=False).Vh[0]
        found = leading_component(differences, centred=centred)
        assert abs(float(first @ found)) == pytest.approx(1.0, abs=1e-5)
        assert float(found @ differences.mean(0)) >= 0
    v = differences.mean(0)
    cosines = torch.nn.functional.cosine_similarity(differences, v[None]).numpy()
    np.testing.assert_allclose(agreement(differences, v), cosines, rtol=1e-5)
    with pytest.raises(EntangleError, match="two pairs or more"):
        leading_component(differences[:1])
    with pytest.raises(EntangleError, match="the pairs do not differ"):
        leading_component(torch.zeros(3, 2))


def test_sets_of_words_are_means_of_rows(tiny_model, tiny_tokenizer):
    table = tiny_model("llama").lm_head.weight
    found = Directions.from_unembedding(tiny_model("llama"), tiny_tokenizer, {"up": [5, 6], "both": ([5, 6], [7])})
    rows = torch.stack([table[[5, 6]].mean(0), table[[5, 6]].mean(0) - table[7]])
    torch.testing.assert_close(found.vectors, torch.nn.functional.normalize(rows, dim=1).detach())
    assert found.names == ("up", "both")
    for bad in ({"up": "word"}, {"up": []}):
        with pytest.raises(EntangleError, match="must be a list of words"):
            Directions.from_unembedding(tiny_model("llama"), tiny_tokenizer, bad)


def test_what_cannot_be_is_refused(acts):
    with pytest.raises(EntangleError, match="live at a site of vectors, but z"):
        concept_directions(acts, acts.y, site="z")
    found = concept_directions(acts, acts.y, probes=[])
    with pytest.raises(EntangleError, match="no direction is called 'x'; there are mean difference, LAT"):
        found.edit("x")
    with pytest.raises(EntangleError, match="'LAT' is not known at layer 4; it is at 3, 5, 7"):
        found.edit("LAT", 4)
    with pytest.raises(EntangleError, match="no direction is known at layer 4"):
        found.at(4)
    with pytest.raises(EntangleError, match="no row of one class has a partner"):
        paired_rows(torch.tensor([True, False]), ["a", "b"])


def test_columns_are_read_by_position_whatever_their_index_says(acts):
    """A filtered or shuffled table keeps its index, which pandas would look rows up by."""
    order = np.random.default_rng(1).permutation(N)
    columns = {"pairs": np.arange(N) // 2, "sources": acts.source}
    listed = concept_directions(acts, acts.y, probes=["lda"], groups=acts.group, **columns)
    for index in (order, np.arange(N) + 1000):
        series = {name: pd.Series(column, index=index) for name, column in columns.items()}
        found = concept_directions(acts, acts.y, probes=["lda"], groups=acts.group, **series)
        for name in ("LAT", "mean difference of mails"):
            torch.testing.assert_close(found.vectors[name][5], listed.vectors[name][5])
    # They do differ where what is said of the rows differs.
    other = concept_directions(acts, acts.y, probes=["lda"], groups=acts.group, sources=acts.source[order])
    assert other.vectors["mean difference of mails"][5] @ listed.vectors["mean difference of mails"][5] < 0.999
    names = pd.Series(["a", "b", "b", "a"], index=[1, 0, 2, 3])
    pairs = paired_rows(torch.tensor([True, False, True, False]), names)
    assert [each.tolist() for each in pairs] == [[0, 2], [3, 1]]
    with pytest.raises(EntangleError, match="sources must have one for each row; got 3 for 240"):
        concept_directions(acts, acts.y, sources=["a"] * 3)
    with pytest.raises(EntangleError, match="labels and pairs have the same index in different orders"):
        concept_directions(acts, pd.Series(acts.y), pairs=pd.Series(columns["pairs"], index=order))
