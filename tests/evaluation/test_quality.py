"""Degenerate text and distinct n-grams."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.evaluation import degenerate_share, distinct_n, is_degenerate


@pytest.mark.parametrize(
    "text", ["", " \n", "ha ha ha ha", "!!!!!!!!", "I said no no no no no no", "a b c a b c a b c a b c", "well " * 30]
)
def test_degenerate(text):
    assert is_degenerate(text)


@pytest.mark.parametrize(
    "text",
    ["ok", "No, no, I will not go there again.", "the cat and the dog and the bird", "Hmm... wait, what?"],
)
def test_sound(text):
    assert not is_degenerate(text)


@given(st.text(min_size=1).filter(str.strip), st.integers(4, 10))
def test_anything_repeated_often_is_degenerate(piece, times):
    word = " ".join(piece.split())[:50].strip() or "x"
    assert is_degenerate(" ".join([word] * times))


def test_shares():
    assert degenerate_share(["", "fine words here", "no " * 9, "more of them"]) == 0.5
    with pytest.raises(EntangleError):
        degenerate_share([])


def test_distinct_n_counts_over_all_texts():
    assert distinct_n(["a b c", "a b d"], 1) == 4 / 6
    assert distinct_n(["a b c", "a b d"], 2) == 3 / 4
    assert math.isnan(distinct_n(["a"], 2))
    with pytest.raises(EntangleError):
        distinct_n(["a"], 0)
