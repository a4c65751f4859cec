"""What holds of every edit that rotates, rescales, transports or holds, in a running model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from entangle.errors import EntangleError
from entangle.interventions import (
    AddDirection,
    Edit,
    GaussianTransport,
    Hold,
    KeepNorm,
    LinearTransport,
    Rotate,
    steer,
)
from entangle.models import Atlas, hooked


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = torch.cat([drawn(60, 32) @ drawn(32, 32, seed=1) / 6, drawn(60, 32, seed=2) + 0.5])
Y = [1] * 60 + [0] * 60
V, W = drawn(32, seed=3), drawn(2, 32, seed=4)
COMPILE = {
    "gaussian": GaussianTransport.fit(X, Y, "resid_post", 1, shrinkage=0.1),
    "gaussian of a head": GaussianTransport.fit(X[:, :8], Y, "z", 1, 2, shrinkage=0.1),
    "gaussian of heads": GaussianTransport.fit(X.unflatten(1, (4, 8)), Y, "z", 1, shrinkage=0.1),
    "linear": LinearTransport.fit(X, Y, "mlp_out", 2),
    "hold": Hold.fit(AddDirection(V, layer=1), W, keep=V),
    "hold transport": Hold.fit(GaussianTransport.fit(X, Y, "resid_post", 1, shrinkage=0.1), W),
}
STEER = {
    "rotate": Rotate(V, layer=1, degrees=90),
    "slerp": Rotate(V, "resid_mid", 1, degrees=90, slerp=True),
    "rotate a head": Rotate(V[:8], "z", 0, 3, degrees=90),
    "keep norm": KeepNorm(AddDirection(3 * V, layer=1)),
    "keep norm of a transport": KeepNorm(COMPILE["gaussian of a head"]),
    "support": LinearTransport.fit(X, Y, "resid_post", 1, support=True),
    "hold a rotation": Hold.fit(Rotate(V, layer=1, degrees=90), W),
}
EVERY = {**COMPILE, **STEER}


@pytest.fixture
def ids():
    return torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(
    ("name", "model_type"), [*((name, "llama") for name in COMPILE), ("linear", "gpt2"), ("gaussian of heads", "gpt2")]
)
def test_affine_ones_say_the_same_as_hooks_and_as_weights(tiny_model, ids, name, model_type):
    model, edit = tiny_model(model_type), COMPILE[name]
    plain, baked = logits(model, ids), edit.bake(model, alpha=0.7)
    with steer(model, edit, alpha=0.7):
        steered = logits(model, ids)
    torch.testing.assert_close(logits(baked, ids), steered, atol=1e-5, rtol=1e-4)
    assert (steered - plain).abs().max() > 1e-3
    assert hooks_on(baked) == 0


@pytest.mark.parametrize("name", STEER)
def test_the_others_say_in_a_line_why_they_have_no_weights(tiny_model, name):
    with pytest.raises(EntangleError, match=r"is no affine map, so it has no weights and no file: use it with steer"):
        STEER[name].bake(tiny_model("llama"), 0.5)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_left_after_an_exception(tiny_model, ids, name):
    model = tiny_model("llama")
    plain, before = logits(model, ids), hooks_on(model)

    def interrupted():
        with steer(model, EVERY[name], alpha=0.5):
            assert not torch.equal(logits(model, ids), plain)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        interrupted()
    assert hooks_on(model) == before
    assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("name", EVERY)
def test_the_scope_is_kept(tiny_model, ids, name):
    """Under a mask the tokens named are edited as by the edit itself, and the others not at all."""
    model, edit = tiny_model("llama"), EVERY[name]
    form = edit.forms()[0]
    place, seen = Atlas(model).place(form.site, form.layer), []
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(5)) < 0.5

    def look(x):
        seen.append(x.clone())

    with hooked([(place, look)]), steer(model, edit, alpha=0.5, tokens=mask) as block, hooked([(place, look)]):
        logits(model, ids)
    before, after = seen
    part = slice(None) if form.head is None else slice(8 * form.head, 8 * (form.head + 1))
    wanted = before.clone()
    wanted[..., part] = edit(before[..., part], alpha=0.5)
    torch.testing.assert_close(after[mask], wanted[mask], atol=1e-5, rtol=1e-5)
    assert torch.equal(after[~mask], before[~mask])
    assert block.counts == [int(mask.sum())]


@pytest.mark.parametrize(("name", "tokens"), [("rotate", "prompt"), ("keep norm", "generated"), ("slerp", -1)])
def test_generation_with_a_cache_says_what_it_says_without(tiny_model, name, tokens):
    model = tiny_model("llama")
    prompts = torch.randint(3, 96, (3, 6), generator=torch.Generator().manual_seed(1))
    said = []
    for use_cache in (True, False):
        with steer(model, EVERY[name], alpha=0.9, tokens=tokens):
            said.append(
                model.generate(
                    input_ids=prompts,
                    attention_mask=torch.ones_like(prompts),
                    max_new_tokens=8,
                    do_sample=False,
                    use_cache=use_cache,
                    pad_token_id=0,
                    eos_token_id=10_000,
                )
            )
    assert torch.equal(*said)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path, name):
    edit = EVERY[name]
    edit.save_pretrained(tmp_path / "edit")
    read = Edit.from_pretrained(tmp_path / "edit")
    assert_same(edit, read)


def assert_same(one, other):
    assert type(one) is type(other)
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b), field.name
        elif isinstance(a, Edit):
            assert_same(a, b)
        else:
            assert a == b, field.name


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_what_comes_in_a_precision_goes_out_in_it(name, dtype):
    edit = EVERY[name]
    size = edit.forms()[0].size
    x = 3 * drawn(5, size, seed=9)
    y = edit(x.to(dtype), alpha=0.5)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), edit(x.to(dtype).float(), alpha=0.5), rtol=1e-2, atol=3e-2)
