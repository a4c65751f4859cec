# %% [markdown]
# # Superposition where the truth is known
#
# An autoencoder with more features than hidden dimensions (Elhage et al. 2022). Sparse features share dimensions in
# known shapes: five in two dimensions form a pentagon, and each then has an entanglement of cos 36 degrees.

# %%
import math
from pathlib import Path

import torch

import entangle
from entangle.toy import SparseFeatures, SuperpositionModel, figures, geometry, phase_diagram

out = Path("toy-superposition")
out.mkdir(exist_ok=True)

# %% [markdown]
# ## Ten models at once, from dense to sparse
#
# Every instance has its own sparsity; they train together in a few seconds.

# %%
density = torch.logspace(0, -1.5, 10)
model = SuperpositionModel(n_features=5, n_hidden=2, n_instances=10, importance=0.9 ** torch.arange(5))
model.fit(SparseFeatures(5, probability=density[:, None]), steps=3000)
for instance, probability in enumerate(density):
    found = geometry(model.dictionaries[instance])
    print(f"density {probability:.2f}: {found.name}, {len(found.dropped)} of 5 features dropped")

# %%
titles = [f"density {probability:.2f}" for probability in density]
figures.features(model, range(10), titles).savefig(out / "features.png")
figures.gram(model, range(10), titles).savefig(out / "gram.png")

# %% [markdown]
# The sparsest model has all five features. Its columns are directions like any other, for every metric of the library.

# %%
directions = model.directions(instance=9)
print("entanglement", entangle.metrics.entanglement(directions))
print("cos 36 degrees", math.cos(math.pi / 5))
print("dimensionality", model.dimensionality()[9])

# %% [markdown]
# ## When is a feature dropped, kept apart, or put in superposition?
#
# One number per cell: how sparse the data are, and how important the second feature is.

# %%
diagram = phase_diagram(n_cells=12, n_instances=5)
figures.phases(diagram).savefig(out / "phase_diagram.png")
print(diagram.to_frame()["phase"].value_counts())
