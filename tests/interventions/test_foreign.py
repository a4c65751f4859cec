"""Vectors and autoencoders of other tools become edits that do the same; what cannot be is one clear line.

What the tools themselves make of these files is compared in tests/bridges.
"""

from __future__ import annotations

import base64
import json
import pickle
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import entangle as en
from entangle.interventions import Autoencoder, Transcoder, TranscoderFeature, read

D, LAYERS, FEATURES = 32, 3, 12
IDS = torch.tensor([[5, 9, 13, 7]])


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama")


def vectors(*layers, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(D, generator=generator) for layer in layers}


def logits(model, edit=None, alpha=1.0):
    with torch.no_grad(), en.steer(model, edit if edit is not None else [], alpha=alpha):
        return model(IDS).logits


def collected(model, site, layer):
    acts = en.collect(model, None, {"input_ids": IDS}, sites=site, layers=layer, tokens="all", progress=False)
    return acts[site][:, 0]


def added(model, modules, alpha=1.0):
    """The model's logits with vectors added to the outputs of modules, by hooks of torch alone."""

    def hook(vector):
        def add(module, inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            return (first + alpha * vector, *output[1:]) if isinstance(output, tuple) else first + alpha * vector

        return add

    handles = [module.register_forward_hook(hook(vector)) for module, vector in modules]
    try:
        with torch.no_grad():
            return model(IDS).logits
    finally:
        for handle in handles:
            handle.remove()


def blocks(model, found):
    return [(model.model.layers[layer], vector) for layer, vector in found.items()]


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def refused(match, path, **options):
    with pytest.raises(en.EntangleError, match=match) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)


def test_a_gguf_vector_is_added_after_the_block_of_its_number(model, tmp_path):
    pytest.importorskip("gguf", reason="needs gguf")
    found = vectors(0, 1, 2)
    edit = en.interventions.Compose([en.AddDirection(v, "resid_post", layer) for layer, v in found.items()])
    path = edit.export(tmp_path / "v.gguf", format="repeng", model=model)
    close(logits(model, read(path, model=model)), added(model, blocks(model, found)))
    close(logits(model, read(path, layer=1), 0.5), added(model, blocks(model, {1: found[1]}), 0.5))
    assert not torch.allclose(added(model, blocks(model, {0: found[1]})), logits(model, read(path, layer=1)), atol=1e-2)
    with pytest.raises(en.EntangleError, match="from the second on"):
        edit.export(tmp_path / "w.gguf", format="gguf", model=model)
    refused("no vector for layer 7", path, layer=7)


def test_a_gguf_file_of_another_architecture_is_refused(model, tiny_model, tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    edit = en.AddDirection(vectors(1)[1], "resid_post", 1)
    path = edit.export(tmp_path / "v.gguf", format="gguf", model=model)
    refused("states that it is for 'llama', but the model is 'gpt2'", path, model=tiny_model("gpt2"))
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "qwen2")
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused("is one of 'qwen2'", tmp_path / "model.gguf")
    (tmp_path / "half.gguf").write_bytes(path.read_bytes()[:90])
    refused("no whole GGUF file", tmp_path / "half.gguf")


def test_a_vector_of_another_width_or_depth_is_refused(model, tmp_path):
    torch.save({"layer_activations": {1: torch.ones(D + 1)}, "layer_type": "decoder_block"}, tmp_path / "wide.pt")
    refused("33 numbers, but resid_post in layer 1 of the model has 32", tmp_path / "wide.pt", model=model)
    torch.save({"layer_activations": {9: torch.ones(D)}, "layer_type": "decoder_block"}, tmp_path / "deep.pt")
    refused("layers 0 to 2", tmp_path / "deep.pt", model=model)
    with pytest.raises(en.EntangleError, match="32 numbers a token"), en.steer(model, read(tmp_path / "wide.pt")):
        pass


