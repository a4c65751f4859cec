"""Edits where models live: other threads, copies, recomputation, interrupts, and users who change things meanwhile."""

from __future__ import annotations

import copy
import pickle
import sys
import threading

import pytest
import torch

from entangle import AddDirection, Atlas, EntangleError, collect, steer
from entangle.interventions import SAEFeature

IDS = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
V = torch.full((32,), 3.0)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model("llama"))


def edit(site="resid_post"):
    return AddDirection(V, site, 1)


def in_thread(function):
    """What a function gives, or raises, in a thread of its own."""
    result = []

    def work():
        try:
            result.append(function())
        except EntangleError as error:
            result.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return result[0]


def test_hidden_states_are_those_of_the_steered_model_whenever_they_were_asked_for_first(model):
    model(IDS, output_hidden_states=True)
    order = [*model.model.layers[1]._forward_hooks]
    assert order
    with steer(model, edit()):
        states = model(IDS, output_hidden_states=True).hidden_states[2]
    assert torch.allclose(states - model(IDS, output_hidden_states=True).hidden_states[2], V, atol=1e-4)
    assert [*model.model.layers[1]._forward_hooks] == order


def test_another_thread_is_refused_or_has_its_own_block(model):
    plain = logits(model)
    with steer(model, edit()):
        steered = logits(model)
        refused = in_thread(lambda: logits(model))

        def own(edits):
            with steer(model, edits):
                return logits(model)

        nothing, other = in_thread(lambda: own([])), in_thread(lambda: own(AddDirection(-V, "resid_post", 0)))
        assert torch.equal(logits(model), steered)
    assert isinstance(refused, EntangleError)
    assert "another" in str(refused) or "other than" in str(refused)
    assert torch.equal(nothing, plain)
    with steer(model, AddDirection(-V, "resid_post", 0)):
        assert torch.equal(other, logits(model))
    assert not torch.equal(steered, plain)


@pytest.mark.parametrize("site", ["z", "resid_mid", "resid_post"])
def test_recomputation_has_the_edits_of_the_first_time(model, site):
    def gradients(checkpointing, before, open_later):
        twin = copy.deepcopy(model).train()
        if checkpointing:
            twin.gradient_checkpointing_enable()
        with steer(twin, edit(site) if before else []):
            loss = twin(input_ids=IDS, use_cache=False).logits.square().mean()
        with steer(twin, edit(site) if open_later else []):
            loss.backward()
        return torch.cat([p.grad.flatten() for p in twin.parameters()])

    for before in (True, False):
        for later in (True, False):
            torch.testing.assert_close(gradients(True, before, later), gradients(False, before, False))
    assert not torch.allclose(gradients(False, True, False), gradients(False, False, False))


def test_checkpointing_that_the_block_does_not_know_is_refused(model):
    from torch.utils.checkpoint import checkpoint

    for reentrant in (True, False):
        with steer(model.train(), edit()), pytest.raises(EntangleError, match="gradient checkpointing"):
            checkpoint(lambda x: model(x).logits, IDS, use_reentrant=reentrant)


def test_copies_and_pickles_made_inside_a_block_are_plain(model):
    plain = logits(model)
    with steer(model, edit(), tokens="prompt"):
        twin, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert torch.equal(logits(twin), plain)
        assert torch.equal(logits(loaded), plain)
        assert twin.generate.__self__ is twin
        assert not torch.equal(logits(model), plain)
    assert torch.equal(logits(model), plain)


def test_a_generate_that_the_user_sets_inside_stays(model):
    def mine(*_, **__):
        return "mine"

    with steer(model, edit(), tokens="generated"):
        inner = model.generate
        model.generate = mine
    assert model.generate is mine
    del model.generate
    assert torch.equal(
        inner(IDS, max_new_tokens=3, do_sample=False), model.generate(IDS, max_new_tokens=3, do_sample=False)
    )


