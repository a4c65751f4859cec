"""A model's head apart from its body makes the model's own logits, a few positions at a time and never more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import entangle as en
from entangle.errors import EntangleError
from entangle.evaluation import cross_entropy, language_shift
from entangle.evaluation.language.subject import Subject
from entangle.models.readout import body_of, run_body
from entangle.models.rows import batch_of

TEXTS = ["the cat sat on the mat", "a quick brown fox jumps over the lazy dog and looked at the moon", "the moon"]
FAMILIES = ["gpt2", "gpt_neox", "llama", "gemma2", "gemma3_text", "phi", "opt", "cohere"]


def rows_of(tokenizer):
    return [tokenizer(text)["input_ids"] for text in TEXTS]


@contextmanager
def positions_read_out(model) -> Iterator[list[int]]:
    """How many positions the head gets at each call."""
    sizes: list[int] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: sizes.append(args[0].shape[:-1].numel())
    )
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_head_make_the_logits_that_the_model_makes(family, tiny_model, tiny_tokenizer):
    model = tiny_model(family)
    batch = batch_of(model, tiny_tokenizer, rows_of(tiny_tokenizer))
    with torch.no_grad():
        states, head = run_body(model, batch)
        whole = model(**batch).logits
        assert states.shape == (*whole.shape[:2], 32)
        few = torch.cat([head(part) for part in states[1].split(3)])
        torch.testing.assert_close(few, whole[1], rtol=1e-4, atol=1e-4 * float(whole.abs().max()))
        tokens = torch.arange(len(whole[1]))
        chosen = head.of_tokens(states[1], tokens)
        torch.testing.assert_close(chosen, whole[1].gather(1, tokens[:, None])[:, 0], rtol=1e-4, atol=1e-3)
        assert not torch.allclose(head(states[1].roll(1, 0)), whole[1], atol=1e-2)
    # A plain matrix is not always all of it: some families bend or scale its result.
    with torch.no_grad():
        bare = model.get_output_embeddings()(states[1])
    assert torch.allclose(bare, whole[1], atol=1e-3) == (family not in ("gemma2", "cohere"))


def test_the_model_is_left_as_it_was_and_other_threads_may_use_it(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    batch = batch_of(model, tiny_tokenizer, rows_of(tiny_tokenizer))
    before = {name: dict(module._modules) for name, module in model.named_modules()}
    with torch.no_grad():
        states, head = run_body(model, batch)
        whole, elsewhere = model(**batch).logits, []
        inside = threading.Thread(target=lambda: elsewhere.append(model(**batch).logits))
        inside.start()
        mine = [head(states[0]) for _ in range(20)]
        inside.join()
    assert all(torch.equal(each, mine[0]) for each in mine)
    torch.testing.assert_close(elsewhere[0], whole)
    assert {name: dict(module._modules) for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_whose_logits_somebody_changes_is_read_whole(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    plain = cross_entropy(model, tiny_tokenizer, TEXTS, progress=False)

    def hotter(_, __, output):
        output.logits = 2 * output.logits
        return output

    handle = model.register_forward_hook(hotter)
    try:
        assert body_of(model) is None
        changed = cross_entropy(model, tiny_tokenizer, TEXTS, progress=False)
        with torch.no_grad():
            ids = torch.tensor([rows_of(tiny_tokenizer)[0]])
            expected = float(model(input_ids=ids, labels=ids).loss)
            own = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:])
    finally:
        handle.remove()
    assert changed.values[0] / changed.tokens[0] == pytest.approx(float(own), rel=1e-4)
    assert abs(changed.values - plain.values).max() > 0.1
    assert expected > 0
    assert body_of(model) is not None


def test_no_more_logits_than_asked_for_are_made_at_once_and_their_number_changes_nothing(tiny_model, tiny_tokenizer):
    model = tiny_model("gemma3_text")
    vocabulary = model.config.vocab_size
    edit = en.AddDirection(torch.randn(32, generator=torch.Generator().manual_seed(0)), "resid_post", 1)
    bound = 5 * vocabulary
    with positions_read_out(model) as probed:  # by `steer`, to find its way about the model
        en.Atlas(model)

    def measured(logits):
        ce = cross_entropy(model, tiny_tokenizer, TEXTS, logits=logits, progress=False)
        shift = language_shift(model, tiny_tokenizer, TEXTS, edit, alpha=2.0, logits=logits, progress=False)
        return np.concatenate([ce.values, *shift])

    with positions_read_out(model) as sizes:
        few = measured(bound)
    assert max(n for n in sizes if n not in probed) == 5  # five positions, or the last one of each of three rows
    with positions_read_out(model) as sizes:
        many = measured(2**26)
    assert max(n for n in sizes if n not in probed) > 5  # the control: without a bound that matters there are more
    np.testing.assert_allclose(few, many, rtol=1e-4, atol=1e-5)
    with pytest.raises(EntangleError, match="logits must be 1 or more"):
        cross_entropy(model, tiny_tokenizer, TEXTS, logits=0, progress=False)


def test_a_forecast_s_scores_make_no_more_logits_at_once_either(tiny_model, tiny_tokenizer):
    from entangle.forecast.scores import Row, row_scores
    from entangle.forecast.span import Span

    model = tiny_model("gemma3_text")
    span = Span.of(model, ["resid_post", "z"], None)
    rows = [Row(ids, [True] * len(ids), [*[True] * (len(ids) - 1), False]) for ids in rows_of(tiny_tokenizer)]

    def scored(logits):
        found = dict(row_scores(model, tiny_tokenizer, rows, span, draws=3, logits=logits, progress=False))
        return torch.stack([torch.cat([found[i].observed[None], found[i].drawn]) for i in range(len(rows))])

    with positions_read_out(model) as sizes:
        few = scored(4 * model.config.vocab_size)
    assert max(sizes) == 4
    many = scored(2**26)
    torch.testing.assert_close(few, many, rtol=1e-3, atol=1e-3 * float(many.abs().max()))
    assert not torch.allclose(many[:, 0], many[:, 1])


def test_scores_are_the_gradients_that_torch_finds_of_the_whole_model(tiny_model, tiny_tokenizer):
    from entangle.forecast.scores import Row, row_scores
    from entangle.forecast.span import Span
    from entangle.models import hooked

    for family in ("gemma2", "cohere", "gpt2"):  # a bent, a scaled and a plain head
        model = tiny_model(family)
        span = Span.of(model, "resid_post", [1])
        ids = rows_of(tiny_tokenizer)[0]
        row = Row(ids, [True] * len(ids), [*[True] * (len(ids) - 1), False])
        ((_, found),) = row_scores(model, tiny_tokenizer, [row], span, draws=0, progress=False)
        shift = torch.zeros(32, requires_grad=True)
        with hooked([(span.places[0], lambda x, shift=shift: x + shift)]):
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        logp = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).sum()
        (expected,) = torch.autograd.grad(logp, shift)
        torch.testing.assert_close(found.observed, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_steering_acts_on_what_is_read_and_only_inside_its_block(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    rows = rows_of(tiny_tokenizer)
    edit = en.AddDirection(torch.ones(32), "resid_post", 1)
    subject = Subject(model, tiny_tokenizer)
    with torch.no_grad():
        with en.steer(model, edit, alpha=3.0) as block:
            steered = subject.predictions(rows)
            counted = block.counts[0]
            made = steered.logits(slice(0, 4))
        assert block.counts[0] == counted == sum(map(len, rows))  # reading out runs no hook
        plain = subject.predictions(rows).logits(slice(0, 4))
    torch.testing.assert_close(steered.logits(slice(0, 4)), made)
    assert (made - plain).abs().max() > 1e-2
