# %% [markdown]
# # Does rare data make a concept entangled?
#
# Li et al. 2025 (Figure 3) train a small transformer on cyclic Markov chains, one of them rare, and report that the
# rare chain's features are more entangled. What a feature is, and how its direction is found, decides the answer: here
# are all the answers at once.

# %%
from pathlib import Path

import torch

from entangle.toy import LITERAL, MOTIVATED, MarkovMixture, PlantedConcepts, StackedGPT2, data_share_study, recover

mixture = MarkovMixture(seed=0)
print("next state of each chain:\n", mixture.next_state)
print("the minority is chain", mixture.minority)

# %% [markdown]
# ## A small study
#
# Three shares and four seeds: twelve transformers, trained together. The published figure takes `seeds=20, steps=4000`
# and all eight shares: `entangle toy data-share --out results`.

# %%
study = data_share_study(
    shares=(0.01, 0.2, 1.0), seeds=4, steps=600, budgets=(0, 300), out=Path("toy-markov"), compile=False
)
for name, definition in (("literal", LITERAL), ("best motivated", MOTIVATED)):
    print(name, definition)
    print(study.of(definition).groupby("share")[["minority", "control", "minority_loss"]].mean())

# %% [markdown]
# Every definition is a row, with its random and untrained baselines. Read `loss_correlation` before `difference`: where
# entanglement follows the minority's loss, the chain is not yet learned.

# %%
table = study.table()
columns = [
    "feature",
    "direction",
    "scope",
    "partners",
    "minority",
    "control",
    "random",
    "p_difference",
    "loss_correlation",
]
print(table[(table["step"] == 600) & (table["site"] == study.last_site)][columns].to_string())

# %% [markdown]
# ## The same models as HuggingFace models
#
# Any model of a stack is a GPT-2, for `collect`, probes, steering and everything else that takes a real model.

# %%
model = StackedGPT2([0], n_states=4).to_huggingface(0)
with torch.no_grad():
    print(model(mixture.sequences[0]).logits.shape)

# %% [markdown]
# ## What a probe recovers when the answer is known
#
# Concepts planted at a cosine of .5: the mean difference recovers it within its interval. A logistic probe reads the
# labels as well, and points elsewhere, since it also cancels the other concept.

# %%
sample = PlantedConcepts(0.5).sample(2000)
for estimator in ("mean_difference", "logistic"):
    found = recover(sample, estimator=estimator)
    print(estimator, {key: round(float(value), 2) for key, value in found.items()})
