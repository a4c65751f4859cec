"""The content hash: equal for equal content, different for any difference that could change a result."""

import copy
import functools
import re
import threading
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.evaluation.methods import Checkpoint, Prompt
from entangle.interventions import AddDirection
from entangle.storage.digest import digest

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(plain)
def test_the_digest_is_a_function_of_content(value):
    assert digest(value) == digest(copy.deepcopy(value))


@given(plain, plain)
def test_different_content_has_different_digests(a, b):
    if a != b:
        assert digest(a) != digest(b)


def test_everything_that_matters_matters(tiny_model):
    @dataclass(frozen=True)
    class Settings:
        value: object

    values = [
        AddDirection(torch.ones(4), site="resid_post", layer=1),
        AddDirection(torch.ones(4), site="resid_post", layer=2),
        AddDirection(2 * torch.ones(4), site="resid_post", layer=1),
        Prompt("a"),
        Prompt("b"),
        Checkpoint(tiny_model("llama")),
        Checkpoint(tiny_model("llama", seed=1)),
        Settings(np.int64(1)),
        Settings(np.int64(2)),
        Settings({"a", "b"}),
        Settings(["ab"]),
        Settings(["a", "b"]),
        Settings(np.array([1.0, 2.0])),
        Settings(np.array([[1.0, 2.0]])),
        Settings(torch.float32),
        Settings(digest),
    ]
    for a, b in combinations(values, 2):
        assert digest(a) != digest(b), (a, b)
    assert digest(values[0]) == digest(AddDirection(torch.ones(4), site="resid_post", layer=1))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(EntangleError, match="object has no content"):
        digest(object())


def test_a_checkpoint_is_known_by_all_its_weights_and_not_by_its_path(tiny_model, tiny_tokenizer, tmp_path):
    model = copy.deepcopy(tiny_model("llama"))
    for name in ("here", "there"):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    marks = {
        digest(Checkpoint(tmp_path / "here")),
        digest(Checkpoint(str(tmp_path / "there"))),
        digest(Checkpoint(model)),
    }
    assert len(marks) == 1
    # One number of one weight, as far from the beginning as can be.
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[-1, -1] += 1
    model.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    assert digest(Checkpoint(tmp_path / "other")) not in marks
    model.save_pretrained(tmp_path / "there")  # in the place of what was read there
    assert digest(Checkpoint(str(tmp_path / "there"))) == digest(Checkpoint(tmp_path / "other"))


def test_functions_are_known_by_what_they_compute():
    def make(source, **known):
        space = {"__name__": "notebook", **known}
        exec(source, space)
        return space["f"]

    def scaled(factor):
        return lambda x: factor * x

    plain = "def f(x):\n    return x + 1"
    with_helper = "def helper(x):\n    return x + {}\n\ndef f(x):\n    return helper(x)"
    functions = [
        make(plain),
        make("def f(x):\n    return x + 2"),
        make("def f(x, y=1):\n    return x + 1"),
        make("def f(x, y=2):\n    return x + 1"),
        make("def f(x):\n    return x + offset", offset=1),
        make("def f(x):\n    return x + offset", offset=2),
        make("def f(x):\n    return (w * x).sum()", w=torch.ones(2)),
        make("def f(x):\n    return (w * x).sum()", w=torch.zeros(2)),
        make("def f(x):\n    return [each + 1 for each in x]"),
        make("def f(x):\n    return [each + 2 for each in x]"),
        make(with_helper.format(1)),
        make(with_helper.format(2)),
        scaled(1),
        scaled(2),
        functools.partial(scaled, 1),
        functools.partial(scaled, 2),
        functools.lru_cache(scaled(3)),
        functools.lru_cache(scaled(4)),
    ]
    marks = [digest(function) for function in functions]
    assert len(set(marks)) == len(marks)
    assert digest(make("\n\n" + plain)) == marks[0]  # wherever in its file it stands
    assert digest(scaled(1)) == digest(scaled(1))


def test_objects_are_known_by_their_fields_and_their_methods():
    def make(body, **fields):
        space = {"__name__": "notebook"}
        exec(f"class Scorer:\n    def __call__(self, texts):\n        return {body}", space)
        scorer = space["Scorer"]()
        vars(scorer).update(fields)
        return scorer

    things = [
        make("0"),
        make("1"),
        make("0", threshold=1),
        make("0", threshold=2),
        re.compile("a"),
        re.compile("b"),
        Fraction(1, 2),
        Fraction(1, 3),
        np.array(["a", 1], dtype=object),
        np.array(["a", 2], dtype=object),
        np.float32([1]),
        np.float64([1]),
        torch.tensor([2**53]),
        torch.tensor([2**53 + 1]),
    ]
    marks = [digest(thing) for thing in things]
    assert len(set(marks)) == len(marks)
    assert digest(make("0", threshold=1)) == marks[2]


def test_what_names_itself_has_content_too():
    first, second = [1], [2]
    first.append(first)
    second.append(second)
    assert digest(first) != digest(second)

    def again(n):
        return n and again(n - 1)

    assert digest(again) == digest(again)
    with pytest.raises(EntangleError, match="lock has no content"):
        digest({"scorer": threading.Lock()})
