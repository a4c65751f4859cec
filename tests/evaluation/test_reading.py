"""The plain model's reading, kept or read again: the same numbers to the last bit."""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from entangle.errors import EntangleError
from entangle.evaluation import Checkpoint, Subject
from entangle.evaluation.language.documents import document_rows, packed_owners, packed_rows
from entangle.evaluation.language.reading import PlainReading
from entangle.interventions import AddDirection
from entangle.metrics import kl_of

TEXTS = ["the cat sat on the mat", "a quick brown fox jumps over the lazy dog and looked at the moon", "the moon"]


def edit(seed=0):
    return AddDirection(torch.randn(32, generator=torch.Generator().manual_seed(seed)), site="resid_post", layer=1)


@pytest.fixture
def reading(causal_lm, tiny_tokenizer):
    rows = document_rows(causal_lm, tiny_tokenizer, TEXTS)
    return lambda **options: PlainReading(causal_lm, tiny_tokenizer, rows, **options)


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_keeping_changes_nothing_to_the_last_bit(reading, batch_tokens):
    room = 4 * 200 * 8  # for some of the rows
    fresh, some, all_ = (reading(batch_tokens=batch_tokens, cache_bytes=size) for size in (0, room, 2**30))
    for change, alpha in ((edit(0), 2.0), ([], 0.0), (edit(1), -1.0)):  # the second and third find rows kept
        expected = fresh.shift(change, alpha=alpha, progress=False)
        for kept in (some, all_):
            for a, b in zip(kept.shift(change, alpha=alpha, progress=False), expected, strict=True):
                np.testing.assert_array_equal(a, b)
    again = all_.shift(edit(0), alpha=2.0, progress=False)
    np.testing.assert_array_equal(again.kl, fresh.shift(edit(0), alpha=2.0, progress=False).kl)


def test_a_model_beside_itself(reading):
    kept = reading()
    kept.shift(edit(), alpha=3.0, progress=False)
    itself = kept.shift([], alpha=0, progress=False)
    np.testing.assert_array_equal(itself.kl, 0)
    np.testing.assert_array_equal(itself.nats, itself.plain_nats)
    np.testing.assert_array_equal(itself.agreement, itself.tokens)


def test_a_kept_reading_is_not_run_again(tiny_model, tiny_tokenizer):
    model = copy.deepcopy(tiny_model("llama"))
    kept = PlainReading(model, tiny_tokenizer, document_rows(model, tiny_tokenizer, TEXTS))
    other = Checkpoint(tiny_model("llama", seed=1))
    first = kept.shift(other, progress=False)
    runs = []
    hook = model.register_forward_hook(lambda *_: runs.append(1))
    try:
        second = kept.shift(other, progress=False)
    finally:
        hook.remove()
    assert not runs
    np.testing.assert_array_equal(first.kl, second.kl)


def test_another_vocabulary(tiny_model, tiny_tokenizer):
    class Narrow:
        @contextmanager
        def applied(self, model, tokenizer, alpha):
            yield Subject(other, tokenizer)

    model = tiny_model("llama")
    other = copy.deepcopy(model)
    other.resize_token_embeddings(model.config.vocab_size + 3)
    kept = PlainReading(model, tiny_tokenizer, document_rows(model, tiny_tokenizer, TEXTS))
    with pytest.raises(EntangleError, match="KL needs one vocabulary; the plain model has"):
        kept.shift(Narrow(), progress=False)


@pytest.mark.parametrize("scale", [1e-2, 1e-4, 1e-5])
@pytest.mark.parametrize("offset", [0.0, 60.0])
def test_kl_of_weak_changes_is_that_of_double_precision_and_never_negative(scale, offset):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20, 8000, generator=generator) + offset
    changed = logits + scale * torch.randn(20, 8000, generator=generator)
    p, q = (x.double().log_softmax(-1) for x in (logits, changed))
    exact = (p.exp() * (p - q)).sum(-1)
    ours = kl_of(logits.log_softmax(-1), changed.log_softmax(-1))
    assert ours.mean().item() == pytest.approx(exact.mean().item(), rel=0.02)
    assert bool((ours >= 0).all())
    if scale == 1e-5:  # the control: in single precision, rounding is all there is
        p, q = (x.log_softmax(-1) for x in (logits, changed))
        assert abs((p.exp() * (p - q)).sum(-1).mean().item() / exact.mean().item() - 1) > 1


def test_kl_knows_what_is_forbidden():
    p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    q = torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert kl_of(p, q).item() == pytest.approx(np.log(2))
    assert kl_of(q, p).item() == np.inf
    assert kl_of(p, p).item() == 0


def test_what_is_read_in_chunks_is_summed_by_document(tiny_model, tiny_tokenizer):
    model, length = tiny_model("llama"), 5
    rows = document_rows(model, tiny_tokenizer, TEXTS)
    chunks, owners = packed_rows(model, tiny_tokenizer, rows, length), packed_owners(tiny_tokenizer, rows, length)
    assert [len(chunk) for chunk in chunks] == [len(owner) for owner in owners]
    by_chunk = PlainReading(model, tiny_tokenizer, chunks).shift(edit(), alpha=2.0, progress=False)
    by_document = PlainReading(model, tiny_tokenizer, chunks, owners=owners).shift(edit(), alpha=2.0, progress=False)
    assert len(by_document.tokens) == len(TEXTS) < len(chunks)
    for chunk, document in zip(by_chunk, by_document, strict=True):
        assert document.sum() == pytest.approx(chunk.sum())
    own = [tiny_tokenizer.bos_token_id, *rows[0]]
    assert owners[0] == [0] * min(length, len(own)) + [1] * max(0, length - len(own))
