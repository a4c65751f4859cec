"""What is of a type that nothing can be done with is refused in one line, before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import entangle as en
from entangle.errors import EntangleError

EDIT = en.AddDirection(torch.ones(32), "resid_post", 1)
TEXTS = ["the cat sat on the mat", "a dog ran"]
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "layers by a word": lambda model, tokenizer: en.collect(model, tokenizer, TEXTS, layers="all"),
    "layers with fractions": lambda model, tokenizer: en.collect(model, tokenizer, TEXTS, layers=[0.5]),
    "a bound of a word": lambda *_: en.metrics.welch_bound("a", 3),
    "numbers compared as studies": lambda *_: en.Study.compare([{"label": "one"}]),
    "a number for texts": lambda model, tokenizer: en.ShiftMetric.fit(model, tokenizer, 3),
    "a price in words": lambda model, tokenizer: en.strength_for(model, tokenizer, EDIT, TEXTS, kl="little"),
    "no scorer": lambda model, tokenizer: en.tradeoff(
        model, tokenizer, EDIT, alphas=[1], prompts=TEXTS, scorer=None, texts=TEXTS
    ),
    "a number for a folder": lambda *_: en.ProbeGrid.load(3),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_cannot_be_meant_is_one_line(call, tiny_model, tiny_tokenizer) -> None:
    with pytest.raises(EntangleError) as error:
        call(tiny_model("llama"), tiny_tokenizer)
    assert "\n" not in str(error.value)
    assert not isinstance(error.value.__cause__, TypeError)


def test_numbers_of_other_libraries_are_numbers(tiny_model, tiny_tokenizer) -> None:
    """The control: numpy's whole numbers are layers, and its floats are sizes."""
    acts = en.collect(tiny_model("llama"), tiny_tokenizer, TEXTS, layers=np.arange(2), progress=False)
    assert acts.layers("z") == [0, 1]
    assert en.metrics.welch_bound(np.int64(12), np.int64(4)) == en.metrics.welch_bound(12, 4)
