"""Models that are not plain HuggingFace ones: adapted, quantised, dispatched, bridged, or of the user's own making."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import zoo
from entangle.activations import collect
from entangle.errors import EntangleError
from entangle.models import Atlas, AtlasError, fingerprint
from entangle.verify import verify
from tiny import enlarge

IDS = torch.arange(3, 24).view(3, 7)
TEXTS = {"input_ids": IDS, "attention_mask": (torch.arange(7) < torch.tensor([[7], [4], [2]])).long()}


def test_peft_adapters(tiny_model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["o_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(deepcopy(tiny_model("llama")), config).eval()
    atlas = Atlas(model)
    assert atlas.path("z", 1).endswith("layers.1.self_attn.o_proj")
    assert hasattr(atlas.module("z", 1), "lora_A")  # the adapter, so that an edit of z reaches it too
    assert atlas.path("mlp_post", 1).endswith("mlp.down_proj")
    assert verify(model, None, texts=TEXTS).passed
    plain = collect(tiny_model("llama"), None, TEXTS, sites="resid_post", progress=False)
    adapted = collect(model, None, TEXTS, sites="resid_post", progress=False)
    assert not torch.allclose(plain["resid_post"], adapted["resid_post"])


class Int8Linear(nn.Module):
    """What a quantised linear layer looks like from outside: packed weights, `in_features`, `out_features`."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("scale", linear.weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("packed", (linear.weight / self.scale).round().to(torch.int8))

    def forward(self, x):
        return F.linear(x, self.packed.to(x) * self.scale)


def test_quantised(tiny_model):
    model = deepcopy(tiny_model("llama"))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "layers" in name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Int8Linear(module))
    table = Atlas(model).table()
    assert isinstance(Atlas(model).module("z", 0), Int8Linear)
    assert (table.module == Atlas(tiny_model("llama")).table().module).all()
    assert verify(model, None, texts=TEXTS).passed


def test_dispatched_over_devices(tiny_model):
    accelerate = pytest.importorskip("accelerate")
    model = deepcopy(tiny_model("olmo2"))
    device_map = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    device_map |= {f"model.layers.{i}": "cpu" for i in range(3)}
    model = accelerate.dispatch_model(model, device_map, force_hooks=True)
    assert verify(model, None, texts=TEXTS).passed
    plain = collect(tiny_model("olmo2"), None, TEXTS, progress=False)
    assert torch.equal(collect(model, None, TEXTS, progress=False)["z"], plain["z"])


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_offloaded_weights(where, tiny_model, tmp_path):
    """Weights that are not on any device until their module runs: captured, verified and recognised all the same."""
    accelerate = pytest.importorskip("accelerate")
    model = deepcopy(tiny_model("llama"))
    if where == "disk":
        device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
        device_map |= {"model.layers.2": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
        model = accelerate.dispatch_model(model, device_map, offload_dir=str(tmp_path / "weights"))
    else:
        model = accelerate.cpu_offload(model, execution_device="cpu")
    assert any(p.is_meta for p in model.parameters())
    assert fingerprint(model) == fingerprint(tiny_model("llama"))
    assert verify(model, None, texts=TEXTS).passed
    plain = collect(tiny_model("llama"), None, TEXTS, sites=["z", "mlp_post"], progress=False)
    offloaded = collect(model, None, TEXTS, sites=["z", "mlp_post"], progress=False)
    assert all(torch.equal(offloaded[site], plain[site]) for site in plain.sites)


@pytest.mark.parametrize(
    "settings",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ],
)
def test_bitsandbytes(settings, tmp_path):
    """Real 8- and 4-bit layers, on the CPU: z is found, and through the quantised projection it is attn_out."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    plain = enlarge(LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=96)).eval())
    plain.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**settings), device_map="cpu", dtype=torch.float32
    )
    atlas = Atlas(model)
    kind = bitsandbytes.nn.Linear8bitLt if "load_in_8bit" in settings else bitsandbytes.nn.Linear4bit
    assert all(isinstance(atlas.module(site, 1), kind) for site in ("z", "mlp_post"))
    assert (atlas.table().module == Atlas(plain).table().module).all()
    assert verify(model, None, texts=TEXTS).passed
    acts = collect(model, None, TEXTS, sites=["z", "attn_out"], tokens="all", progress=False)
    for layer in range(2):
        projected = atlas.place("z", layer).out_projection(acts["z"][:, layer].flatten(1))
        assert (projected - acts["attn_out"][:, layer]).abs().max() <= 1e-5 * acts["attn_out"].abs().max()
    exact = collect(plain, None, TEXTS, sites=["z", "attn_out"], tokens="all", progress=False)
    error = (acts["z"][:, 0] - exact["z"][:, 0]).norm() / exact["z"][:, 0].norm()
    assert 1e-4 < error < 0.3  # it is quantised, and still the same model


def test_peft_on_an_encoder_decoder():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q", "o"], init_lora_weights=False, task_type="SEQ_2_SEQ_LM")
    model = peft.get_peft_model(zoo.tiny("t5", AutoModelForSeq2SeqLM), config).eval()
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}
    assert collect(model, None, inputs, tokens="all", progress=False)["z"].shape[0] == 9
    encoder = Atlas(model, stack="encoder")
    assert collect(model, None, inputs, tokens="all", atlas=encoder, progress=False)["z"].shape[0] == 21


@pytest.mark.slow
def test_transformer_bridge(tiny_model, tiny_tokenizer, tmp_path):
    bridge_module = pytest.importorskip("transformer_lens.model_bridge")
    tiny_model("olmo2").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    bridge = bridge_module.TransformerBridge.boot_transformers(str(tmp_path))
    ours = collect(bridge, None, TEXTS, sites=["z", "resid_post"], tokens="all", progress=False)
    plain = collect(tiny_model("olmo2"), None, TEXTS, sites=["z", "resid_post"], tokens="all", progress=False)
    _, cache = bridge.run_with_cache(IDS[:1])
    for layer in range(3):
        for site, name in [("z", f"blocks.{layer}.attn.hook_z"), ("resid_post", f"blocks.{layer}.hook_resid_post")]:
            theirs = cache[name][0].reshape(7, -1)
            assert (ours[site][:7, layer].flatten(1) - theirs).abs().max() < 1e-4
            assert (ours[site][:, layer] - plain[site][:, layer]).abs().max() < 1e-4


class Attention(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.qkv, self.out, self.kernel = nn.Linear(12, 36), nn.Linear(12, 12), kernel

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (3, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.kernel:
            heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # linear attention: no softmax, so no kernel that the probe knows
            heads = (q @ k.transpose(-1, -2)).tril() @ v
        return self.out(heads.transpose(1, 2).flatten(2))


class Plain(nn.Module):
    """A model of the user's own: blocks in attributes rather than a list, and an argument of another name."""

    def __init__(self, kernel=True):
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.block_0, self.block_1 = Attention(kernel), Attention(kernel)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.block_0(x)
        return x + self.block_1(x)


