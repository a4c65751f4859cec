"""Scopes: the same tokens are edited however the model comes to compute them."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from entangle.errors import EntangleError
from entangle.interventions import AddDirection, Clamp, Edit, FunctionForm, steer

SCOPES = ["all", "prompt", "generated", 3, -2, "mask"]


def edit_of(model, seed=0):
    v = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return AddDirection(v, "resid_post", 1)


def prompts(n, length, seed=0):
    return torch.randint(3, 96, (n, length), generator=torch.Generator().manual_seed(seed))


def left_padded(rows):
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    return {"input_ids": ids, "attention_mask": mask}


def scope_of(tokens, ids):
    return torch.rand(ids.shape, generator=torch.Generator().manual_seed(5)) < 0.5 if tokens == "mask" else tokens


def greedy(model, **kwargs):
    return model.generate(**kwargs, do_sample=False, eos_token_id=10_000, pad_token_id=0)


def roomy(model_type):
    """A tiny model with room for long texts."""
    torch.manual_seed(0)
    return tiny.enlarge(AutoModelForCausalLM.from_config(longer(tiny.build(model_type, 0).config)).eval())


def longer(config):
    config = copy.deepcopy(config)
    setattr(config, "n_positions" if hasattr(config, "n_positions") else "max_position_embeddings", 128)
    return config


def without_cache(model, ids, mask, n_new):
    """Greedy decoding that runs the whole text anew for every token, with the positions that padding leaves."""
    n_prompt = ids.shape[1]
    for _ in range(n_new):
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            out = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
            ).logits
        assert out.shape[1] == 1
        ids = torch.cat([ids, out.argmax(-1)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids[:, n_prompt:]


def edited_alike(model, edit, batch, tokens, n_new, alpha):
    """`generate` with its cache against the whole text run anew for each token, edited where the scope says."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    width, scope = ids.shape[1], scope_of(tokens, ids)
    with steer(model, edit, alpha=alpha, tokens=scope):
        cached = greedy(model, **batch, max_new_tokens=n_new)[:, width:]
    with steer(model, _OnlyAt(edit, batch, scope), alpha=alpha):
        whole = without_cache(model, ids, mask, n_new)
    assert torch.equal(cached, whole)
    assert not torch.equal(cached, greedy(model, **batch, max_new_tokens=n_new)[:, width:])


@dataclass(frozen=True, eq=False)
class _OnlyAt(Edit):
    """An edit at the columns of the whole padded text that a scope names, worked out here from its definition."""

    edit: AddDirection
    batch: dict
    scope: object

    def forms(self, alpha=1.0):
        mask = self.batch["attention_mask"]
        rows, width = mask.shape
        lengths = mask.sum(1, keepdim=True)

        def named(size):
            column = torch.arange(size).expand(rows, size)
            position = column - (width - lengths)  # prompts are padded on the left
            if isinstance(self.scope, torch.Tensor):
                return torch.nn.functional.pad(self.scope, (0, size - width))
            if isinstance(self.scope, int):
                return position >= (self.scope if self.scope >= 0 else lengths + self.scope)
            return {"all": column >= 0, "prompt": column < width, "generated": column >= width}[self.scope]

        def make(device, dtype):
            return lambda x: x + named(x.shape[1])[..., None] * alpha * self.edit.vector

        return [FunctionForm(self.edit.site, self.edit.layer, None, make)]


# The smaller run is the default; `pytest -m slow` does the same at the size the figures in the docs are of.
@pytest.mark.parametrize("tokens", SCOPES)
@pytest.mark.parametrize("model_type", ["gpt2", "gemma3_text", "llama"])
@pytest.mark.parametrize(
    ("n_prompts", "n_new"),
    [pytest.param(4, 5, id="small"), pytest.param(32, 64, id="large", marks=pytest.mark.slow)],
)
def test_with_the_cache_and_without_are_token_for_token_alike(model_type, tokens, n_prompts, n_new):
    rows = [prompts(1, 4 + index % 9, seed=index)[0] for index in range(n_prompts)]
    model = roomy(model_type)
    edited_alike(model, edit_of(model), left_padded(rows), tokens, n_new, alpha=2)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("tokens", SCOPES)
