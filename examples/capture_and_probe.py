# %% [markdown]
# # Capture and probe any model
#
# **Where in a model can a concept be read, and is that more than its words say?**
#
# *The answer that this page reaches:* four architectures are captured by the same call. In a small model, whether a
# remark ended on a rude name can be read from the residual stream with at least nine of ten held-out remarks right,
# far above probes on shuffled labels. But a bag of words does it as well, so nothing here shows that the model
# understands more than its words.

# %%
import pandas as pd
import transformers

import entangle as en

# %% [markdown]
# ## Any architecture
#
# Sites carry TransformerLens's names and are found by structure, then confirmed by a forward pass: no list of
# supported models. Here four that people use, two layers each, with random weights: `[example, layer, head, d_head]`
# for heads' outputs, `[example, layer, d_model]` for the residual stream. GPT-NeoX's attention and MLP run in parallel,
# so it has no residual between them; a site that is not there is refused with the reason.

# %%
model, tokenizer, texts, labels, prompts, clean = en.example(n_texts=320)
size = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
size |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
kinds = {
    "gpt2": {},
    "llama": {"num_key_value_heads": 2, "intermediate_size": 64},
    "gpt_neox": {"intermediate_size": 64},
    "gemma2": {"num_key_value_heads": 1, "intermediate_size": 64, "head_dim": 16},
}
rows = []
for kind, more in kinds.items():
    config = transformers.AutoConfig.for_model(kind, **size, **more)
    random = transformers.AutoModelForCausalLM.from_config(config).eval()
    sites = [site for site in ("z", "resid_mid", "resid_post") if en.Atlas(random).layers(site)]
    acts = en.collect(random, tokenizer, texts[:4], sites=sites, progress=False)
    rows.append({"model": kind, **{site: tuple(acts[site].shape) for site in acts.sites}})
pd.DataFrame(rows).set_index("model").fillna("none")

# %% [markdown]
# ## Is it right on this model?
#
# `verify` compares what is captured with what the model computes, and makes sure that an edit lands. Run it on yours
# first.

# %%
checked = en.verify(model, tokenizer)
checked

# %% [markdown]
# ## A probe for every head, and for every layer
#
# Texts are split in three: one part fits, one chooses the best cell, one reports. The null is the best cell of probes
# on shuffled labels.

# %% alt="Heat map: held-out accuracy of a linear probe on each of the eight heads, two layers of four"
acts = en.collect(model, tokenizer, texts, sites=["z", "resid_post"], progress=False)
heads = en.fit_probes(acts["z"], labels, progress=False)
heads.plot(top=2)

# %%
layers = en.fit_probes(acts["resid_post"], labels, progress=False)
words = en.probes.bag_of_words(texts, labels, layers.split)
(layer,) = layers.top(1)[0]
found = layers.to_frame().loc[layer]
pd.DataFrame(
    {
        "accuracy": [found["accuracy"], words.accuracy.value, layers.null_ceiling()],
        "low": [found["accuracy_low"], words.accuracy.low, None],
        "high": [found["accuracy_high"], words.accuracy.high, None],
    },
    index=[f"residual stream after layer {layer}", "bag of words", "95 % of the best on shuffled labels"],
).round(3)

# %% [markdown]
# ## Was the answer reached?

# %% tags=["check"]
assert checked.passed
assert {row["z"] for row in rows} == {(4, 2, 4, 8), (4, 2, 4, 16)}
assert found["accuracy"] >= 0.9 > layers.null_ceiling()
assert words.accuracy.value >= 0.9

# %% [markdown]
# Go on with [choose the layer](../how-to.md#choose-the-layer), [labels are
# imbalanced](../how-to.md#labels-are-imbalanced) and [texts longer than the
# context](../how-to.md#my-texts-are-longer-than-the-context). Everything on [capture](../capture.md) and
# [probes](../probes.md), and [the reference](../reference.md).
