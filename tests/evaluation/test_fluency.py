"""Continuations as another model reads them."""

import numpy as np
import pytest
import torch

from entangle.evaluation import Subject
from entangle.evaluation.language.fluency import continuation_nats


def test_continuations_are_read_after_their_prompts(causal_lm, tiny_tokenizer):
    rows = [tiny_tokenizer(prompt)["input_ids"] for prompt in ("the cat", "a quick brown fox")]
    texts = [["sat on the mat", ""], ["moon", "and the lazy dog"]]
    nats, tokens = continuation_nats(Subject(causal_lm, tiny_tokenizer), rows, texts, progress=False)
    assert (nats[0, 1], tokens[0, 1]) == (0, 0)
    for i, k in ((0, 0), (1, 0), (1, 1)):
        new = tiny_tokenizer(texts[i][k], add_special_tokens=False)["input_ids"]
        ids = [*rows[i], *new]
        with torch.no_grad():
            logp = causal_lm(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = -sum(logp[t - 1, ids[t]].item() for t in range(len(rows[i]), len(ids)))
        assert tokens[i, k] == len(new)
        assert nats[i, k] == pytest.approx(expected, rel=1e-4)


def test_silence_has_no_tokens(tiny_model, tiny_tokenizer):
    rows = [tiny_tokenizer("the cat")["input_ids"]] * 2
    nats, tokens = continuation_nats(
        Subject(tiny_model("llama"), tiny_tokenizer), rows, [["", " "]] * 2, progress=False
    )
    np.testing.assert_array_equal(nats, np.zeros((2, 2)))
    np.testing.assert_array_equal(tokens, np.zeros((2, 2)))


def test_what_does_not_fit_is_not_read(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    rows = [tiny_tokenizer("the cat sat on the mat " * 6)["input_ids"]]
    _, tokens = continuation_nats(Subject(model, tiny_tokenizer), rows, [["the cat " * 40]], progress=False)
    assert tokens[0, 0] == model.config.max_position_embeddings - len(rows[0])
