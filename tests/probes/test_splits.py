"""Splits: every example once, classes in proportion, groups whole; refusals name what is wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.probes.splits import PARTS, Split, named_split, three_way


def parts(split: Split) -> list[torch.Tensor]:
    return [getattr(split, name) for name in PARTS]


@given(
    n=st.integers(30, 300),
    share=st.floats(0.2, 0.8),
    seed=st.integers(0, 10**6),
    fractions=st.sampled_from([(0.6, 0.2, 0.2), (0.5, 0.25, 0.25), (0.8, 0.1, 0.1)]),
)
@settings(deadline=None, max_examples=60)
def test_every_example_once_and_classes_in_proportion(n, share, seed, fractions):
    labels = np.arange(n) < max(3, int(share * n))
    split = three_way(labels, fractions=fractions, seed=seed)
    split.check(torch.from_numpy(labels.astype(np.int64)))
    assert sorted(torch.cat(parts(split)).tolist()) == list(range(n))
    for part, fraction in zip(parts(split), fractions, strict=True):
        for value in (True, False):
            assert abs((labels[part.numpy()] == value).sum() - fraction * (labels == value).sum()) <= 1.5


@given(n_groups=st.integers(30, 80), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_groups_stay_whole(n_groups, seed):
    rng = np.random.default_rng(seed)
    groups = np.repeat([f"author {i}" for i in range(n_groups)], rng.integers(1, 9, n_groups))
    labels = rng.integers(0, 2, len(groups))
    split = three_way(labels, groups=groups, seed=seed)
    owners = [set(groups[part.numpy()]) for part in parts(split)]
    assert sum(map(len, owners)) == n_groups
    assert sum(map(len, parts(split))) == len(groups)
    for part, fraction in zip(parts(split), (0.6, 0.2, 0.2), strict=True):
        assert abs(len(part) / len(groups) - fraction) < 0.08
        assert abs(labels[part.numpy()].mean() - labels.mean()) < 0.25


def test_without_groups_a_group_is_divided():
    """The negative control of the test above: it is the argument that keeps groups whole."""
    groups = np.repeat(np.arange(50), 10)
    split = three_way(np.arange(500) % 2)
    assert set(groups[split.fit.numpy()]) & set(groups[split.report.numpy()])


def test_the_seed_decides():
    labels = np.arange(100) % 2
    assert torch.equal(three_way(labels, seed=3).fit, three_way(labels, seed=3).fit)
    assert not torch.equal(three_way(labels, seed=3).fit, three_way(labels, seed=4).fit)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([1] * 20, {}, "two classes"),
        ([0] * 20 + [1], {}, "too few examples"),
        ([0] * 20 + [1] * 20, {"groups": [0] * 20 + [1] * 20}, "too few groups"),
        ([0, 1] * 20, {"groups": [0] * 39}, "groups must name one for each of 40"),
        ([0, 1] * 20, {"fractions": (0.5, 0.5, 0.5)}, "add up to 1"),
        ([0.1, 0.7] * 20, {}, "continuous"),
    ],
)
def test_refusals(labels, options, message):
    with pytest.raises(EntangleError, match=message) as caught:
        three_way(labels, **options)
    assert "\n" not in str(caught.value)


def test_check_refuses_leaks():
    labels = torch.arange(30) % 2
    a, b, c = torch.arange(10), torch.arange(10, 20), torch.arange(20, 30)
    Split(a, b, c).check(labels)
    with pytest.raises(EntangleError, match="repeats an example"):
        Split(a, b, torch.arange(15, 25)).check(labels)
    with pytest.raises(EntangleError, match="names example 30 of 30"):
        Split(a, b, torch.arange(21, 31)).check(labels)
    with pytest.raises(EntangleError, match="none of class number 1"):
        Split(a, torch.tensor([10, 12]), c).check(labels)
    with pytest.raises(EntangleError, match="group number 0 has examples in two parts"):
        Split(a, b, c).check(labels, torch.zeros(30, dtype=torch.long))


def of_names(*names: str, n: int = 40) -> tuple[np.ndarray, list[str]]:
    """Labels, and splits that each hold both classes."""
    return np.arange(n * len(names)) % 2, [name for name in names for _ in range(n)]


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("Train", "Validation", "TEST"),
        ("training", "dev", "held-out"),
        ("train", "val", "testing"),
        ("train", "eval", "test"),
        ("fold_0", "fold_1", "fold_2"),
        ("3", "9", "10"),
    ],
)
def test_the_datas_own_splits_are_used_whatever_they_are_called(names):
    labels, splits = of_names(*names)
    split, note = named_split(labels, splits)
    for part, name in zip((split.fit, split.select, split.report), names, strict=True):
        assert {splits[i] for i in part.tolist()} == {name}
    assert bool(note) == any(character.isdigit() for character in names[0])  # of folds, which is which is told


@pytest.mark.parametrize("names", [("train", "test"), ("train", "dev"), ("fold 1", "fold 2")])
def test_of_two_splits_the_second_is_reported_on_and_training_rows_select(names):
    labels, splits = of_names(*names)
    split, note = named_split(labels, splits, seed=1)
    assert {splits[i] for i in split.report.tolist()} == {names[1]}
    assert {splits[i] for i in [*split.fit.tolist(), *split.select.tolist()]} == {names[0]}
    assert (len(split.fit), len(split.select)) == (30, 10)
    assert repr(names[1]) in note


@pytest.mark.parametrize("names", [("summer", "winter"), ("train",), ("train", "test", "unsupervised"), ("", "train")])
def test_splits_that_cannot_be_used_are_said_not_to_be(names):
    labels, splits = of_names(*names)
    split, note = named_split(labels, splits, seed=2)
    assert "were not used" in note
    assert all(repr(name or "no name") in note for name in names)
    drawn = three_way(labels, seed=2)
    assert split.fit.tolist() == drawn.fit.tolist()


def test_without_splits_there_is_nothing_to_say():
    labels, splits = of_names("")
    assert named_split(labels, None)[1] == named_split(labels, splits)[1] == ""


@pytest.mark.parametrize(
    "groups",
    [["a", None] * 20, ["a", float("nan")] * 20, [None] * 40, [0.0, float("nan")] * 20, pd.Series(["a", None] * 20)],
)
def test_missing_groups_are_no_group_that_they_share(groups):
    """numpy would write NaN as a name among names: all that have no group would be one."""
    labels = [0, 0, 1, 1] * 10
    with pytest.raises(EntangleError, match=r"groups must name one for each example, but example [01] has NaN or None"):
        three_way(labels, groups=groups)
    with pytest.raises(EntangleError, match="groups must be of one kind, names or numbers"):
        three_way(labels, groups=np.array(["a", 1] * 20, dtype=object))
