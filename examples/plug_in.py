# %% [markdown]
# # Plug into TransformerLens and SAELens
#
# **Does what other tools hold and want agree with what the library does?**
#
# *The answer that this page reaches:* a TransformerLens bridge gives the same activations, to rounding, as the plain
# model; its hook names are sites here; an edit exported as TransformerLens hooks moves its logits as steering the
# plain model does. And an autoencoder in SAELens's format is read without SAELens, and its features are edits.

# %%
import json
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from transformer_lens.model_bridge import TransformerBridge

import entangle as en

model, tokenizer, texts, labels, prompts, clean = en.example()
model.save_pretrained("model")
tokenizer.save_pretrained("model")
ids = tokenizer(texts[1], return_tensors="pt")["input_ids"]

# %% [markdown]
# ## A bridge in, names of TransformerLens as sites

# %%
bridge = TransformerBridge.boot_transformers("model", device="cpu")
names = ["blocks.1.hook_resid_post", "blocks.0.attn.hook_z"]
bare, held = (en.collect(each, tokenizer, texts[:16], sites=names, progress=False) for each in (model, bridge))
apart = {site: float((bare[site] - held[site]).abs().max()) for site in bare.sites}
apart

# %% [markdown]
# ## An edit out, as TransformerLens hooks

# %%
acts = en.collect(model, tokenizer, texts, sites="z", progress=False)
iti = en.ITI.fit(acts["z"], labels, top_k=2)
hooks = en.interventions.transformer_lens_hooks(iti, model, alpha=8.0)
with torch.no_grad():
    plain = model(ids).logits
    with en.steer(model, iti, alpha=8.0):
        ours = model(ids).logits
    theirs = bridge.run_with_hooks(ids, fwd_hooks=hooks)
moved, disagreement = float((ours - plain).abs().max()), float((ours - theirs).abs().max())
pd.Series({"moved by the edit": moved, "between the two ways": disagreement})

# %% [markdown]
# ## An autoencoder in SAELens's format
#
# SAELens is not needed to read what it wrote: `cfg.json` beside `sae_weights.safetensors`. To need no download, this
# one is written here, with the difference between rude and polite remarks as feature 0. (That what SAELens itself
# writes is read with its own numbers is [compared apart](../bridges.md#what-was-compared), in an environment that has
# it.)

# %%
x = en.collect(model, tokenizer, texts, sites="resid_post", layers=[1], progress=False)["resid_post"][:, 0]
y = torch.from_numpy(labels)
generator = torch.Generator().manual_seed(0)
decoder = torch.randn(64, 32, generator=generator)
decoder[0] = x[y == 1].mean(0) - x[y == 0].mean(0)
decoder /= decoder.norm(dim=1, keepdim=True)
folder = Path("autoencoder")
folder.mkdir(exist_ok=True)
weights = {"W_enc": decoder.T.contiguous(), "W_dec": decoder, "b_enc": torch.zeros(64), "b_dec": x.mean(0)}
save_file(weights, folder / "sae_weights.safetensors")
settings = {"architecture": "standard", "d_in": 32, "d_sae": 64, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}
(folder / "cfg.json").write_text(json.dumps(settings))

sae = en.interventions.read(folder, model=model)
sae

# %% [markdown]
# Feature 0 fires on rude remarks; taking it out is an edit like any other. The decoder is a dictionary of directions,
# for every metric.

# %%
fires = sae.encode(x)[:, 0]
without = sae.feature(0)
with torch.no_grad(), en.steer(model, without):
    changed = float((model(ids).logits - plain).abs().max())
dictionary = en.Directions.from_sae(sae, site="resid_post", layer=1)
pd.Series(
    {
        "mean of the feature, rude": float(fires[y == 1].mean()),
        "mean of the feature, polite": float(fires[y == 0].mean()),
        "logits moved without it": changed,
        "E of its direction in the dictionary": float(en.entanglement(dictionary)[0]),
    }
).round(3)

# %% [markdown]
# ## Was the answer reached?

# %% tags=["check"]
assert max(apart.values()) < 1e-4
assert disagreement < 1e-4 < moved
assert fires[y == 1].mean() > 2 * fires[y == 0].mean()
assert changed > 1e-3

# %% [markdown]
# Go on with [bridges](../bridges.md): nnsight, nnterp, PEFT, steering-vectors, repeng, lm-evaluation-harness, Inspect;
# [serving](../serving.md) a steered model, [edits](../interventions.md) and [the reference](../reference.md).