@pytest.mark.parametrize(
    ("kind", "module"),
    [("decoder_block", lambda b: b), ("self_attn", lambda b: b.self_attn), ("mlp", lambda b: b.mlp)],
)
def test_a_steering_vector_is_added_to_the_module_it_names(model, tmp_path, kind, module):
    found = vectors(0, 2)
    torch.save({"layer_activations": found, "layer_type": kind}, tmp_path / "v.pt")
    theirs = added(model, [(module(model.model.layers[layer]), vector) for layer, vector in found.items()])
    edit = read(tmp_path / "v.pt", model=model)
    close(logits(model, edit), theirs)
    back = torch.load(edit.export(tmp_path / "w.pt", format="steering-vectors", model=model), weights_only=True)
    assert back["layer_type"] == kind
    for layer, vector in found.items():
        torch.testing.assert_close(back["layer_activations"][layer], vector)


def test_iti_is_a_steering_vector_of_attentions_and_a_mixture_of_places_is_none(model, tmp_path):
    z = en.AddDirection(torch.linspace(-1, 1, D), "z", 1)
    path = z.export(tmp_path / "z.pt", format="steering-vectors", model=model, alpha=2)
    assert torch.load(path, weights_only=True)["layer_type"] == "self_attn"
    close(logits(model, read(path)), logits(model, z, 2))
    both = en.interventions.Compose([z, en.AddDirection(vectors(1)[1], "resid_post", 1)])
    with pytest.raises(en.EntangleError, match="one kind a file"):
        both.export(tmp_path / "b.pt", format="steering-vectors", model=model)
    torch.save({"layer_activations": vectors(1), "layer_type": "input_layernorm"}, tmp_path / "n.pt")
    refused("no site here", tmp_path / "n.pt")