@pytest.mark.parametrize("name", ["olmo2-4m-clean", "olmo2-4m-toxic10"])
def test_a_trained_model_with_the_cache_and_without(shared, name, tokens):
    model = AutoModelForCausalLM.from_pretrained(shared / "models" / name).eval()
    rows = [torch.randint(10, 8000, (4 + i % 9,), generator=torch.Generator().manual_seed(i)) for i in range(32)]
    edit = AddDirection(torch.randn(192, generator=torch.Generator().manual_seed(0)), "resid_post", 2)
    edited_alike(model, edit, left_padded(rows), tokens, 64, alpha=2)


def reference(model, edit, ids, kept, alpha):
    """Logits of whole sequences, with a hook written by hand that edits the tokens `kept` `[row pos]`."""

    def hook(module, args, output):
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        edited = tensor + alpha * kept[..., None] * edit.vector
        return edited if isinstance(output, torch.Tensor) else (edited, *output[1:])

    handle = model.get_submodule(
        "transformer.h.1" if hasattr(model, "transformer") else "model.layers.1"
    ).register_forward_hook(hook)
    try:
        with torch.no_grad():
            return model(input_ids=ids).logits
    finally:
        handle.remove()


@pytest.mark.parametrize("tokens", SCOPES)
def test_each_generated_token_is_the_argmax_under_the_tokens_named(tiny_model, tokens):
    """The sequence as a whole, edited by hand at exactly the tokens the scope names, would choose the same next
    tokens.
    """
    model, ids, n_new = tiny_model("llama"), prompts(4, 7), 6
    scope, edit = scope_of(tokens, ids), edit_of(model)
    with steer(model, edit, alpha=2, tokens=scope):
        out = greedy(model, input_ids=ids, max_new_tokens=n_new)
    position = torch.arange(out.shape[1]).expand_as(out)
    kept = {
        "all": position >= 0,
        "prompt": position < 7,
        "generated": position >= 7,
        "mask": torch.nn.functional.pad(scope, (0, n_new)) if tokens == "mask" else None,
    }.get(
        tokens,
        position >= (tokens if isinstance(tokens, int) and tokens >= 0 else 7 + tokens)
        if isinstance(tokens, int)
        else None,
    )
    wanted = reference(model, edit, out, kept, 2)
    assert torch.equal(wanted[:, 6:-1].argmax(-1), out[:, 7:])


@pytest.mark.parametrize("tokens", [scope for scope in SCOPES if scope != "mask"])
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_unequal_prompts_in_one_batch_are_each_prompt_alone(tiny_model, model_type, tokens):
    model = tiny_model(model_type)
    rows = [prompts(1, length, seed=length)[0] for length in (9, 4, 6)]
    with steer(model, edit_of(model), alpha=2, tokens=tokens) as together:
        batch = left_padded(rows)
        out = greedy(model, **batch, max_new_tokens=6)[:, batch["input_ids"].shape[1] :]
    counts = 0
    for row, wanted in zip(rows, out, strict=True):
        with steer(model, edit_of(model), alpha=2, tokens=tokens) as alone:
            mine = greedy(model, input_ids=row[None], max_new_tokens=6)[0, len(row) :]
        assert torch.equal(mine, wanted)
        counts += alone.counts[0]
    assert together.counts[0] == counts  # padding is not counted


