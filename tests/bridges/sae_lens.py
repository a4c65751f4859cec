"""SAELens: autoencoders and transcoders that it saved, one feature of each changed at the place that it names."""

import sys
from importlib.metadata import version
from json import dumps
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from transformers import AutoModelForCausalLM

folder = Path(sys.argv[1])
model, ids = AutoModelForCausalLM.from_pretrained(folder / "model").eval(), torch.load(folder / "ids.pt")
width, features, feature, value = model.config.hidden_size, 64, 5, 3.0
block = model.model.layers[1]


def made(kind, **more):
    """An autoencoder of SAELens with random numbers, saved by it."""
    metadata = {"hook_name": more.pop("hook_name", "blocks.1.hook_resid_post")}
    if "transcoder" in kind:
        metadata = {"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.mlp.hook_out"}
        more |= {"d_out": width, "apply_b_dec_to_input": False}
    name = more.pop("name", kind)
    config = {"architecture": kind, "d_in": width, "d_sae": features, "dtype": "float32", "device": "cpu", **more}
    sae = SAE.from_dict({**config, "metadata": SAEMetadata(**metadata).to_dict()})
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for key, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if key != "threshold" else 0.1))
            if key == "threshold":
                parameter.abs_()
    sae.save_model(folder / name)
    return name, sae


def changed(sae, x):
    """What setting one feature adds, the error kept."""
    before = sae.encode(x)
    decoded = sae.decode(before)
    after = sae.encode(x).clone()
    after[..., feature] = value
    return sae.decode(after) - decoded


def run(hooks):
    handles = [register(hook) for register, hook in hooks]
    with torch.no_grad():
        result = model(ids).logits
    for handle in handles:
        handle.remove()
    return result


def at_output(sae):
    def hook(module, inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        x = x + changed(sae, x)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    return [(block.register_forward_hook, hook)]


def through(transcoder):
    seen = {}

    def look(module, inputs):
        seen["x"] = inputs[0]

    return [
        (block.post_attention_layernorm.register_forward_pre_hook, look),
        (block.mlp.register_forward_hook, lambda module, inputs, output: output + changed(transcoder, seen["x"])),
    ]


logits, numbers = {"plain": run([])}, {}
x = torch.randn(3, width, generator=torch.Generator().manual_seed(9))
kinds = [
    made("standard"),
    made("standard", name="standard_layer_norm", normalize_activations="layer_norm"),
    made("standard", name="standard_constant_norm", normalize_activations="constant_norm_rescale"),
    made("jumprelu"),
    made("gated"),
    made("topk", k=8),
    made("topk", name="topk_rescaled", k=8, rescale_acts_by_decoder_norm=True),
    made("transcoder"),
    made("skip_transcoder"),
    made("jumprelu_transcoder"),
]
for name, sae in kinds:
    with torch.no_grad():
        acts = sae.encode(x)
        numbers[name] = {"encoded": acts, "decoded": sae.decode(acts)}
    logits[name] = run(through(sae) if "transcoder" in name else at_output(sae))
torch.save(numbers, folder / "numbers.pt")
torch.save(logits, folder / "logits.pt")
tools = ("sae-lens", "transformers", "torch")
(folder / "versions.json").write_text(dumps({name: version(name) for name in tools}))
