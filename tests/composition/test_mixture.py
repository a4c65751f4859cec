"""Tokenizer and mixtures: nothing is lost, the clean tokens stay, and the share is what was asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entangle.composition.training.corpus import TokenisedDocuments, mix, tokenise
from entangle.composition.training.tokenizer import END_OF_TEXT, train_tokenizer
from entangle.errors import EntangleError

TEXTS = ["the cat sat on the mat", "a dog ran", "the dog sat on the cat " * 5, "never mind"]
TOKENIZER = train_tokenizer(TEXTS, 300)


def documents(lengths: list[int], first_token: int = 0) -> TokenisedDocuments:
    """Documents of these lengths, each made of one token that no other document has."""
    tokens = np.repeat(np.arange(len(lengths), dtype=np.int32) + first_token, lengths)
    return TokenisedDocuments(tokens, np.concatenate(([0], np.cumsum(lengths))))


LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=40)


@given(st.text())
def test_every_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    assert text == END_OF_TEXT or TOKENIZER.bos_token_id not in ids or END_OF_TEXT in text


def test_the_tokenizer_learns_its_texts_and_repeats_itself() -> None:
    assert len(TOKENIZER("the cat sat on the mat")["input_ids"]) < len(TOKENIZER("zgx qwv jkp")["input_ids"]) * 2
    assert train_tokenizer(TEXTS, 300).get_vocab() == TOKENIZER.get_vocab()
    assert len(train_tokenizer(TEXTS, 270)) == 270
    assert TOKENIZER.pad_token == TOKENIZER.bos_token == TOKENIZER.eos_token == END_OF_TEXT


def test_a_vocabulary_without_room_for_the_bytes() -> None:
    with pytest.raises(EntangleError, match="more than 257 tokens, not 257"):
        train_tokenizer(TEXTS, 257)


def test_tokenised_documents_equal_one_by_one() -> None:
    packed = tokenise(TOKENIZER, TEXTS, chunk=3)
    assert len(packed) == len(TEXTS)
    for i, text in enumerate(TEXTS):
        row = packed.tokens[packed.starts[i] : packed.starts[i + 1]].tolist()
        assert row == [TOKENIZER.bos_token_id, *TOKENIZER(text)["input_ids"]]
    with pytest.raises(EntangleError, match="no documents"):
        tokenise(TOKENIZER, [])


@given(LENGTHS, st.data())
def test_taking_documents_equals_slicing_them(lengths: list[int], data: st.DataObject) -> None:
    packed = documents(lengths)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=20))
    expected = [token for i in chosen for token in packed.tokens[packed.starts[i] : packed.starts[i + 1]]]
    assert packed.take(np.array(chosen, dtype=np.int64)).tokens.tolist() == expected


@given(LENGTHS, LENGTHS, st.floats(0, 0.9), st.integers(0, 5))
@settings(max_examples=200)
def test_clean_is_constant_and_the_share_is_right_to_within_a_document(
    clean: list[int], added: list[int], share: float, seed: int
) -> None:
    a, b = documents(clean), documents(added, first_token=1000)
    wanted = round(share / (1 - share) * sum(clean))
    if wanted > sum(added):
        with pytest.raises(EntangleError, match="lower the share"):
            mix(a, b, share, seed=seed)
        return
    mixture = mix(a, b, share, seed=seed)
    tokens = mixture.documents.tokens
    assert sorted(tokens[tokens < 1000]) == sorted(a.tokens)
    assert mixture.clean_tokens == sum(clean)
    assert mixture.added_tokens == (tokens >= 1000).sum()
    assert wanted <= mixture.added_tokens <= wanted + max(added) * (wanted > 0)
    assert mixture.share == pytest.approx((tokens >= 1000).mean())
    assert len(mixture.documents) == len(np.unique(tokens))


@given(LENGTHS, st.floats(0, 0.9), st.integers(0, 5))
def test_a_replaced_share_keeps_the_total_to_within_two_documents(clean: list[int], share: float, seed: int) -> None:
    a, b = documents(clean), documents([20] * 40, first_token=1000)
    mixture = mix(a, b, share, seed=seed, design="replaced")
    total = len(mixture.documents.tokens)
    assert sum(clean) <= total <= sum(clean) + max(clean) + 20
    assert mixture.clean_tokens == (mixture.documents.tokens < 1000).sum()
    assert len(mixture.documents) == len(np.unique(mixture.documents.tokens))


@given(LENGTHS, LENGTHS, st.integers(0, 5), st.data())
def test_a_filtered_mixture_is_the_same_one_without_some_documents(
    clean: list[int], added: list[int], seed: int, data: st.DataObject
) -> None:
    n = len(clean) + len(added)
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    kept[0] = True
    mixture = mix(documents(clean), documents(added, len(clean)), 0.0, seed=seed)
    whole, left = mixture.documents.tokens, mixture.keep(kept).documents.tokens
    assert left.tolist() == [token for token in whole.tolist() if kept[token]]


def test_a_smaller_share_is_part_of_a_larger_one_and_seeds_differ() -> None:
    clean, added = documents([10] * 50), documents([5] * 100, first_token=1000)
    small, large = (set(mix(clean, added, share, seed=1).documents.tokens) for share in (0.1, 0.3))
    assert small < large
    orders = [mix(clean, added, 0.1, seed=seed).documents.tokens.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(EntangleError, match="at least 0 and below 1"):
        mix(documents([5]), documents([5]), share)


def test_all_is_replaced_at_share_one_and_nothing_of_the_clean_text_stays() -> None:
    clean, added = documents([5] * 10), documents([5] * 12, first_token=100)
    mixture = mix(clean, added, 1.0, design="replaced")
    assert (mixture.share, mixture.clean_tokens) == (1.0, 0)
    assert len(mixture.documents.tokens) >= len(clean.tokens)
    assert set(mixture.documents.tokens) <= set(added.tokens)
    half = mix(clean, added, 0.5, design="replaced")
    assert 0 < half.clean_tokens < len(clean.tokens)


def test_a_share_of_nothing() -> None:
    assert mix(documents([5, 5]), None, 0.0).share == 0
    with pytest.raises(EntangleError, match="has 0"):
        mix(documents([5, 5]), None, 0.1)


def test_a_document_that_begins_itself_gets_no_second_beginning() -> None:
    begun = f"{TOKENIZER.bos_token}{TEXTS[0]}"
    twice = tokenise(TOKENIZER, [begun, TEXTS[1]])
    once = tokenise(TOKENIZER, TEXTS[:2])
    assert twice.tokens.tolist() == once.tokens.tolist()
    assert twice.starts.tolist() == once.starts.tolist()