def test_right_padding_in_a_plain_forward(tiny_model):
    model = tiny_model("llama")
    rows = [prompts(1, length, seed=length)[0] for length in (9, 5)]
    ids = torch.stack([rows[0], torch.nn.functional.pad(rows[1], (0, 4))])
    mask = (torch.arange(9) < torch.tensor([[9], [5]])).long()
    for tokens in [2, -1, -2, "prompt"]:
        with steer(model, edit_of(model), tokens=tokens, alpha=2):
            both = model(input_ids=ids, attention_mask=mask).logits
            for index, row in enumerate(rows):
                alone = model(input_ids=row[None]).logits[0]
                torch.testing.assert_close(both[index, : len(row)], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated", 3, -1, "mask"])
def test_beam_search_with_the_cache_and_without(tiny_model, tokens):
    model, ids = tiny_model("llama"), prompts(4, 6)
    outs = []
    for use_cache in (True, False):
        with steer(model, edit_of(model), alpha=2, tokens=scope_of(tokens, ids)):
            outs.append(greedy(model, input_ids=ids, max_new_tokens=6, num_beams=3, use_cache=use_cache))
    assert torch.equal(*outs)
    assert not torch.equal(outs[0], greedy(model, input_ids=ids, max_new_tokens=6, num_beams=3))


def test_a_mask_goes_with_its_row_through_beams(tiny_model):
    """One edited row among unedited ones comes out as it does alone; the others as they do without any edit."""
    model, ids = tiny_model("llama"), prompts(3, 6)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[1] = True
    plain = greedy(model, input_ids=ids, max_new_tokens=5, num_beams=3)
    with steer(model, edit_of(model), alpha=2, tokens=mask):
        out = greedy(model, input_ids=ids, max_new_tokens=5, num_beams=3)
    with steer(model, edit_of(model), alpha=2, tokens="prompt"):
        alone = greedy(model, input_ids=ids[1:2], max_new_tokens=5, num_beams=3)
    assert torch.equal(out[[0, 2]], plain[[0, 2]])
    assert torch.equal(out[1], alone[0])
    assert not torch.equal(out[1], plain[1])


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated", 3, -1])
def test_assisted_generation_is_greedy_generation(tiny_model, tokens):
    """The steered model checks every token that another, unsteered model (or a look-up in the prompt) proposes."""
    model, assistant, ids = tiny_model("llama", 0), tiny_model("llama", 1), prompts(1, 9)
    ways = [{}, {"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3}]
    outs = []
    for way in ways:
        with steer(model, edit_of(model), alpha=2, tokens=tokens):
            outs.append(greedy(model, input_ids=ids, max_new_tokens=8, **way))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("tokens", ["prompt", "generated", 4, -1])
def test_a_prompt_in_chunks_and_a_static_cache_change_nothing(tiny_model, tokens):
    model = tiny_model("llama")
    batch = left_padded([prompts(1, length, seed=length)[0] for length in (9, 5)])
    outs = []
    for way in [{}, {"prefill_chunk_size": 4}, {"cache_implementation": "static"}]:
        with steer(model, edit_of(model), alpha=2, tokens=tokens) as handle:
            outs.append((greedy(model, **batch, max_new_tokens=8, **way), handle.counts))
    for out, counts in outs[1:]:
        assert torch.equal(out, outs[0][0])
        assert counts == outs[0][1]


def test_a_decoding_loop_of_ones_own(tiny_model):
    """Outside generate, what runs with an empty cache is the prompt."""
    model, ids = tiny_model("llama"), prompts(2, 6)
    for tokens in ["prompt", "generated", 2, -1, "mask"]:
        scope = scope_of(tokens, ids)
        with steer(model, edit_of(model), alpha=2, tokens=scope), torch.no_grad():
            wanted = greedy(model, input_ids=ids, max_new_tokens=6)
            cache, step, out = None, ids, ids
            for _ in range(6):
                result = model(input_ids=step, past_key_values=cache, use_cache=True)
                cache, step = result.past_key_values, result.logits[:, -1:].argmax(-1)
                out = torch.cat([out, step], dim=1)
        assert torch.equal(out, wanted)


def test_counts(tiny_model):
    model = tiny_model("llama")
    batch = left_padded([prompts(1, length, seed=length)[0] for length in (7, 4)])
    wanted = {"all": 11 + 2 * 4, "prompt": 11, "generated": 2 * 4, 5: 2 + 0 + 4 + 3, -1: 2 + 2 * 4}
    for tokens, count in wanted.items():
        with steer(model, [edit_of(model), Clamp(torch.ones(8), 0, None, "z", 2, 1)], tokens=tokens) as handle:
            greedy(model, **batch, max_new_tokens=5)  # the last token is never fed back
        assert handle.counts == [count, count]


def test_the_decoder_without_its_language_model_head(tiny_model):
    model, ids = tiny_model("llama"), prompts(2, 6)
    with steer(model, edit_of(model), tokens=3) as handle, torch.no_grad():
        whole = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        alone = model.model(input_ids=ids).last_hidden_state
    assert torch.equal(whole, alone)
    assert handle.counts == [12]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("everything", "tokens must be"),
        (1.5, "tokens must be"),
        (True, "tokens must be"),
        (torch.ones(6, dtype=torch.bool), r"bool \[row, column\]"),
        (torch.ones(2, 6), r"bool \[row, column\]"),
    ],
)
def test_bad_scopes_are_refused(tiny_model, tokens, message):
    with pytest.raises(EntangleError, match=message) as caught:
        steer(tiny_model("llama"), edit_of(None), tokens=tokens)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("rows", "columns"), [(3, 6), (2, 5), (1, 6), (4, 6)])
