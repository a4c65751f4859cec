"""One hook reads and writes: by position or keyword, tensor or tuple, in a forward or step by step in `generate`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from entangle.errors import EntangleError
from entangle.models import Atlas, attach, hooked, refuse_compiled
from entangle.models.place import Place

IDS = torch.arange(3, 17).view(2, 7)


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def logits(model, **kwargs):
    with torch.no_grad():
        return model(IDS, **kwargs).logits


@pytest.mark.parametrize("site", ["resid_pre", "z", "attn_out", "mlp_post", "mlp_out", "resid_post"])
def test_reading_changes_nothing_and_writing_lands(site, causal_lm):
    before, plain = n_hooks(causal_lm), logits(causal_lm)
    atlas = Atlas(causal_lm)
    if site not in atlas.sites:
        pytest.skip(atlas.reason(site, 0))
    place = atlas.place(site, 1)
    seen = []
    with hooked([(place, lambda x: seen.append(x.shape))]):
        assert torch.equal(logits(causal_lm), plain)
    assert seen == [(2, 7, place.size)]
    with hooked([(place, lambda x: x + 1)]):
        edited = logits(causal_lm)
    assert not torch.equal(edited, plain)
    assert torch.equal(logits(causal_lm), plain)
    assert n_hooks(causal_lm) == before


def test_functions_compose_in_order_of_attachment(tiny_model):
    model = tiny_model("llama")
    place = Atlas(model).place("z", 0)
    seen = []
    with hooked([(place, lambda x: x * 2), (place, lambda x: x + 1), (place, seen.append)]):
        logits(model)
    with hooked([(place, seen.append)]):
        logits(model)
    assert torch.allclose(seen[0], seen[1] * 2 + 1)


def test_each_step_of_generation(causal_lm):
    place = Atlas(causal_lm).place("z", 2)
    widths = []
    with hooked([(place, lambda x: widths.append(x.shape[1]))]):
        causal_lm.generate(IDS[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert widths == [7, 1, 1, 1]


class Named(nn.Module):
    """Passes the stream by keyword, after another tensor, and returns it in a dict."""

    def forward(self, *, scale, hidden_states):
        return {"weights": scale, "out": hidden_states * scale[..., :1]}


@pytest.mark.parametrize("side", ["input", "output"])
def test_keywords_and_mappings(side):
    module = Named()
    place = Place("resid_pre", 0, "", module, side, 8)
    x, scale = torch.randn(2, 3, 8), torch.ones(2, 3, 4)
    with hooked([(place, lambda x: x + 1)]):
        out = module(scale=scale, hidden_states=x)["out"]
    assert torch.equal(out, x + 1)
    with hooked([(replace(place, size=5), lambda x: x)]), pytest.raises(EntangleError, match="last dimension 5"):
        module(scale=scale, hidden_states=x)


def test_hooks_go_whatever_happens(tiny_model):
    model = tiny_model("gpt2")
    before, plain = n_hooks(model), logits(model)
    places = [Atlas(model).place("z", layer) for layer in range(3)]

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), hooked((place, interrupt) for place in places):
        logits(model)
    with pytest.raises(RuntimeError), hooked((place, lambda x: x + 1) for place in places):
        raise RuntimeError
    with pytest.raises(AttributeError), hooked([(places[0], lambda x: x + 1), (None, None)]):
        pass
    assert n_hooks(model) == before
    assert torch.equal(logits(model), plain)


def test_a_wrong_shape_is_refused(tiny_model):
    model = tiny_model("gpt2")
    handle = attach(Atlas(model).place("z", 0), lambda x: x[:, :1])
    with pytest.raises(EntangleError, match=r"must return a tensor of shape \(2, 7, 32\)"):
        logits(model)
    handle.remove()


def test_compiled_models_are_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    refuse_compiled(model)
    with pytest.raises(EntangleError, match=r"torch\.compile'd"):
        refuse_compiled(torch.compile(model))
    model[0].compile()
    with pytest.raises(EntangleError, match="its part 0"):
        refuse_compiled(model)