PATHS = {"z": "block_{layer}.out", "attn_out": "block_{layer}"}


def test_plain_module_with_explicit_paths():
    torch.manual_seed(0)
    model = Plain()
    with pytest.raises(EntangleError, match="pass example inputs"):
        Atlas(model)
    with pytest.raises(AtlasError, match="no list of blocks"):
        Atlas(model, inputs={"tokens": IDS})
    atlas = Atlas(model, modules=PATHS, inputs={"tokens": IDS})
    assert (atlas.n_layers, atlas.n_heads(1), atlas.d_head(1)) == (2, 3, 4)
    assert atlas.reason("mlp_post", 0) == "no path was given for it"
    acts = collect(model, None, TEXTS, sites=["z", "attn_out"], tokens="all", atlas=atlas, progress=False)
    alone = collect(model, None, {"input_ids": IDS[2:, :2]}, sites=["z"], tokens="all", atlas=atlas, progress=False)
    assert acts["z"].shape == (13, 2, 3, 4)
    assert torch.allclose(acts["z"][-2:], alone["z"], atol=1e-6)


def test_explicit_paths_that_are_wrong():
    model, inputs = Plain(kernel=False), {"tokens": IDS}
    with pytest.raises(EntangleError, match="pass n_heads"):
        Atlas(model, modules=PATHS, inputs=inputs)
    atlas = Atlas(model, modules=PATHS, inputs=inputs, n_heads=3)
    assert "not confirmed" in atlas.table().note[1]
    with pytest.raises(EntangleError, match="5 heads do not divide"):
        Atlas(model, modules=PATHS, inputs=inputs, n_heads=5)
    with pytest.raises(EntangleError, match="for layer 0"):
        Atlas(model, modules={"z": "blocks.{layer}.out"}, inputs=inputs)
    with pytest.raises(EntangleError, match="maps sites"):
        Atlas(model, modules={"z": "block_0.out"}, inputs=inputs)


def test_a_model_without_a_mask_is_never_padded(tiny_tokenizer):
    """FNet mixes all positions and takes no mask: a padded batch would be silently wrong."""
    from transformers import FNetConfig, FNetModel

    torch.manual_seed(0)
    config = FNetConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, vocab_size=96, max_position_embeddings=32
    )
    model = FNetModel(config).eval()
    acts = collect(model, None, TEXTS, sites="resid_post", tokens="last", progress=False)
    for i, n in enumerate([7, 4, 2]):
        with torch.no_grad():
            alone = model(IDS[i : i + 1, :n]).last_hidden_state[0, -1]
        assert torch.allclose(acts["resid_post"][i, 1], alone, atol=1e-5)