def test_a_module_replaced_inside_is_refused(model):
    with steer(model, edit()):
        model.model.layers[1] = copy.deepcopy(model.model.layers[2])
        with pytest.raises(EntangleError, match="replaced"):
            logits(model)


@pytest.mark.parametrize("held", [True, False])
def test_an_interrupt_at_any_line_leaves_nothing(model, held):
    atlas, before = Atlas(model), {**vars(model)}
    names = [name for name in vars(model) if name.startswith("_forward_") and "hook" in name]

    def left():
        return any(getattr(m, name) for m in model.modules() for name in names) or set(vars(model)) != set(before)

    line, n_interrupts = 0, 0
    while True:
        line, at = line + (1 if line > 400 else 7), 0  # opening and closing are the last lines

        def tracer(frame, event, _, line=line):
            nonlocal at
            if "/entangle/" not in frame.f_code.co_filename:
                return None
            at += event == "line"
            if event == "line" and at == line:
                raise KeyboardInterrupt
            return tracer

        handle = None
        sys.settrace(tracer)
        try:
            if held:
                with steer(model, edit(), atlas=atlas, tokens="generated") as handle:
                    pass
            else:
                with steer(model, edit(), atlas=atlas, tokens="generated"):
                    pass
        except KeyboardInterrupt:
            n_interrupts += 1
        finally:
            sys.settrace(None)
        assert not left()
        if at < line:
            break
    assert n_interrupts > 50
    assert handle is None or held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["olmo2", "gemma2", "llama"])
def test_a_weak_edit_is_baked_by_its_effect(tiny_model, model_type, dtype):
    model = copy.deepcopy(tiny_model(model_type)).to(dtype)
    for site in ("resid_mid", "resid_post"):
        weak = AddDirection(torch.randn(32, generator=torch.Generator().manual_seed(5)), site, 1)
        baked = weak.bake(model, alpha=0.01)
        exact = copy.deepcopy(model).double()
        plain = logits(exact)
        with steer(exact, weak, alpha=0.01):
            steered = logits(exact)
        assert (logits(copy.deepcopy(baked).double()) - steered).norm() < 0.1 * (steered - plain).norm()


class Remembering(torch.nn.Module):
    """Divides by a norm when it encodes, multiplies by it at the one decoding that follows, and then forgets it."""

    def encode(self, x):
        self.scale = x.norm(dim=-1, keepdim=True)
        return (x / self.scale).relu()

    def decode(self, features):
        scale, self.scale = self.scale, None
        return features * scale


def test_an_autoencoder_may_remember_its_input_for_one_decoding(model):
    plain = collect(model, None, {"input_ids": IDS}, sites="resid_post", layers=1, tokens="all", progress=False)
    with steer(model, SAEFeature(Remembering(), 3, 2.0, "add", "resid_post", 1)):
        steered = collect(model, None, {"input_ids": IDS}, sites="resid_post", layers=1, tokens="all", progress=False)
    x, y = plain["resid_post"][:, 0], steered["resid_post"][:, 0]
    torch.testing.assert_close((y - x)[:, 3], 2 * x.norm(dim=-1))
    assert torch.equal(y[:, 4:], x[:, 4:])


class Transcoding(Remembering):
    """Writes to another width than it reads."""

    def decode(self, features):
        return torch.cat([super().decode(features)] * 2, -1)


def test_a_transcoder_is_refused(model):
    with (
        pytest.raises(EntangleError, match="transcoder") as caught,
        steer(model, SAEFeature(Transcoding(), 3, 2.0, "add", "resid_post", 1)),
    ):
        logits(model)
    assert "\n" not in str(caught.value)


def test_a_model_without_weights_is_refused_in_one_line(tiny_model):
    hollow = copy.deepcopy(tiny_model("llama")).to("meta")
    with pytest.raises(EntangleError, match="meta device") as caught:
        Atlas(hollow)
    assert "\n" not in str(caught.value)
