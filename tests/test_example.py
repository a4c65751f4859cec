"""The example that pages begin with: as many texts as asked for, all different, of the kind that was asked for."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import entangle as en
from entangle.data import corpus


def test_quarrels_are_read_instead_of_documents_and_clean_text_is_their_polite_side() -> None:
    found = en.example(quarrels=100, n_texts=40, n_prompts=20)
    assert len(found.texts) == len(found.labels) == len(set(found.texts)) == 40
    assert len(set(found.prompts)) == 20
    assert not {text for text in found.texts if text.startswith(tuple(found.prompts))}
    polite, rude = ({pair[side][pair[side].index('"') :] for pair in corpus.pairs(400, seed=1000)} for side in (0, 1))
    assert polite.issuperset(found.clean)
    assert rude.isdisjoint(found.clean)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n_texts": 1}, "n_texts .* at least 2; got 1"),
        ({"n_prompts": 0}, "n_prompts"),
        ({"quarrels": 7}, "quarrels=7"),
    ],
)
def test_too_few_are_refused(asked: Mapping[str, int], message: str) -> None:
    with pytest.raises(en.EntangleError, match=message):
        en.example(**asked)
