"""Cross-entropy and KL against the model's own loss and torch's own divergence, document by document."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from entangle.errors import EntangleError
from entangle.evaluation import Subject, cross_entropy, kl, language_shift
from entangle.interventions import AddDirection, steer

TEXTS = ["the cat sat on the mat", "a quick brown fox jumps over the lazy dog and looked at the moon", "the moon"]


def edit(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return AddDirection(torch.randn(model.config.hidden_size, generator=generator), site="resid_post", layer=1)


def logits_alone(model, tokenizer, text):
    with torch.no_grad():
        return model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0].double()


def test_cross_entropy_is_each_models_own_loss(causal_lm, tiny_tokenizer):
    nats, tokens = cross_entropy(causal_lm, tiny_tokenizer, TEXTS, progress=False)
    for text, found, n in zip(TEXTS, nats, tokens, strict=True):
        ids = torch.tensor([tiny_tokenizer(text)["input_ids"]])
        with torch.no_grad():
            loss = causal_lm(ids, labels=ids).loss.item()
        assert n == ids.shape[1] - 1
        assert found == pytest.approx(loss * n, rel=1e-4)


def test_batches_do_not_change_it(causal_lm, tiny_tokenizer):
    together = cross_entropy(causal_lm, tiny_tokenizer, TEXTS, progress=False)
    alone = cross_entropy(causal_lm, tiny_tokenizer, TEXTS, batch_tokens=1, progress=False)
    np.testing.assert_allclose(together.values, alone.values, rtol=1e-5)
    np.testing.assert_array_equal(together.tokens, alone.tokens)
    assert together.mean == pytest.approx(together.values.sum() / together.tokens.sum())


def test_a_beginning_of_sequence_makes_the_first_token_count(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    without = cross_entropy(model, tiny_tokenizer, TEXTS, progress=False)
    with_bos = cross_entropy(model, tiny_tokenizer, TEXTS, prepend_bos=True, progress=False)
    np.testing.assert_array_equal(with_bos.tokens, without.tokens + 1)
    short = cross_entropy(model, tiny_tokenizer, TEXTS, max_length=4, progress=False)
    assert short.tokens.max() == 3


def test_kl_is_torchs_divergence_from_the_plain_model(causal_lm, tiny_tokenizer):
    change = edit(causal_lm)
    shift = language_shift(causal_lm, tiny_tokenizer, TEXTS, change, alpha=2.0, progress=False)
    for i, text in enumerate(TEXTS):
        p = logits_alone(causal_lm, tiny_tokenizer, text)[:-1].log_softmax(-1)
        with steer(causal_lm, change, alpha=2.0):
            q = logits_alone(causal_lm, tiny_tokenizer, text)[:-1].log_softmax(-1)
        expected = F.kl_div(q, p, log_target=True, reduction="sum").item()
        assert shift.kl[i] == pytest.approx(expected, rel=1e-3)
        assert shift.agreement[i] == (p.argmax(-1) == q.argmax(-1)).sum().item()
    plain = cross_entropy(causal_lm, tiny_tokenizer, TEXTS, progress=False)
    np.testing.assert_array_equal(shift.plain_nats, plain.values)
    assert np.all(shift.kl > 0)
    assert kl(causal_lm, tiny_tokenizer, TEXTS, change, alpha=2.0, progress=False).values == pytest.approx(shift.kl)


def test_no_strength_no_cost_to_the_last_bit(causal_lm, tiny_tokenizer):
    plain = cross_entropy(causal_lm, tiny_tokenizer, TEXTS, progress=False)
    shift = language_shift(causal_lm, tiny_tokenizer, TEXTS, edit(causal_lm), alpha=0, progress=False)
    np.testing.assert_array_equal(shift.nats, plain.values)
    np.testing.assert_array_equal(shift.kl, 0)
    np.testing.assert_array_equal(shift.agreement, shift.tokens)
    steered = language_shift(causal_lm, tiny_tokenizer, TEXTS, edit(causal_lm), alpha=1, progress=False)
    assert steered.kl.sum() > 1e-3


class Prompted:
    """The plain model after a fixed text."""

    def __init__(self, prefix):
        self.prefix = prefix

    def applied(self, model, tokenizer, alpha):
        from contextlib import nullcontext

        return nullcontext(Subject(model, tokenizer, prefix=self.prefix))


@pytest.mark.parametrize("prepend_bos", [False, True])
def test_a_prefix_is_read_but_not_counted(prepend_bos, tiny_model, tiny_tokenizer):
    model, prefix = tiny_model("llama"), "the lazy dog"
    shift = language_shift(model, tiny_tokenizer, TEXTS, Prompted(prefix), prepend_bos=prepend_bos, progress=False)
    bos = [tiny_tokenizer.bos_token_id] * prepend_bos
    before = tiny_tokenizer(prefix)["input_ids"]
    for i, text in enumerate(TEXTS):
        ids = tiny_tokenizer(text)["input_ids"]
        with torch.no_grad():
            logp = model(torch.tensor([[*bos, *before, *ids]])).logits[0].double().log_softmax(-1)
        scored = ids if prepend_bos else ids[1:]
        rows = logp[-len(scored) - 1 : -1]
        expected = -rows.gather(-1, torch.tensor(scored)[:, None]).sum().item()
        assert shift.nats[i] == pytest.approx(expected, rel=1e-4)
        assert shift.tokens[i] == len(scored)
    assert np.all(shift.kl > 0)


def test_a_prefix_that_leaves_no_room(tiny_model, tiny_tokenizer):
    with pytest.raises(EntangleError, match=r"the prefix and a document make .* tokens, .* pass max_length="):
        language_shift(tiny_model("llama"), tiny_tokenizer, TEXTS, Prompted("the cat " * 30), progress=False)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "needs clean text"),
        (["the cat", ""], {}, "document 1 is empty"),
        (["the cat sat on the mat " * 20], {}, "document 0 has .* 2 to 64 can be predicted"),
        (["the cat"], {"max_length": 65}, "between 2 and the context of 64"),
        (["the cat"], {"max_length": 1}, "between 2 and"),
    ],
)
def test_bad_documents(texts, options, message, tiny_model, tiny_tokenizer):
    with pytest.raises(EntangleError, match=message):
        cross_entropy(tiny_model("llama"), tiny_tokenizer, texts, progress=False, **options)


@pytest.mark.parametrize("alpha", [np.nan, np.inf])
def test_bad_strengths(alpha, tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    with pytest.raises(EntangleError, match="finite"):
        kl(model, tiny_tokenizer, TEXTS, edit(model), alpha=alpha, progress=False)
