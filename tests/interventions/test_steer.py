"""Steering: what hooks do to a running model, and that they leave nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random

import pytest
import torch

from entangle.errors import EntangleError
from entangle.interventions import ITI, Ablate, AddDirection, Clamp, Compose, Set, steer
from entangle.models.atlas import Atlas


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def some_iti(model, seed=0, k=4):
    atlas = Atlas(model)
    generator = torch.Generator().manual_seed(seed)
    everywhere = list(itertools.product(atlas.layers("z"), range(atlas.n_heads(0))))
    directions = torch.nn.functional.normalize(torch.randn(k, atlas.d_head(0), generator=generator), dim=1)
    chosen = torch.randperm(len(everywhere), generator=generator)[:k].tolist()
    return ITI([everywhere[i] for i in chosen], directions, torch.rand(k, generator=generator) + 0.5)


@pytest.fixture
def ids():
    return torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))


def test_steering_iti_is_adding_to_each_heads_output(causal_lm, ids):
    """Against a hook written by hand, on the module that the configuration's source says holds the output
    projection.
    """
    iti = some_iti(causal_lm)
    atlas = Atlas(causal_lm)
    d_head = atlas.d_head(0)
    plain = logits(causal_lm, ids)

    def add(layer):
        def hook(module, args):
            z = args[0].clone()
            for (at, head), theta, sigma in zip(iti.heads, iti.directions, iti.sigmas, strict=True):
                if at == layer:
                    z[..., head * d_head : (head + 1) * d_head] += 3 * sigma * theta
            return (z, *args[1:])

        return hook

    names = ("o_proj", "out_proj", "c_proj", "dense")
    handles = []
    for layer, block in enumerate(atlas.blocks):
        attention = next(m for name, m in block.named_children() if name in ("attn", "self_attn", "attention"))
        projection = next(m for name, m in attention.named_children() if name in names)
        handles.append(projection.register_forward_pre_hook(add(layer)))
    wanted = logits(causal_lm, ids)
    for handle in handles:
        handle.remove()

    with steer(causal_lm, iti, alpha=3):
        steered = logits(causal_lm, ids)
    torch.testing.assert_close(steered, wanted, atol=1e-5, rtol=0)
    assert (wanted - plain).abs().max() > 0.1
    assert torch.equal(logits(causal_lm, ids), plain)


@pytest.mark.parametrize("site", ["resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post"])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma3_text"])
def test_every_edit_works_at_every_site(tiny_model, model_type, site, ids):
    """At each site the next reader of the tensor sees the edited one: an ablated direction has no component left."""
    model, seen = tiny_model(model_type), []
    atlas = Atlas(model)
    if 1 not in atlas.layers(site):
        pytest.skip(f"{model_type} has no {site}: {atlas.reason(site, 1)}")
    v = torch.randn(atlas.size(site, 1), generator=torch.Generator().manual_seed(1))
    u = v / v.norm()
    from entangle.models.hooks import hooked

    for edit, wanted in [
        (Ablate(v, site, 1), torch.zeros_like),
        (Set(v, 2.0, site, 1), lambda was: torch.full_like(was, 2.0)),
        (Clamp(v, -0.1, 0.1, site, 1), lambda was: was.clamp(-0.1, 0.1)),
        (AddDirection(v, site, 1), lambda was: was + v.norm()),
    ]:
        seen.clear()

        def look(x):
            seen.append(x @ u)

        with hooked([(atlas.place(site, 1), look)]), steer(model, edit), hooked([(atlas.place(site, 1), look)]):
            logits(model, ids)
        torch.testing.assert_close(seen[1], wanted(seen[0]), atol=1e-4, rtol=1e-4)


def test_a_full_name_is_a_site_and_layer(tiny_model, ids):
    model = tiny_model("llama")
    v = torch.ones(8)
    plain = logits(model, ids)
    outcomes = []
    for edit in [
        AddDirection(v, "z", 1, 2),
        AddDirection(v, "blocks.1.attn.hook_z", None, 2),
        AddDirection(v, "model.layers.1.self_attn.o_proj", None, 2),
    ]:
        with steer(model, edit, alpha=3):
            outcomes.append(logits(model, ids))
    assert torch.equal(outcomes[0], outcomes[1])
    assert torch.equal(outcomes[0], outcomes[2])
    assert not torch.equal(outcomes[0], plain)


def test_one_head_under_a_non_affine_edit_leaves_the_others(tiny_model, ids):
    from entangle.models.hooks import hooked

    model = tiny_model("qwen3")
    place, seen = Atlas(model).place("z", 0), []

    def look(x):
        seen.append(x.unflatten(-1, (4, 8)))

    v = torch.randn(8, generator=torch.Generator().manual_seed(0))
    with hooked([(place, look)]), steer(model, Clamp(v, 0.3, 0.3, "z", 0, 2)), hooked([(place, look)]):
        logits(model, ids)
    before, after = seen
    torch.testing.assert_close(after[:, :, 2] @ (v / v.norm()), torch.full((2, 9), 0.3))
    assert torch.equal(after[:, :, [0, 1, 3]], before[:, :, [0, 1, 3]])


def test_alpha_zero_is_bit_identical_and_attaches_nothing(causal_lm, ids):
    plain, before = logits(causal_lm, ids), hooks_on(causal_lm)
    v = torch.randn(Atlas(causal_lm).size("resid_post", 1))
    with steer(causal_lm, [some_iti(causal_lm), Ablate(v, "resid_post", 1)], alpha=0) as handle:
        assert hooks_on(causal_lm) == before
        assert torch.equal(logits(causal_lm, ids), plain)
    assert handle.counts == [0, 0]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_the_block(tiny_model, ids, error):
    model = tiny_model("gpt2")
    plain, before = logits(model, ids), hooks_on(model)
    with (
        pytest.raises(error) if error else contextlib.nullcontext(),
        steer(model, some_iti(model), alpha=8, tokens="generated"),
    ):
        model.generate(input_ids=ids, max_new_tokens=4)
        assert hooks_on(model) > before
        if error:
            raise error
    assert hooks_on(model) == before
    assert "generate" not in model.__dict__
    assert torch.equal(logits(model, ids), plain)


def test_an_error_inside_the_forward_pass_leaves_nothing(tiny_model, ids):
    model = tiny_model("llama")
    plain, before = logits(model, ids), hooks_on(model)
    with pytest.raises(IndexError), steer(model, some_iti(model), alpha=8):
        model(input_ids=ids + 1000)
    assert hooks_on(model) == before
    assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("n", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_exceptions_leave_nothing(n, tiny_model, ids):
    """Blocks opened in nests and closed in any order, by raising anywhere: while opening, in a hook, in the body."""
    model = tiny_model("llama")
    rng = random.Random(0)
    plain, before = logits(model, ids), hooks_on(model)
    edits = [some_iti(model, seed) for seed in range(3)]
    raised = 0

    def explode(x):
        raise rng.choice([RuntimeError, KeyboardInterrupt, MemoryError, GeneratorExit])

    for _ in range(n):
        opened = []
        try:
            for _ in range(rng.randint(1, 3)):
                block = steer(
                    model, rng.choice(edits), alpha=rng.uniform(1, 9), tokens=rng.choice(["all", "prompt", 2, -1])
                )
                opened.append(block)
                block.__enter__()
            where = rng.randint(0, 3)
            if where == 0:
                explode(None)
            elif where == 1:
                steer(model, AddDirection(torch.ones(3), "z", 0))
            elif where == 2:
                model(input_ids=ids[:, :2] + 1000)
            else:
                handle = rng.choice(list(model.modules())).register_forward_hook(lambda *_: explode(None))
                try:
                    model(input_ids=ids[:, :2])
                    explode(None)
                finally:
                    handle.remove()
        except BaseException:
            raised += 1
        finally:
            rng.shuffle(opened)
            for block in opened:
                block.__exit__(None, None, None)
        assert hooks_on(model) == before
    assert raised == n
    assert "generate" not in model.__dict__
    assert torch.equal(logits(model, ids), plain)


def test_nested_blocks_compose_and_close_in_any_order(tiny_model, ids):
    model = tiny_model("gpt_neox")
    v = torch.randn(32, generator=torch.Generator().manual_seed(2))
    edits = [AddDirection(v, "resid_post", 0), Ablate(v, "resid_post", 0), some_iti(model)]
    alone = []
    for edit in edits:
        with steer(model, edit):
            alone.append(logits(model, ids))
    with steer(model, edits):
        together = logits(model, ids)
    plain, before = logits(model, ids), hooks_on(model)
    for order in itertools.permutations(range(3)):
        blocks = [steer(model, edit) for edit in edits]
        for block in blocks:
            block.__enter__()
        torch.testing.assert_close(logits(model, ids), together, atol=1e-5, rtol=1e-5)
        left = list(range(3))
        for index in order:
            blocks[index].remove()
            left.remove(index)
            if len(left) == 1:
                assert torch.equal(logits(model, ids), alone[left[0]])
        assert torch.equal(logits(model, ids), plain)
        assert hooks_on(model) == before
    # Adding before ablating is not ablating before adding.
    with steer(model, [edits[1], edits[0], edits[2]]):
        assert not torch.allclose(logits(model, ids), together, atol=1e-3)


@pytest.mark.parametrize("outer", ["resid_mid", "resid_post"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_nested_blocks_in_the_middle_and_at_the_end_of_a_layer(tiny_model, ids, model_type, outer):
    """Whichever block was opened first, the end of the layer is edited after its middle: one block says the same."""
    model = tiny_model(model_type)
    v = torch.randn(32, generator=torch.Generator().manual_seed(2))
    edits = {"resid_mid": Set(v, 5.0, "resid_mid", 1), "resid_post": Ablate(v, "resid_post", 1)}
    (inner,) = set(edits) - {outer}
    with steer(model, list(edits.values())):
        wanted = logits(model, ids)
    with steer(model, edits[outer]), steer(model, edits[inner]):
        torch.testing.assert_close(logits(model, ids), wanted, atol=1e-5, rtol=1e-5)
    with steer(model, edits["resid_post"]):
        assert not torch.allclose(logits(model, ids), wanted, atol=1e-3)


def test_compose_is_the_list(tiny_model, ids):
    model = tiny_model("llama")
    v = torch.randn(32, generator=torch.Generator().manual_seed(2))
    edits = [AddDirection(v, "resid_post", 0), Clamp(v, -1, 1, "resid_post", 0), Ablate(v.flip(0), "resid_mid", 2)]
    with steer(model, edits):
        wanted = logits(model, ids)
    with steer(model, Compose(edits)):
        assert torch.equal(logits(model, ids), wanted)


def test_a_block_opens_once_at_a_time(tiny_model):
    block = steer(tiny_model("llama"), some_iti(tiny_model("llama")))
    with block, pytest.raises(EntangleError, match="already open"):
        block.__enter__()
    with block:  # closed, it may be opened again
        pass


def test_gradients_flow_through_a_steered_model(tiny_model, ids):
    model = tiny_model("llama")
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    with steer(model, some_iti(model), alpha=3):
        (gradient,) = torch.autograd.grad(model(inputs_embeds=embeds).logits.square().sum(), embeds)
    assert gradient.abs().sum() > 0


def test_a_bfloat16_model_is_steered_in_bfloat16(tiny_model, ids):
    import copy

    model = copy.deepcopy(tiny_model("llama")).bfloat16()
    plain = logits(model, ids)
    with steer(model, [some_iti(model), Ablate(torch.randn(32), "resid_post", 1)], alpha=1):
        steered = logits(model, ids)
    assert steered.dtype == torch.bfloat16
    assert not torch.equal(steered, plain)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (AddDirection(torch.ones(31), "resid_post", 0), "32 numbers a token, but the edit has 31"),
        (AddDirection(torch.ones(9), "z", 0, 1), "8 numbers a token a head, but the edit has 9"),
        (AddDirection(torch.ones(8), "z", 0, 4), "heads 0 to 3, but the edit names head 4"),
        (AddDirection(torch.ones(8), "z", 0, -1), "heads 0 to 3, but the edit names head -1"),
        (AddDirection(torch.ones(8), "resid_post", 0, 1), "has no heads"),
        (AddDirection(torch.ones(32), "resid_post", 3), "layers 0 to 2"),
        (AddDirection(torch.ones(32), "residual", 1), "is not a site"),
        (AddDirection(torch.ones(32), "blocks.9.hook_resid_post"), "layer 9|names no site"),
        (torch.ones(32), "wrap a vector"),
    ],
)
def test_bad_edits_are_refused_and_leave_the_model(tiny_model, ids, edit, message):
    model = tiny_model("llama")
    plain, before = logits(model, ids), hooks_on(model)
    with pytest.raises(EntangleError, match=message) as caught, steer(model, [some_iti(model), edit]):
        pass
    assert "\n" not in str(caught.value)
    assert hooks_on(model) == before
    assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("edits", [None, AddDirection, 3, "ITI", [None], {"a": 1}])
def test_what_is_no_edit_is_refused_in_one_line(tiny_model, edits):
    with pytest.raises(EntangleError, match="takes an edit or a list of edits") as caught:
        steer(tiny_model("llama"), edits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "alpha", [float("nan"), float("inf"), -float("inf"), "fierce", True, None, torch.ones(2, 2), {"a": 1}]
)
def test_alpha_must_be_finite(tiny_model, alpha):
    with pytest.raises(EntangleError, match=r"alpha must be a finite number|has no strength"):
        steer(tiny_model("llama"), some_iti(tiny_model("llama")), alpha=alpha)


def test_a_direction_in_any_real_type_is_the_same_direction():
    for dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.int8):
        vector = AddDirection(torch.tensor([1.0, -2.0, 4.0]).to(dtype), "resid_post", 0).vector
        assert torch.equal(vector, torch.tensor([1.0, -2.0, 4.0]))
    with pytest.raises(EntangleError, match="complex"):
        AddDirection(torch.ones(3, dtype=torch.complex64), "resid_post", 0)


def test_named_strengths_of_iti(tiny_model, ids):
    model = tiny_model("llama")
    for name, alpha in [("weak", 4), ("mid", 8), ("strong", 12)]:
        with steer(model, some_iti(model), alpha=name):
            named = logits(model, ids)
        with steer(model, some_iti(model), alpha=alpha):
            assert torch.equal(logits(model, ids), named)


def test_an_edit_of_another_model_is_refused(tiny_model):
    from dataclasses import replace

    from entangle.models.fingerprint import fingerprint

    mine, other = tiny_model("llama", 0), tiny_model("llama", 1)
    edit = replace(some_iti(mine), fingerprint=fingerprint(mine))
    with steer(mine, edit):
        pass
    with pytest.raises(EntangleError, match="another model"):
        steer(other, edit)


def test_a_compiled_model_is_refused(tiny_model):
    compiled = torch.compile(tiny_model("llama"))
    with pytest.raises(EntangleError, match="compile"):
        steer(compiled, AddDirection(torch.ones(32), "resid_post", 0))


def test_an_offloaded_model_is_refused(tiny_model):
    import copy

    model = tiny_model("llama")
    atlas = Atlas(model)
    moved = copy.deepcopy(model)
    moved.model.layers[1].self_attn.o_proj.to("meta")
    atlas = Atlas.__new__(Atlas)
    atlas.__dict__.update(Atlas(model).__dict__, model=moved)
    with pytest.raises(EntangleError, match="offloaded"):
        steer(moved, some_iti(model, k=12), atlas=atlas)


def test_a_really_offloaded_model_is_refused(tiny_model, ids):
    import copy

    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    model = accelerate.cpu_offload(copy.deepcopy(tiny_model("llama")), execution_device=torch.device("cpu"))
    before, plain = hooks_on(model), logits(model, ids)
    with pytest.raises(EntangleError, match="offloaded") as caught:
        steer(model, some_iti(tiny_model("llama")))
    assert "\n" not in str(caught.value)
    assert hooks_on(model) == before
    assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("part", ["model", "layer"])
def test_a_model_or_a_part_compiled_in_place_is_refused(tiny_model, part):
    import copy

    model = copy.deepcopy(tiny_model("llama"))
    (model if part == "model" else model.model.layers[1]).compile(backend="eager")
    before = hooks_on(model)
    with pytest.raises(EntangleError, match="bake the edit into the weights first") as caught:
        steer(model, AddDirection(torch.ones(32), "resid_post", 0))
    assert "\n" not in str(caught.value)
    assert hooks_on(model) == before


def test_a_site_that_the_architecture_lacks_is_refused(tiny_model, ids):
    model = tiny_model("gpt_neox")  # attention and MLP side by side: there is no stream between them
    plain, before = logits(model, ids), hooks_on(model)
    with pytest.raises(EntangleError, match="resid_mid") as caught:
        steer(model, AddDirection(torch.ones(32), "resid_mid", 1))
    assert "\n" not in str(caught.value)
    assert hooks_on(model) == before
    assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("site", ["z", "resid_post"])
def test_a_constant_is_added_however_the_module_is_called(tiny_model, site):
    """By position or by keyword, and in whatever dtype: the hook's short way and its long way say the same."""
    import copy

    from entangle.interventions.hooks.constant import attach_constant
    from entangle.models.hooks import Handle

    model = copy.deepcopy(tiny_model("llama"))
    place = Atlas(model).place(site, 1)
    v = torch.randn(place.size, generator=torch.Generator().manual_seed(0))
    module, seen, counted = torch.nn.Identity(), [], []
    module.forward = lambda hidden_states, other=None: hidden_states
    place = dataclasses.replace(place, module=module)

    def long_way(x):
        seen.append(x)
        return x + v.to(x)

    handle = Handle()
    attach_constant(place, v, long_way, counted.append, skip=lambda: False, handle=handle)
    x = torch.randn(2, 3, place.size, generator=torch.Generator().manual_seed(1))
    calls = [((x,), {}), ((x,), {}), ((x, 1), {}), ((), {"hidden_states": x}), ((x.double(),), {}), ((x.double(),), {})]
    for args, kwargs in calls:
        given = args[0] if args else x
        torch.testing.assert_close(module(*args, **kwargs), given + v.to(given))
    by_keyword = site == "z"  # an output is the same either way
    assert (len(seen), len(counted)) == ((3, 3) if by_keyword else (2, 4))
    with pytest.raises(EntangleError, match=f"{'last dimension' if site == 'z' else 'has'} {place.size}") as caught:
        module(torch.randn(2, 3, 1))
    assert "\n" not in str(caught.value)
    handle.remove()
    assert torch.equal(module(x), x)


def test_a_block_used_without_gradients_first_and_with_them_later(tiny_model, ids):
    import copy

    model = copy.deepcopy(tiny_model("llama")).bfloat16()
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    with steer(model, [some_iti(model), Ablate(torch.randn(32), "resid_post", 1)], alpha=1):
        with torch.inference_mode():
            model(input_ids=ids)
        (gradient,) = torch.autograd.grad(model(inputs_embeds=embeds).logits.float().square().sum(), embeds)
    assert gradient.abs().sum() > 0
