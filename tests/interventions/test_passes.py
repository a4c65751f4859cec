"""What a pass computes is followed by what the model does, not by what its arguments are called, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from whole import CACHE, SCOPES, generated, prompts, push, push_for, whole

import tiny
import zoo
from entangle.errors import EntangleError
from entangle.interventions import AddDirection, steer
from entangle.interventions.hooks.states import states

EDIT = AddDirection(push(), "resid_post", 0)


def loop(model, tokens, ids, n_new, name=CACHE, cache=None):
    """Greedy decoding by hand, inside a steer block."""
    step, new = ids, []
    with steer(model, AddDirection(push_for(model, ids), "resid_post", 0), tokens=tokens) as handle, torch.no_grad():
        for _ in range(n_new):
            out = model(input_ids=step, use_cache=True, **({} if cache is None else {name: cache}))
            cache, step = out[name], out.logits[:, -1:].argmax(-1)
            new.append(step)
    return torch.cat(new, dim=1), handle.counts[0]


@pytest.mark.parametrize("tokens", SCOPES)
def test_a_cache_is_followed_under_a_name_that_nobody_has_given_it_yet(tokens):
    model = copy.deepcopy(tiny.build("llama", 0))
    decoder, ids = model.model, prompts(2, 6)
    plain = type(decoder).forward

    def forward(input_ids=None, remembered=None, **rest):
        return plain(decoder, input_ids=input_ids, **{**rest, "use_cache": True, CACHE: remembered})

    decoder.forward = forward
    text, cache = prompts(2, 10, seed=1), None
    text[:, :6] = ids
    outs = []
    with steer(model, EDIT, tokens=tokens) as handle, torch.no_grad():
        for start, end in [(0, 6), (6, 7), (7, 10)]:
            out = decoder(input_ids=text[:, start:end], remembered=cache)
            cache = out[CACHE]
            outs.append(out.last_hidden_state)
    assert handle.counts == [2 * {"prompt": 6, "generated": 4, 3: 7, -2: 6}[tokens]]
    kept = {"prompt": slice(0, 6), "generated": slice(6, 10), 3: slice(3, 10), -2: slice(4, 10)}[tokens]
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[:, kept] = True
    with steer(model, EDIT, tokens=mask), torch.no_grad():
        at_once = decoder(input_ids=text).last_hidden_state
    torch.testing.assert_close(torch.cat(outs, dim=1), at_once, atol=1e-4, rtol=1e-4)


RECURRENT = ["mamba", "falcon_mamba", "recurrent_gemma", "minimax", "rwkv", "lfm2", "jamba"]


@pytest.mark.parametrize("family", RECURRENT)
def test_states_without_a_length_are_followed(family):
    model, n_new = zoo.tiny(family, AutoModelForCausalLM), 4
    ids = prompts(1 if family == "rwkv" else 2, 6)  # its one-token passes mix the rows of a batch
    for tokens in SCOPES:
        out, count = generated(model, tokens, ids, n_new)
        assert torch.equal(out, whole(model, tokens, ids, n_new))
        assert count == len(ids) * {"prompt": 6, "generated": 3, 3: 6, -2: 5}[tokens]
    assert not torch.equal(whole(model, "prompt", ids, n_new), whole(model, "generated", ids, n_new))


@pytest.mark.parametrize(("family", "name"), [("mamba", "cache_params"), ("rwkv", "state"), ("llama", CACHE)])
def test_a_loop_of_ones_own_over_a_state_without_a_length(family, name):
    model, ids = zoo.tiny(family, AutoModelForCausalLM), prompts(1, 6)
    name = name if name in model(input_ids=ids, use_cache=True) else CACHE
    for tokens in SCOPES:
        out, count = loop(model, tokens, ids, 4, name)
        assert torch.equal(out, whole(model, tokens, ids, 4))
        assert count == {"prompt": 6, "generated": 3, 3: 6, -2: 5}[tokens]


def test_a_state_from_before_the_block_is_refused_where_nothing_tells_its_length():
    model, ids = zoo.tiny("rwkv", AutoModelForCausalLM), prompts(1, 6)
    with torch.no_grad():
        state = model(input_ids=ids, use_cache=True).state
        one = {"input_ids": ids[:, :1], "use_cache": True, "state": state}
        with (
            pytest.raises(EntangleError, match="of which nobody can tell what it holds") as caught,
            steer(model, EDIT, tokens="prompt"),
        ):
            model(**one)
        with steer(model, EDIT, tokens="generated") as handle:
            model.rwkv(**one, attention_mask=torch.ones(1, 7, dtype=torch.long))  # the mask tells
    assert "\n" not in str(caught.value)
    assert handle.counts == [1]


@pytest.mark.parametrize("implementation", ["static", "dynamic"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_caches_of_every_kind(family, implementation):
    model = zoo.tiny(family, AutoModelForCausalLM)
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = 4
    ids = prompts(2, 6)
    how = {} if implementation == "dynamic" else {"cache_implementation": implementation}
    for tokens in SCOPES:
        out, count = generated(model, tokens, ids, 5, **how)
        assert count == 2 * {"prompt": 6, "generated": 4, 3: 7, -2: 6}[tokens]
        assert torch.equal(out, whole(model, tokens, ids, 5))


def test_a_mask_as_wide_as_a_static_cache_is_read_up_to_what_is_computed(tiny_model):
    model, ids = tiny_model("llama"), prompts(2, 6)
    counts = []
    for width in (None, 16):
        cache, step, n = StaticCache(config=model.config, max_cache_len=16), ids, 0
        with steer(model, EDIT, tokens="generated") as handle, torch.no_grad():
            for _ in range(3):
                n += step.shape[1]
                mask = torch.zeros(2, n if width is None else width, dtype=torch.long)
                mask[:, :n] = 1
                step = model(input_ids=step, attention_mask=mask, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        counts.append(handle.counts)
    assert counts == [[4], [4]]


def test_two_texts_in_turns_each_keep_their_own_prompt(tiny_model):
    model, long, short = tiny_model("llama"), prompts(1, 7), prompts(1, 3, seed=1)
    for tokens, count in [("prompt", 10), ("generated", 4), (-2, 8), (5, 2 + 2)]:
        with steer(model, EDIT, tokens=tokens) as handle, torch.no_grad():
            caches = [model(input_ids=ids, use_cache=True)[CACHE] for ids in (long, short)]
            for _ in range(2):
                caches = [model(input_ids=long[:, :1], use_cache=True, **{CACHE: cache})[CACHE] for cache in caches]
        assert handle.counts == [count]


def test_a_copy_of_a_cache_goes_on_from_what_it_holds(tiny_model):
    model, ids = tiny_model("llama"), prompts(1, 6)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True)[CACHE]
    for tokens, count in [("prompt", 0), ("generated", 2), (7, 1), (-1, 2)]:
        with steer(model, EDIT, tokens=tokens) as handle, torch.no_grad():
            model(input_ids=ids[:, :2], **{CACHE: copy.deepcopy(cache)})
        assert handle.counts == [count]


@pytest.mark.parametrize("anew", [True, False])
def test_generate_from_a_cache_of_the_texts_beginning(tiny_model, anew):
    model, ids = tiny_model("llama"), prompts(2, 7)
    for tokens, count in [("prompt", 6), ("generated", 8), (5, 4 + 8), (-1, 2 + 8)]:
        with torch.no_grad():
            cache = model(input_ids=ids[:, :4], use_cache=True)[CACHE]
        _, counted = generated(
            model, tokens, ids if anew else ids[:, 4:], 5, attention_mask=torch.ones_like(ids), **{CACHE: cache}
        )
        assert counted == count


def test_prompts_given_as_embeddings(tiny_model):
    model, ids = tiny_model("llama"), prompts(2, 6)
    embeddings = model.get_input_embeddings()(ids).detach()
    for tokens in SCOPES:
        with steer(model, AddDirection(push_for(model, ids), "resid_post", 0), tokens=tokens):
            out = model.generate(
                inputs_embeds=embeddings, attention_mask=torch.ones_like(ids), max_new_tokens=5, eos_token_id=10_000
            )
        assert torch.equal(out, whole(model, tokens, ids, 5))


@pytest.mark.parametrize("way", [{"assistant_early_exit": 1}, {"prompt_lookup_num_tokens": 2}, {"assistant": True}])
def test_a_model_that_drafts_for_itself_keeps_the_prompt_of_its_text(tiny_model, way):
    model, ids = tiny_model("llama"), prompts(1, 6)
    how = {"assistant_model": model} if "assistant" in way else way
    for tokens in SCOPES:
        out, _ = generated(model, tokens, ids, 6, **how)
        assert torch.equal(out, whole(model, tokens, ids, 6))


def test_the_other_text_of_guidance_has_a_prompt_of_its_own(tiny_model):
    model, ids, other = tiny_model("llama"), prompts(2, 7), prompts(2, 4, seed=1)
    guided = {"guidance_scale": 1.5, "negative_prompt_ids": other}
    for tokens, count in [("prompt", 14 + 8), ("generated", 8 + 8), (5, 4 + 8 + 2 * 3), (-1, 2 + 8 + 2 + 8)]:
        assert generated(model, tokens, ids, 5, **guided)[1] == count
    with pytest.raises(EntangleError, match="a token mask is of the prompts, but this pass computes another text"):
        generated(model, torch.ones_like(ids).bool(), ids, 5, **guided)
    with pytest.raises(EntangleError, match="a text beside the one generated runs without a cache"):
        generated(model, "generated", ids, 5, use_cache=False, **guided)


def test_positions_that_begin_again_are_several_texts_in_one_row(tiny_model):
    model = tiny_model("llama")
    long, short = prompts(1, 5), prompts(1, 3, seed=1)
    packed = {
        "input_ids": torch.cat([long, short], dim=1),
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]]),
    }
    for tokens, kept in [(2, [2, 3, 4, 7]), (-1, [4, 7]), (-4, [1, 2, 3, 4, 5, 6, 7]), ("prompt", range(8))]:
        mask = torch.zeros(1, 8, dtype=torch.bool)
        mask[:, list(kept)] = True
        with torch.no_grad(), steer(model, EDIT, tokens=tokens):
            out = model(**packed).logits
        with torch.no_grad(), steer(model, EDIT, tokens=mask):
            assert torch.equal(out, model(**packed).logits)


def disagreeing(model):
    """Calls of which one thing says this and another that; and a word of why they are refused."""
    ids = prompts(2, 6)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids, use_cache=True, **{CACHE: cache})
    ones = torch.ones(2, 9, dtype=torch.long)

    class Unheard:
        """A memory of a kind that nothing is known about."""

    return {
        "its mask has 9 columns": {"attention_mask": ones},
        "it computes 6 after 6, but its mask has 9": {CACHE: cache, "attention_mask": ones},
        "its positions begin at 4": {"position_ids": torch.arange(4, 10)[None]},
        "count otherwise than": {"position_ids": torch.tensor([[0, 1, 2, 2, 4, 5]])},
        "it goes on from a Unheard": {"memory": Unheard()},
        "it goes on from a list": {"memory": [torch.zeros(2, 32), torch.zeros(2, 32)]},
        r"the attention mask has shape \(2, 1, 6, 6\)": {"attention_mask": torch.ones(2, 1, 6, 6).bool().tril()},
    }


@pytest.mark.parametrize("which", range(7))
def test_what_disagrees_or_is_not_known_is_refused_in_one_line(tiny_model, which):
    model, ids = tiny_model("llama"), prompts(2, 6)
    message, arguments = list(disagreeing(model).items())[which]
    with (
        torch.no_grad(),
        pytest.raises(EntangleError, match=message) as caught,
        steer(model, EDIT, tokens=2),
    ):
        model.model(input_ids=ids, **arguments)
    assert "\n" not in str(caught.value)
    with torch.no_grad(), steer(model, EDIT, tokens="all") as handle:  # all tokens are all, whatever came before
        model.model(input_ids=ids, **({} if "memory" in arguments or len(arguments) > 1 else arguments))
    assert handle.counts[0] > 0
    assert not model.model._forward_pre_hooks


def test_packed_batches_of_a_server_are_refused_before_they_run(tiny_model):
    model = tiny_model("llama")
    if not hasattr(model, "generate_batch"):
        pytest.skip("this transformers has no generate_batch")
    with (
        pytest.raises(EntangleError, match="generate_batch packs parts of many texts"),
        steer(model, EDIT, tokens="generated"),
    ):
        model.generate_batch([[5, 6, 7]])
    assert "generate_batch" not in model.__dict__


def test_states_are_known_by_what_they_do():
    config = tiny.build("llama", 0).config
    cache = DynamicCache(config=config)
    for layer in range(3):
        cache.update(torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8), layer)
    legacy = tuple((torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8)) for _ in range(3))
    lengths = {kind: [state.length for state in states({"any": value})] for kind, value in {
        "full": cache, "empty": DynamicCache(config=config), "legacy": legacy, "odd": object(),
        "none": None, "ids": torch.zeros(1, 5), "switch": True, "state": [torch.zeros(1, 8, 3)] * 5,
    }.items()}  # fmt: skip
    assert lengths == {
        "full": [5], "empty": [0], "legacy": [5], "odd": [None], "none": [], "ids": [], "switch": [], "state": [None],
    }  # fmt: skip


def test_legacy_tuples_are_followed(tiny_model):
    """A model that hands its cache on as plain tuples, as those of old and of remote code do."""

    model, ids = copy.deepcopy(tiny_model("llama")), prompts(2, 6)
    decoder = model.model
    plain = type(decoder).forward

    def forward(input_ids=None, memory=None, **_):
        cache = DynamicCache(config=model.config)
        for layer, (keys, values) in enumerate(memory or ()):
            cache.update(keys, values, layer)
        out = plain(decoder, input_ids=input_ids, use_cache=True, **{CACHE: cache})
        return out.last_hidden_state, tuple((layer.keys, layer.values) for layer in cache.layers)

    decoder.forward = forward
    for tokens, count in [("prompt", 12), ("generated", 4), (3, 2 * 5), (-2, 2 * 4)]:
        memory = None
        with steer(model, EDIT, tokens=tokens) as handle, torch.no_grad():
            for step in (ids, ids[:, :1], ids[:, :1]):
                _, memory = decoder(input_ids=step, memory=memory)
        assert handle.counts == [count]
