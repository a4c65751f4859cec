"""An edit and a strength for each row: every row says what it says alone, whatever stands beside it."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import torch

from entangle.errors import EntangleError
from entangle.interventions import (
    ITI,
    Ablate,
    AddDirection,
    Clamp,
    Compose,
    Erase,
    KeepNorm,
    Rotate,
    When,
    steer,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


V, W = 3 * drawn(32, seed=1), 3 * drawn(32, seed=2)
HEADS = ITI([(0, 1), (1, 2), (1, 3)], torch.nn.functional.normalize(drawn(3, 8), dim=1), torch.ones(3))
EDITS = {
    "constants": (AddDirection(V, layer=1), AddDirection(W, layer=1)),
    "constants at other places": (HEADS, AddDirection(W, "resid_mid", 2)),
    "maps": (Ablate(V, layer=1), Erase(V, W[:, None] / 9, V[None] / 9, layer=1)),
    "a constant and a rotation": (AddDirection(V, layer=1), Rotate(W, layer=1, degrees=45)),
    "heads": (HEADS, KeepNorm(AddDirection(V[:8], "z", 1, 2))),
    "a condition": (When(AddDirection(V, layer=2), drawn(32, seed=3), layer=1), Compose([Clamp(V, 0, 1, layer=1)])),
}


@pytest.fixture
def ids():
    return torch.randint(3, 96, (4, 9), generator=torch.Generator().manual_seed(0))


def logits(model, ids, mask=None):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def said(model, ids, **how):
    how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False, **how}
    with torch.no_grad():
        return model.generate(input_ids=ids, pad_token_id=0, eos_token_id=10_000, **how)


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("alpha", [1.5, [0.5, 1.5, 0.0, -1.0]])
def test_each_row_gets_its_own_edit_and_strength(tiny_model, ids, name, alpha):
    model, edits, rows = tiny_model("llama"), [*EDITS[name], None], [1, 0, 1, 2]
    alphas = alpha if isinstance(alpha, list) else [alpha] * 4
    with steer(model, edits, rows=rows, alpha=alpha) as block:
        together = logits(model, ids)
    counts = [0, 0, 0]
    for row, number in enumerate(rows):
        with steer(model, edits[number] or [], alpha=alphas[row]) as one:
            torch.testing.assert_close(together[row : row + 1], logits(model, ids[row : row + 1]), atol=1e-4, rtol=1e-4)
        counts[number] += sum(one.counts)
    assert block.counts == counts
    # Rows given to others are others: the order matters.
    with steer(model, edits, rows=rows[::-1], alpha=alpha):
        assert (logits(model, ids) - together).abs().max() > 1e-3
    assert hooks_on(model) == 0


def test_a_strength_for_each_row_is_for_all_edits_in_order(tiny_model, ids):
    model, edits = tiny_model("gpt2"), [AddDirection(V, layer=1), Rotate(W, layer=1, degrees=60)]
    alphas = torch.tensor([0.0, 0.5, 1.0, 2.0])
    with steer(model, edits, alpha=alphas):
        together = logits(model, ids)
    for row, alpha in enumerate(alphas.tolist()):
        with steer(model, edits, alpha=alpha):
            torch.testing.assert_close(together[row : row + 1], logits(model, ids[row : row + 1]), atol=1e-4, rtol=1e-4)


def test_a_sweep_is_one_batch_of_copies(tiny_model, ids):
    model = tiny_model("llama")
    with steer(model, HEADS, alpha=[0.0, 4.0, "weak"]):
        swept = logits(model, ids[:1].repeat(3, 1))
    torch.testing.assert_close(swept[0], logits(model, ids[:1])[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(swept[1], swept[2])
    assert (swept[1] - swept[0]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["constants", "a constant and a rotation", "a condition"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"use_cache": False},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 1, "num_return_sequences": 2},
        {"cache_implementation": "static"},
    ],
    ids=lambda how: "-".join(how) or "greedy",
)
def test_generation_follows_its_rows(tiny_model, name, how):
    """In one left-padded batch, with caches, beams and samples, each prompt is continued as by itself."""
    model, edits, rows = tiny_model("llama"), [*EDITS[name], None], [1, 2, 0]
    prompts = torch.randint(3, 96, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(prompts)
    for row, padding in enumerate([0, 3, 1]):
        mask[row, :padding] = prompts[row, :padding] = 0
    plain = said(model, prompts, attention_mask=mask, **how)
    with steer(model, edits, rows=rows, alpha=[1.0, 1.0, 0.7]):
        together = said(model, prompts, attention_mask=mask, **how)
    times = len(together) // 3
    for row, number in enumerate(rows):
        text = prompts[row][mask[row].bool()][None]
        with steer(model, edits[number] or [], alpha=[1.0, 1.0, 0.7][row]):
            wanted = said(model, text, **how)
        assert torch.equal(together[row * times : (row + 1) * times, 7:], wanted[:, text.shape[1] :]), row
    assert not torch.equal(together, plain)


@pytest.mark.parametrize("tokens", ["prompt", "generated", -1])
def test_rows_and_scopes_go_together(tiny_model, tokens):
    model, edits, rows = tiny_model("llama"), list(EDITS["a constant and a rotation"]), [1, None, 0]
    prompts = torch.randint(3, 96, (3, 7), generator=torch.Generator().manual_seed(1))
    with steer(model, edits, rows=rows, tokens=tokens):
        together = said(model, prompts)
    for row, number in enumerate(rows):
        with steer(model, [] if number is None else edits[number], tokens=tokens):
            assert torch.equal(together[row : row + 1], said(model, prompts[row : row + 1]))


def test_a_mask_of_tokens_holds_within_each_row(tiny_model, ids):
    model, mask = tiny_model("llama"), torch.rand(4, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    edits = list(EDITS["constants"])
    with steer(model, edits, rows=[0, 1, None, 0], tokens=mask) as block:
        together = logits(model, ids)
    assert block.counts == [int(mask[[0, 3]].sum()), int(mask[1].sum())]
    for row, number in enumerate([0, 1, None, 0]):
        with steer(model, [] if number is None else edits[number], tokens=mask[row : row + 1]):
            torch.testing.assert_close(together[row : row + 1], logits(model, ids[row : row + 1]), atol=1e-4, rtol=1e-4)


def test_blocks_with_rows_and_without_may_be_nested(tiny_model, ids):
    model, (first, second) = tiny_model("llama"), EDITS["constants"]
    with steer(model, first, alpha=2.0), steer(model, [second], rows=[0, None, 0, None]):
        together = logits(model, ids)
    for row, edits in enumerate([[first, first, second], [first, first]] * 2):
        with steer(model, edits):
            torch.testing.assert_close(together[row : row + 1], logits(model, ids[row : row + 1]), atol=1e-4, rtol=1e-4)


A = AddDirection(V, layer=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edits": [A, None]}, "name each row's edit with rows="),
        ({"edits": [A, None], "alpha": [1.0, 2.0]}, "name each row's edit with rows="),
        ({"rows": [0, 2]}, "0 to 1, or None; got 2"),
        ({"rows": [0, -1]}, "got -1"),
        ({"rows": [0, "a"]}, "got 'a'"),
        ({"rows": [True, 0]}, "got True"),
        ({"rows": []}, "got 0 rows"),
        ({"rows": [0, 1], "alpha": [1.0]}, "got 2 rows and 1 strengths"),
        ({"alpha": [1.0, float("nan")]}, "finite number, got nan"),
        ({"alpha": torch.ones(2, 2)}, "finite number"),
    ],
)
def test_rows_that_make_no_sense_are_refused_at_once(tiny_model, options, message):
    with pytest.raises(EntangleError, match=message) as caught:
        steer(tiny_model("llama"), options.pop("edits", [A, A]), **options)
    assert "\n" not in str(caught.value)


def test_rows_that_do_not_match_the_batch_are_refused_when_it_runs(tiny_model, ids):
    model = tiny_model("llama")
    cases = [
        (lambda: logits(model, ids[:3]), 4, "for 4 rows, but the batch has 3 texts: give one for each text"),
        (lambda: logits(model, ids), 2, "for 2 rows, but the batch has 4 texts"),
        (lambda: said(model, ids[:2], num_beams=2), 4, "for 4 rows, but the batch has 2 texts in 4 rows"),
        (lambda: said(model, ids), 3, "for 3 rows, but the batch has 4 texts"),
        (lambda: said(model, ids), 1, "for 1 rows, but the batch has 4 texts"),
    ]
    for (run, n, message), edit in itertools.product(cases, (A, Rotate(W, layer=1, degrees=30))):
        with steer(model, edit, alpha=[1.0] * n), pytest.raises(EntangleError, match=message) as caught:
            run()
        assert "\n" not in str(caught.value)
    assert hooks_on(model) == 0


def test_a_strength_for_each_row_has_no_weights(tiny_model):
    with pytest.raises(EntangleError, match="alpha must be a finite number"):
        A.bake(tiny_model("llama"), [1.0, 2.0])


def test_strengths_may_be_a_tables_column_and_rows_are_a_list(tiny_model, ids):
    model, edit = tiny_model("llama"), AddDirection(V, layer=1)
    with steer(model, edit, alpha=[1.0, 0.0, 2.0, -1.0]):
        listed = logits(model, ids)
    with steer(model, edit, alpha=pd.Series([1.0, 0.0, 2.0, -1.0], index=[3, 2, 1, 0])):
        assert torch.equal(logits(model, ids), listed)
    with pytest.raises(EntangleError, match="one for each text; got 0: pass a list"):
        steer(model, [edit, None], rows=0)
