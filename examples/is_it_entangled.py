# %% [markdown]
# # Is this concept entangled?
#
# **How far does a concept's direction lie along another's, and whose doing is it?**
#
# *The answer that this page reaches:* where topic and sentiment vary independently in the labelled texts, the direction
# of sentiment lies no further along topic's than random directions of the activations' own covariance lie along each
# other. Take texts in which happy ones are mostly about a harbour, and E rises above nearly all of those; balance them,
# and it falls again. That entanglement was the data's, not the model's.

# %%
import numpy as np
import pandas as pd
import torch

import entangle as en
from entangle.data import corpus

model, tokenizer, *_ = en.example()

# %% [markdown]
# ## Texts with every label known
#
# The built-in corpus draws each concept of a document by a coin of its own. From these we take two sets: one as they
# come, and one in which sentiment and topic agree in nine of ten.

# %%
documents = corpus.generate(4000, rudeness=0.5, seed=7)
labels = {name: np.array([document.labels[name] for document in documents]) for name in ("topic", "sentiment")}
agree = labels["topic"] == labels["sentiment"]
apart = np.arange(len(documents))
together = np.concatenate([np.flatnonzero(agree)[:1800], np.flatnonzero(~agree)[:200]])

acts = en.collect(
    model,
    tokenizer,
    [document.text for document in documents],
    sites="resid_post",
    layers=[1],
    tokens="mean",  # a concept shows all over a document
    progress=False,
)
x = acts["resid_post"][:, 0]

# %% [markdown]
# ## E beside what chance gives
#
# $E_i$ is the largest $|\cos|$ with another concept's direction. *Percentile* says where it lies among random
# directions drawn with the activations' own covariance: 50 is what chance gives. *Split half* says whether the
# direction is one at all: the cosine between those of two halves of the texts.


# %%
def entangled(rows):
    samples = {name: (x[rows], torch.from_numpy(y[rows])) for name, y in labels.items()}
    means = {name: x[rows][y[rows] == 1].mean(0) - x[rows][y[rows] == 0].mean(0) for name, y in labels.items()}
    directions = en.Directions.stack(**means)
    return en.entanglement_report(directions, samples, estimator="mean_difference", n_resamples=200).to_frame()


frames = {"apart": entangled(apart), "together": entangled(together)}
columns = ["concept", "entanglement", "low", "high", "partner", "covariance_percentile", "split_half"]
table = pd.concat(frames, names=["labels"])[columns].droplevel(1).round(2)
table

# %% [markdown]
# ## The remedy
#
# Keep as many texts of each combination of labels, and E is again what chance gives, although the texts are those of
# the confounded set. (Few are left, so the direction is noisier: the interval and *split half* say so.)

# %%
kept = en.toy.balanced_examples({name: torch.from_numpy(labels[name][together]) for name in labels})
frames["balanced again"] = entangled(together[kept.numpy()])
sentiment = pd.concat(frames, names=["labels"])[columns].droplevel(1).query("concept == 'sentiment'")
sentiment.round(2)

# %% [markdown]
# ## Was the answer reached?

# %% tags=["check"]
e, percentile = sentiment["entanglement"], sentiment["covariance_percentile"]
assert sentiment["split_half"]["apart"] > 0.5
assert max(percentile["apart"], percentile["balanced again"]) < 0.95 <= percentile["together"]
assert e["together"] > max(e["apart"], e["balanced again"]) + 0.2

# %% [markdown]
# Go on with [what E does not say](../concepts.md#what-e-does-not-say), [what should I
# believe?](../believe.md#a-number-without-its-null-says-nothing), [the report's numbers](../metrics.md#the-report)
# and how to [hold a concept still](../how-to.md#hold-this-concept-still). [The reference](../reference.md).
