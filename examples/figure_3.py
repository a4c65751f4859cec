# %% [markdown]
# # The paper's Figure 3, in every reading
#
# **Does a concept that is rare in training become more entangled?**
#
# *The answer that this page reaches:* it depends on the reading, which the paper does not give. By the letter, a
# logistic probe for (chain, start) at every last token, the rare chain is not more entangled than the others. By the
# reading that the task itself needs, (chain, current token) among partners that must differ, it is. And where it is,
# the rare chain's loss is high too: what is entangled is what is not yet learned.

# %%
import matplotlib.pyplot as plt
import pandas as pd

import entangle as en
from entangle.toy import LITERAL, MOTIVATED, MarkovMixture, StackedGPT2, data_share_study

mixture = MarkovMixture(seed=0)
mixture.next_state, mixture.minority

# %% [markdown]
# ## A small study
#
# [Li et al. 2025](https://arxiv.org/abs/2505.04741) train a transformer on cyclic Markov chains over four shared
# states, one of them rare. Here two shares and ten seeds, twenty transformers trained together. The published size is
# `entangle toy data-share --out results`.

# %%
study = data_share_study(shares=(0.01, 1.0), seeds=10, steps=500, budgets=(0,), compile=False, progress=False)
readings = {"by the letter": LITERAL, "what the task needs": MOTIVATED}
means = {
    name: study.of(reading).groupby("share")[["minority", "control", "minority_loss"]].mean()
    for name, reading in readings.items()
}
pd.concat(means, names=["reading"]).round(3)

# %% [markdown]
# ## Every reading
#
# What a feature is, how its direction is found and among which partners E is taken: every combination is a row, beside
# random directions and untrained models. `difference` is the rare chain less the others at the smallest share.

# %%
table = study.table(n_permutations=2000)
last = table[(table["step"] == 500) & (table["site"] == study.last_site)]
columns = ["feature", "direction", "scope", "partners", "minority", "control", "random", "difference", "p_difference"]
last[[*columns, "loss_correlation"]].round(3).reset_index(drop=True)

# %% alt="The difference between the rare chain and the others in every reading, sorted; two stand out"
ordered = last.sort_values("difference").reset_index(drop=True)
figure, axes = plt.subplots(figsize=(7, 3.5))
axes.vlines(ordered.index, ordered["low"], ordered["high"], color="lightgrey")
axes.plot(ordered.index, ordered["difference"], ".", color="grey", label="every reading")
for (name, reading), mark in zip(readings.items(), ("D", "s"), strict=True):
    here = ordered[(ordered[list(reading)] == pd.Series(reading)).all(axis=1)]
    axes.plot(here.index, here["difference"], mark, markersize=8, label=name)
axes.axhline(0, color="black", linewidth=0.8)
axes.set(xlabel="reading, sorted", ylabel="E of the rare chain less the others'")
axes.legend()

# %% [markdown]
# ## The same models as HuggingFace models
#
# Any model of a stack is a GPT-2, for `collect`, probes, steering and everything else that takes a real model.

# %%
model = StackedGPT2([0], n_states=4).to_huggingface(0)
acts = en.collect(model, None, {"input_ids": mixture.sequences[0]}, sites="resid_post", progress=False)
acts

# %% [markdown]
# ## Was the answer reached?

# %% tags=["check"]
rows = last.set_index(["feature", "direction", "scope", "partners"])
letter, task = (rows.loc[tuple(reading.values())] for reading in (LITERAL, MOTIVATED))
assert letter["low"] <= 0
assert task["low"] > 0
assert means["what the task needs"]["minority_loss"].loc[0.01] > 0.2
assert means["what the task needs"]["minority_loss"].loc[1.0] < 0.1

# %% [markdown]
# Go on with [rare data](../toys.md#rare-data), [entangled, or not learned?](../toys.md#entangled-or-not-learned) and
# [a null for every number](../believe.md#a-number-without-its-null-says-nothing). [The reference](../reference.md).
