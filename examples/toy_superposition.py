# %% [markdown]
# # Superposition where the truth is known
#
# **What do the metrics say where the right answer is known?**
#
# *The answer that this page reaches:* five sparse features in two dimensions form a pentagon: each has two fifths of a
# dimension and an entanglement of cos 36° = .81, as the theory has it. Dense features are dropped instead, and nothing
# is in superposition.

# %%
import math

import pandas as pd
import torch

import entangle as en
from entangle.toy import SparseFeatures, SuperpositionModel, figures, geometry, phase_diagram

# %% [markdown]
# ## Ten models at once, from dense to sparse
#
# The autoencoder of [Elhage et al. 2022](https://transformer-circuits.pub/2022/toy_model/index.html). Every instance
# has its own sparsity; they train together.

# %%
torch.manual_seed(0)
density = torch.logspace(0, -1.5, 10)
model = SuperpositionModel(n_features=5, n_hidden=2, n_instances=10, importance=0.9 ** torch.arange(5))
model.fit(SparseFeatures(5, probability=density[:, None]), steps=3000)
shapes = [geometry(model.dictionaries[instance]) for instance in range(10)]
names, dropped = [shape.name for shape in shapes], [len(shape.dropped) for shape in shapes]
pd.DataFrame({"density": density.numpy().round(2), "shape": names, "dropped": dropped})

# %% alt="The five features of each of the ten models as arrows in two dimensions, from two of them to a pentagon"
titles = [f"density {probability:.2f}" for probability in density]
figures.features(model, range(10), titles)

# %% [markdown]
# ## Every metric of the library, on directions that are known
#
# Of the sparsest model that ended as a pentagon (a start in twenty or so ends in a square, which drops a feature):

# %%
pentagons = [instance for instance, name in enumerate(names) if name == "pentagon"]
directions = model.directions(instance=pentagons[-1])
pd.DataFrame(
    {
        "entanglement": en.metrics.entanglement(directions).numpy(),
        "cos 36°": math.cos(math.pi / 5),
        "dimensionality": model.dimensionality()[pentagons[-1]].numpy(),
        "two fifths": 0.4,
    }
).round(3)

# %% [markdown]
# ## When is a feature dropped, kept apart, or put in superposition?
#
# One number per cell: how sparse the data are, and how important the second feature is.

# %% alt="Phase diagram: by density and importance, the second feature is dropped, has a dimension or shares one"
diagram = phase_diagram(n_cells=10, n_instances=4)
figures.phases(diagram)

# %% [markdown]
# ## Was the answer reached?

# %% tags=["check"]
assert len(pentagons) >= 2
assert min(pentagons) >= 3
assert shapes[0].dropped
assert (en.metrics.entanglement(directions) - math.cos(math.pi / 5)).abs().max() < 0.06
assert (model.dimensionality()[pentagons[-1]] - 0.4).abs().max() < 0.06

# %% [markdown]
# Go on with [toy models](../toys.md#superposition), [the bounds of E](../concepts.md#entanglement) and
# [metrics](../metrics.md#superposition). From the shell: `entangle toy superposition`. [The
# reference](../reference.md).
