"""Models that carry an edit in modules of their own: what no weights of the stock class hold, round-trips too."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from transformers import AutoModelForCausalLM

from entangle.errors import EntangleError
from entangle.interventions import ITI, Ablate, AddDirection, Compose, Edit, Erase, Set, load_baked, steer
from entangle.models import fingerprint

V, W = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
LEACE = Erase.fit(torch.randn(200, 32, generator=torch.Generator().manual_seed(1)), torch.arange(200) % 2, layer=1)
SOME_ITI = ITI([(0, 1), (2, 3), (2, 0)], torch.nn.functional.normalize(torch.randn(3, 8), dim=1), torch.ones(3))
CASES = [
    pytest.param("mistral", SOME_ITI, "no switch for the biases", id="mistral, ITI"),
    pytest.param("qwen2", SOME_ITI, "no switch for the biases", id="qwen2, ITI"),
    pytest.param("qwen2", AddDirection(V, "mlp_out", 1), "no switch for the biases", id="qwen2, a constant"),
    pytest.param("olmo2", AddDirection(V, "resid_post", 1), "no weights hold it exactly", id="olmo2, behind a norm"),
    pytest.param("gemma3_text", AddDirection(V, "resid_post", 1), "no weights hold it exactly", id="gemma3"),
    pytest.param("llama", Ablate(V, "resid_post", 1, mean=W), "hold a map at resid_post", id="llama, a map"),
    pytest.param("gpt2", LEACE, "hold a map at resid_post", id="gpt2, LEACE"),
    pytest.param("llama", AddDirection(V, "resid_pre", 0), "hold a constant at resid_pre", id="llama, embeddings"),
    pytest.param("llama", Set(V, 2.0, "resid_mid", 1), "hold a map at resid_mid", id="llama, round the MLP"),
    pytest.param(
        "mistral",
        Compose([Set(V, 1.0, "resid_pre", 1), Ablate(W, "resid_post", 1), AddDirection(V[:8], "z", 1, 2)]),
        "no weights",
        id="mistral, several",
    ),
]


@pytest.fixture
def ids():
    return torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def said(model, ids):
    return model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0)


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(("model_type", "edit", "why"), CASES)
def test_it_computes_what_hooks_do_and_round_trips(tiny_model, tmp_path, ids, model_type, edit, why):
    model = tiny_model(model_type)
    plain = logits(model, ids)
    with steer(model, edit, alpha=0.8):
        wanted, spoken = logits(model, ids), said(model, ids)
    baked = edit.bake(model, 0.8)
    assert why in baked.edit_why
    assert isinstance(baked, type(model))
    assert n_hooks(baked) == n_hooks(model)  # transformers may have left some of its own
    assert baked.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(logits(baked, ids), wanted, atol=1e-5, rtol=1e-5)
    baked.save_pretrained(tmp_path)
    loaded = load_baked(tmp_path)
    assert torch.equal(logits(loaded, ids), logits(baked, ids))
    assert torch.equal(said(loaded, ids), spoken)
    assert loaded.edit_why == baked.edit_why
    # The edit does something, and the user's model is as it was.
    assert (wanted - plain).abs().max() > 0.01
    assert torch.equal(logits(model, ids), plain)


def test_the_directory_holds_the_stock_model_and_the_edit(tiny_model, tmp_path, ids):
    model = tiny_model("mistral")
    SOME_ITI.bake(model, 3).save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(logits(stock, ids), logits(model, ids))
    assert fingerprint(stock) == fingerprint(model)
    edit = Edit.from_pretrained(tmp_path, model=stock)
    with steer(stock, edit, alpha=3):
        torch.testing.assert_close(logits(stock, ids), logits(load_baked(tmp_path), ids), atol=1e-5, rtol=1e-5)
    # Stock classes refuse the directory: they would lose the edit.
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_it_copies_and_changes_precision_like_any_model(tiny_model, ids):
    baked = Ablate(V, "resid_post", 1).bake(tiny_model("llama"))
    again = copy.deepcopy(baked)
    assert torch.equal(logits(again, ids), logits(baked, ids))
    again.double()
    torch.testing.assert_close(logits(again, ids).float(), logits(baked, ids), atol=1e-4, rtol=1e-4)
    # The copy has modules of its own.
    with torch.no_grad():
        again.model.layers[1].mlp.down_proj.weight.zero_()
    assert not torch.equal(logits(again, ids).float(), logits(baked, ids))
    torch.testing.assert_close(logits(Ablate(V, "resid_post", 1).bake(tiny_model("llama")), ids), logits(baked, ids))


def test_it_can_be_steered_like_any_model(tiny_model, ids):
    model, more = tiny_model("mistral"), AddDirection(W, "resid_post", 2)
    with steer(model, [SOME_ITI, more], alpha=2):
        wanted = logits(model, ids)
    baked = SOME_ITI.bake(model, 2)
    with steer(baked, more, alpha=2):
        torch.testing.assert_close(logits(baked, ids), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(EntangleError, match="carries an edit already"):
        more.bake(baked)


def test_load_baked_loads_plain_weights_too(tiny_model, tmp_path, ids):
    baked = SOME_ITI.bake(tiny_model("llama"), 3)
    baked.save_pretrained(tmp_path)
    loaded = load_baked(tmp_path, device="cpu")
    assert type(loaded) is type(tiny_model("llama"))
    assert torch.equal(logits(loaded, ids), logits(baked, ids))


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "baked.json").unlink(), "holds no baked model"),
        (lambda d: (d / "baked.json").write_text("{"), "cannot be read"),
        (lambda d: rewrite(d / "baked.json", version=9), "version 9"),
        (lambda d: (d / "model" / "config.json").unlink(), r"config\.json is missing"),
        (lambda d: (d / "edit.json").unlink(), r"edit\.json is missing"),
        (lambda d: rewrite(d / "model" / "config.json", architectures=["Teleporter"]), r"config\.json, .* is damaged"),
    ],
)
def test_damaged_directories_are_refused_in_one_line(tiny_model, tmp_path, damage, message):
    SOME_ITI.bake(tiny_model("mistral"), 3).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(EntangleError, match=message) as caught:
        load_baked(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_edit_beside_another_model_is_refused(tiny_model, tmp_path):
    SOME_ITI.bake(tiny_model("mistral"), 3).save_pretrained(tmp_path)
    tiny_model("mistral", seed=1).save_pretrained(tmp_path / "model")
    with pytest.raises(EntangleError, match=r"model\.safetensors, .* is damaged"):
        load_baked(tmp_path)
    settings = json.loads((tmp_path / "baked.json").read_text())
    (tmp_path / "baked.json").write_text(  # as in files of older versions, which knew no checksums
        json.dumps({key: value for key, value in settings.items() if key not in ("files", "checksum")})
    )
    with pytest.raises(EntangleError, match="another model"):
        load_baked(tmp_path)


def test_pushing_on_saving_is_refused(tiny_model, tmp_path):
    with pytest.raises(EntangleError, match="upload_folder"):
        SOME_ITI.bake(tiny_model("mistral")).save_pretrained(tmp_path, push_to_hub=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("copied", [False, True], ids=["as baked", "a copy"])
def test_two_threads_in_one_model_have_each_the_change_of_their_own_text(tiny_model, ids, copied):
    """An edit at resid_mid is added again where the block ends: by then another thread may have been there too."""
    model, edit = tiny_model("llama"), Set(V, 2.0, "resid_mid", 1)
    texts = [ids, ids.flip(1)]
    with steer(model, edit):
        wanted = [logits(model, text) for text in texts]
    baked = edit.bake(model)
    baked = copy.deepcopy(baked) if copied else baked
    both_changed = Barrier(2)

    def meet(*_):
        both_changed.wait(timeout=30)

    baked.model.layers[1].mlp.register_forward_hook(meet)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda text: logits(baked, text), texts))
    for result, steered in zip(results, wanted, strict=True):
        torch.testing.assert_close(result, steered, atol=1e-5, rtol=1e-5)
    assert (wanted[0] - wanted[1]).abs().max() > 0.01


def test_a_pass_that_ends_halfway_leaves_nothing_for_the_next(tiny_model, ids):
    model, edit = tiny_model("llama"), Set(V, 2.0, "resid_mid", 1)
    baked = edit.bake(model)
    wanted, mark = logits(baked, ids), fingerprint(baked)

    def end(*_):
        raise KeyboardInterrupt

    hook = baked.model.layers[1].mlp.register_forward_hook(end)
    with pytest.raises(KeyboardInterrupt):
        logits(baked, ids[:1, :4])
    hook.remove()
    assert fingerprint(baked) == mark
    assert torch.equal(logits(baked, ids), wanted)