def test_a_kept_object_is_read_without_its_class_and_any_other_is_refused(model, tmp_path, monkeypatch):
    """The class that is kept here would tell if it were made or imported."""
    package, module = ModuleType("steering_vectors"), ModuleType("steering_vectors.steering_vector")

    class SteeringVector:
        def __init__(self, layer_activations, layer_type):
            self.layer_activations, self.layer_type = layer_activations, layer_type

    SteeringVector.__module__, SteeringVector.__qualname__ = module.__name__, "SteeringVector"
    module.SteeringVector, package.steering_vector = SteeringVector, module
    found = vectors(1)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "steering_vectors", package)
        patched.setitem(sys.modules, module.__name__, module)
        torch.save(SteeringVector(found, "decoder_block"), tmp_path / "kept.pt")
    close(logits(model, read(tmp_path / "kept.pt", model=model)), added(model, blocks(model, found)))

    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return open, (str(ran), "w")

    torch.save({"layer_activations": Trap()}, tmp_path / "trap.pt")
    refused("would need unpickling", tmp_path / "trap.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Trap()))
    refused("would need unpickling", tmp_path / "plain.pkl")
    assert not ran.exists()
    torch.save(SimpleNamespace(a=1), tmp_path / "other.pt")
    refused("save it anew", tmp_path / "other.pt")


def test_a_steered_file_acts_on_outputs_of_modules(model, tmp_path):
    vector, bias = vectors(1)[1], vectors(2)[2]
    entry = {
        "steering_vector": vector[None],
        "steering_coefficient": 1.5,
        "action": "add",
        "bias": None,
        "head_index": None,
    }
    for name, module in {
        "layers.1": model.model.layers[1],
        "layers.1.mlp": model.model.layers[1].mlp,
        "layers.1.self_attn.o_proj": model.model.layers[1].self_attn.o_proj,
    }.items():
        torch.save({name: entry}, tmp_path / "s.pt")
        close(logits(model, read(tmp_path / "s.pt", model=model)), added(model, [(module, vector)], 1.5))
    refused("pass model=", tmp_path / "s.pt")
    unit = vector / vector.norm()
    for shift in (None, bias):
        torch.save({"layers.1": {**entry, "action": "clamp", "bias": shift}}, tmp_path / "c.pt")
        zero = torch.zeros(D) if shift is None else shift

        def clamp(module, inputs, output, zero=zero):
            x = output[0] if isinstance(output, tuple) else output
            x = x - zero
            x = x + unit * (1.5 - (x @ unit)[..., None]) + zero
            return (x, *output[1:]) if isinstance(output, tuple) else x

        handle = model.model.layers[1].register_forward_hook(clamp)
        with torch.no_grad():
            theirs = model(IDS).logits
        handle.remove()
        close(logits(model, read(tmp_path / "c.pt", model=model)), theirs)
    for change, match in (
        ({"action": "rotate"}, "known are 'add' and 'clamp'"),
        ({"head_index": 1}, "one per head"),
        ({"steering_vector": torch.ones(3, D)}, "one per head, or per position"),
    ):
        torch.save({"layers.1": {**entry, **change}}, tmp_path / "bad.pt")
        refused(match, tmp_path / "bad.pt", model=model)
    torch.save({"layers.1.input_layernorm": entry}, tmp_path / "norm.pt")
    refused("no site here", tmp_path / "norm.pt", model=model)
    torch.save({"layers.8": entry}, tmp_path / "gone.pt")
    refused("no module 'layers.8'", tmp_path / "gone.pt", model=model)


def test_rows_of_layers_count_the_embedding_where_there_is_one_row_more(model, tmp_path):
    """Row i of a persona vector is of hidden_states[i], which block i - 1 puts out."""
    with torch.no_grad():
        hidden = model(IDS, output_hidden_states=True).hidden_states
    rows = torch.stack([h[0, -1] - h[0, 0] for h in hidden])
    torch.save(rows, tmp_path / "persona.pt")
    torch.save(rows[1:], tmp_path / "bare.pt")
    for layer in (0, 1):
        acts = collected(model, "resid_post", layer)
        torch.testing.assert_close(rows[layer + 1], acts[-1] - acts[0])
        theirs = added(model, [(model.model.layers[layer], rows[layer + 1])], 2)
        close(logits(model, read(tmp_path / "persona.pt", model=model, layer=layer), 2), theirs)
        close(logits(model, read(tmp_path / "persona.pt", embedding=True, layer=layer), 2), theirs)
        close(logits(model, read(tmp_path / "bare.pt", model=model, layer=layer), 2), theirs)
    refused("pass layer=", tmp_path / "persona.pt", model=model)
    refused("is not said", tmp_path / "persona.pt", layer=1)
    refused("made for another model", tmp_path / "persona.pt", layer=1, model=model, embedding=False)
    torch.save(rows[:2], tmp_path / "few.pt")
    refused("has 2 rows", tmp_path / "few.pt", layer=1, model=model)
    torch.save(torch.ones(2, 2, 2), tmp_path / "cube.pt")
    refused(r"\[2, 2, 2\]", tmp_path / "cube.pt", layer=1)


def test_what_is_nothing_known_is_one_line(tmp_path):
    refused("there is no", tmp_path / "nothing")
    (tmp_path / "text.txt").write_text("hello")
    refused("neither a GGUF file nor one of torch.save", tmp_path / "text.txt")
    torch.save({"a": 1}, tmp_path / "dict.pt")
    refused("no vector known here", tmp_path / "dict.pt")
    refused("no autoencoder", tmp_path)


def saelens(path, architecture, name="blocks.1.hook_resid_post", seed=0, d_out=D, **settings):
    """A directory as SAELens's save_model writes it."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    weights = {"W_enc": draw(D, FEATURES), "W_dec": draw(FEATURES, d_out), "b_dec": draw(d_out)}
    if architecture == "gated":
        weights |= {"b_gate": draw(FEATURES), "r_mag": 0.1 * draw(FEATURES), "b_mag": draw(FEATURES)}
    else:
        weights["b_enc"] = draw(FEATURES)
    if "jumprelu" in architecture:
        weights["threshold"] = draw(FEATURES).abs()
    if "batchtopk" in architecture:
        weights["topk_threshold"] = torch.tensor(0.7)
    config = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": FEATURES,
        "normalize_activations": "none",
        "apply_b_dec_to_input": "transcoder" not in architecture,
        "metadata": {"hook_name": name} if name else {},
        **settings,
    }
    path.mkdir(exist_ok=True)
    save_file(weights, path / "sae_weights.safetensors")
    (path / "cfg.json").write_text(json.dumps(config))
    return weights


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "gated", "batchtopk", "matryoshka_batchtopk"])
def test_an_autoencoder_of_every_kind_encodes_by_its_formula_and_keeps_its_error(model, tmp_path, kind):
    weights = saelens(tmp_path / kind, kind, **({"k": 3} if kind == "topk" else {}))
    sae = read(tmp_path / kind, model=model)
    assert isinstance(sae, Autoencoder)
    assert (sae.site, sae.layer) == ("resid_post", 1)
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(3))
    centred = x - weights["b_dec"]
    if kind == "gated":
        gate = (centred @ weights["W_enc"] + weights["b_gate"]) > 0
        features = gate * (centred @ weights["W_enc"] * weights["r_mag"].exp() + weights["b_mag"]).relu()
    else:
        before = centred @ weights["W_enc"] + weights["b_enc"]
        features = before.relu()
        if kind == "topk":
            kth = before.topk(3).values[:, -1:]
            features = features * (before >= kth)
        elif kind != "standard":
            features = features * (before > weights.get("threshold", weights.get("topk_threshold")))
    torch.testing.assert_close(sae.encode(x), features)
    torch.testing.assert_close(sae.decode(features), features @ weights["W_dec"] + weights["b_dec"])
    close(logits(model, sae.feature(2, 1.0, how="scale")), logits(model))  # error kept: no change is none
    with torch.no_grad():
        on = sae.encode(collected(model, sae.site, sae.layer))
    index = int(on.sum(0).argmax())
    assert (logits(model, sae.feature(index)) - logits(model)).abs().max() > 1e-3
    assert len(en.Directions.from_sae(sae)) == FEATURES


def test_normalised_autoencoders_give_back_the_units_they_were_given(tmp_path):
    x = 7 + 3 * torch.randn(5, D, generator=torch.Generator().manual_seed(3))
    for kind in ("layer_norm", "constant_norm_rescale"):
        weights = saelens(tmp_path / kind, "standard", normalize_activations=kind)
        sae = read(tmp_path / kind)
        features = sae.encode(x)
        if kind == "layer_norm":
            mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
            inside, back = (x - mean) / (deviation + 1e-5), lambda y, m=mean, s=deviation: y * s + m
        else:
            scale = D**0.5 / x.norm(dim=-1, keepdim=True)
            inside, back = x * scale, lambda y, s=scale: y / s
        torch.testing.assert_close(
            features, ((inside - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu(), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(sae.decode(features), back(features @ weights["W_dec"] + weights["b_dec"]))


def test_a_transcoder_reads_one_site_and_writes_another(model, tmp_path):
    weights = saelens(
        tmp_path / "t", "jumprelu_transcoder", "blocks.1.hook_resid_mid",
        metadata={"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.mlp.hook_out"},
    )  # fmt: skip
    transcoder = read(tmp_path / "t", model=model)
    assert isinstance(transcoder, Transcoder)
    assert (transcoder.site, transcoder.site_out, transcoder.layer_out) == ("resid_mid", "mlp_out", 1)
    x = collected(model, "resid_mid", 1)
    before = x @ weights["W_enc"] + weights["b_enc"]
    features = before.relu() * (before > weights["threshold"])
    torch.testing.assert_close(transcoder.encode(x), features, rtol=1e-4, atol=1e-4)
    index = int(features.sum(0).argmax())
    change = -features[:, index, None] * weights["W_dec"][index]
    theirs = added(model, [(model.model.layers[1].mlp, change[None])])
    close(logits(model, transcoder.feature(index)), theirs)
    assert (theirs - logits(model)).abs().max() > 1e-2
    with pytest.raises(en.EntangleError, match="reads one site and writes another"):
        en.SAEFeature(transcoder, index, 0.0, site="resid_mid", layer=1)
    cfg = SimpleNamespace(architecture=lambda: "skip_transcoder")
    foreign = SimpleNamespace(encode=len, decode=len, cfg=cfg)
    with pytest.raises(en.EntangleError, match="use TranscoderFeature"):
        en.SAEFeature(foreign, 0, 0.0)
    with pytest.raises(en.EntangleError, match="reads before it writes"):
        TranscoderFeature(transcoder, 0, 0.0, site="mlp_out", layer=1, site_out="resid_mid", layer_out=1)


def test_autoencoders_that_mean_something_else_are_refused(model, tmp_path):
    saelens(tmp_path / "a", "crosscoder")
    refused("architecture 'crosscoder'", tmp_path / "a")
    saelens(tmp_path / "b", "standard", normalize_activations="whatever")
    refused("normalises by 'whatever'", tmp_path / "b")
    saelens(tmp_path / "c", "standard", name="")
    refused("does not say where", tmp_path / "c")
    assert read(tmp_path / "c", site="blocks.2.hook_out").layer == 2
    saelens(tmp_path / "d", "standard", activation_fn="tanh-relu")
    refused("activation 'tanh-relu'", tmp_path / "d")
    saelens(tmp_path / "e", "topk")
    refused("k is missing", tmp_path / "e")
    saelens(tmp_path / "f", "transcoder")
    refused("site_out=", tmp_path / "f")
    saelens(tmp_path / "g", "standard", name="blocks.9.hook_resid_post")
    refused("layers 0 to 2", tmp_path / "g", model=model)
    (tmp_path / "b" / "sae_weights.safetensors").write_bytes(b"short")
    refused("no whole autoencoder", tmp_path / "b")


def test_requests_for_servers_hold_the_vectors_the_places_and_the_scale(model, tmp_path):
    found = vectors(0, 2)
    edit = en.interventions.Compose([en.AddDirection(v, "resid_post", layer) for layer, v in found.items()])
    request = json.loads(edit.export(tmp_path / "lens.json", format="vllm-lens", model=model, alpha=2).read_text())
    (vector,) = request["extra_args"]["apply_steering_vectors"]
    numbers = np.frombuffer(base64.b64decode(vector["activations"]["data"]), dtype=vector["activations"]["dtype"])
    torch.testing.assert_close(
        torch.from_numpy(numbers.reshape(vector["activations"]["shape"]).copy()), 2 * torch.stack(list(found.values()))
    )
    assert (vector["layer_indices"], vector["scale"], vector["norm_match"]) == ([0, 2], 1.0, False)
    spec = json.loads(edit.export(tmp_path / "easy.json", format="easysteer", model=model, alpha=2).read_text())
    (one,) = spec["vectors"]
    assert (one["algorithm"], one["scale"], one["layers"], one["normalize"]) == ("direct", 1.0, [0, 2], False)
    assert one["apply"] == {"phases": ["prompt", "generation"]}
    tensor = one["data"]["tensors"]["layer.2"]
    numbers = np.frombuffer(base64.b64decode(tensor["data"]), dtype=np.float32)
    torch.testing.assert_close(torch.from_numpy(numbers.copy()), 2 * found[2])
    for format in ("vllm-lens", "easysteer", "repeng"):
        with pytest.raises(en.EntangleError, match="whole blocks"):
            en.AddDirection(torch.ones(D), "z", 1).export(tmp_path / "no", format=format, model=model)
        with pytest.raises(en.EntangleError, match="is a map"):
            en.Ablate(torch.ones(D), "resid_post", 1).export(tmp_path / "no", format=format, model=model)
    (tmp_path / "mine.json").write_text("my notes")
    with pytest.raises(en.EntangleError, match="not replaced"):
        edit.export(tmp_path / "mine.json", format="vllm-lens", model=model)