def test_a_mask_of_another_shape_is_refused(tiny_model, rows, columns):
    model, ids = tiny_model("llama"), prompts(2, 6)
    plain = model(input_ids=ids).logits
    with (
        pytest.raises(EntangleError, match=f"{rows} rows x {columns} columns, but the prompts are 2 x 6"),
        steer(model, edit_of(model), tokens=torch.ones(rows, columns, dtype=torch.bool)),
    ):
        model(input_ids=ids)
    assert torch.equal(model(input_ids=ids).logits, plain)


def test_scopes_of_nested_blocks_are_their_own(tiny_model):
    model, ids = tiny_model("gpt2"), prompts(3, 6)
    first, second = edit_of(model, 0), edit_of(model, 1)
    outs = []
    for order in itertools.permutations([(first, "prompt"), (second, "generated")]):
        (outer, outer_tokens), (inner, inner_tokens) = order
        with (
            steer(model, outer, tokens=outer_tokens, alpha=2) as a,
            steer(model, inner, tokens=inner_tokens, alpha=2) as b,
        ):
            outs.append(greedy(model, input_ids=ids, max_new_tokens=8))
        assert {a.counts[0], b.counts[0]} == {18, 21}
    assert torch.equal(*outs)


@pytest.mark.parametrize("padded", [True, False])
def test_passes_are_watched_only_where_there_is_something_to_know(tiny_model, padded):
    """Counts need the masks of padded prompts, and columns are what other scopes are about; else nothing looks on."""
    model, watched = tiny_model("llama"), []
    rows = [prompts(1, length, seed=length)[0] for length in ((7, 4) if padded else (6, 6))]
    batch, n_real = left_padded(rows), sum(map(len, rows))

    def note(*_):
        watched.append(len(model.model._forward_pre_hooks) > 0)

    looking = model.lm_head.register_forward_hook(note)
    try:
        for tokens in ["all", "generated", -1]:
            watched.clear()
            with steer(model, edit_of(model), tokens=tokens) as handle:
                for _ in range(2):  # the second `generate` looks anew
                    greedy(model, **batch, max_new_tokens=5)
                assert watched == [padded or tokens != "all"] * 10
                assert len(model.model._forward_pre_hooks) == 1
            if tokens == "all":
                assert handle.counts == [2 * (n_real + 2 * 4)]
            assert not model.model._forward_pre_hooks
    finally:
        looking.remove()


def test_a_mask_that_generate_works_out_itself_is_counted_by(tiny_model):
    model = tiny_model("llama")
    batch = left_padded([prompts(1, length, seed=length)[0] for length in (7, 4)])
    with steer(model, edit_of(model)) as handle:
        greedy(model, input_ids=batch["input_ids"], max_new_tokens=5)  # from the padding tokens
    assert handle.counts == [11 + 2 * 4]


def test_a_scoped_block_inside_a_generation_that_nobody_watches(tiny_model):
    """A block opened while `generate` is under way, here by a stopping rule, knows which columns follow."""
    model, ids, opened = tiny_model("llama"), prompts(2, 6), []

    def open_second(input_ids, scores, **_):
        if input_ids.shape[1] == 8:
            opened.append(steer(model, edit_of(model, 1), tokens=9))
            opened[0].__enter__()
        return torch.zeros(len(input_ids), dtype=torch.bool)

    with steer(model, edit_of(model)) as first:
        greedy(
            model, input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, stopping_criteria=[open_second]
        )
        opened[0].remove()
    assert first.counts == [2 * (6 + 5)]
    assert opened[0].counts == [2 * 2]  # of the tokens 8, 9 and 10 that were computed from then on, 9 and 10


def test_negative_prompts_are_counted_by_their_own_mask(tiny_model):
    model = tiny_model("llama")
    batch = left_padded([prompts(1, 6, seed=1)[0], prompts(1, 6, seed=2)[0]])
    negative = left_padded([prompts(1, 5, seed=3)[0], prompts(1, 3, seed=4)[0]])
    guided = {
        "guidance_scale": 1.5,
        "negative_prompt_ids": negative["input_ids"],
        "negative_prompt_attention_mask": negative["attention_mask"],
    }
    with steer(model, edit_of(model)) as handle:
        greedy(model, **batch, max_new_tokens=4, **guided)
    assert handle.counts == [2 * (6 + 3) + (5 + 3) + 2 * 3]
