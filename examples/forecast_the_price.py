# %% [markdown]
# # Forecast the price
#
# **What will steering cost, before anyone steers?**
#
# *The answer that this page reaches:* from backward passes on clean text alone, the price of shifts along four concepts
# and a random direction is foretold within a third, up or down, of what is then paid on other documents, at .03 and .1
# nats per token. E does not tell it: the two concepts that are each other's nearest have one E, and their prices differ
# by more than a fifth.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch

import entangle as en
from entangle.data import corpus
from entangle.evaluation import language_shift

model, tokenizer, texts, labels, prompts, clean = en.example(n_texts=320)
layer = 0

# %% [markdown]
# ## Directions to push along

# %%
data = {name: corpus.labelled(name, 320) for name in ("tense", "topic", "sentiment")}
samples = {name: (each.texts, each.labels) for name, each in data.items()} | {"rudeness": (texts, labels)}
means = {}
for name, (some, y) in samples.items():
    x = en.collect(model, tokenizer, some, sites="resid_post", tokens="mean", progress=False)["resid_post"][:, layer]
    means[name] = x[y == 1].mean(0) - x[y == 0].mean(0)
means["random"] = torch.randn(32, generator=torch.Generator().manual_seed(0))
directions = en.Directions.stack(**means)

# %% [markdown]
# ## The forecast, and then the bill
#
# The metric knows nothing of any concept: it holds gradients of the model's own predictions on clean documents. Half
# of the documents make it, the other half pay.

# %%
metric = en.ShiftMetric.fit(model, tokenizer, clean[:150], samples=10, max_length=64, progress=False)
rows = []
for name, vector in zip(directions.names, directions.vectors, strict=True):
    edit = en.AddDirection(vector, "resid_post", layer)
    of_one = float(metric.price(edit).value)
    for nats in (0.03, 0.1):
        alpha = (nats / of_one) ** 0.5  # a price grows as the square of the strength
        price = metric.price(edit, alpha)
        kl = language_shift(model, tokenizer, clean[150:], edit, alpha=alpha, max_length=64, progress=False)
        paid = float(kl.kl.sum() / kl.tokens.sum())
        rows.append([name, alpha, float(price.value), float(price.paid_low), float(price.paid_high), paid])
table = pd.DataFrame(rows, columns=["along", "alpha", "foretold", "low", "high", "paid"])
table["paid over foretold"] = table["paid"] / table["foretold"]
table.round(3)

# %% alt="The price that was paid against the price that was foretold, near the diagonal"
figure, axes = plt.subplots(figsize=(4.5, 4))
for name, part in table.groupby("along"):
    axes.plot(part["foretold"], part["paid"], "o", label=name)
axes.axline((0, 0), slope=1, color="grey", linestyle="--")
axes.set(xlabel="foretold, nats per token", ylabel="paid on other documents")
axes.legend()

# %% [markdown]
# ## What a shift of one length costs, and E

# %%
price_of_ten = 0.1 * (10 / table.groupby("along")["alpha"].last()) ** 2
e = pd.Series(en.entanglement(directions).numpy(), index=list(directions.names))
beside = pd.DataFrame({"nats per token for a shift of length 10": price_of_ten, "E": e})
beside.sort_values("E").round(3)

# %% [markdown]
# ## A strength for a stated price

# %%
edit = en.AddDirection(directions.vectors[0], "resid_post", layer)
alpha = en.strength_for(model, tokenizer, edit, clean[150:200], kl=0.1)
alpha, float(metric.price(edit, alpha).value)

# %% [markdown]
# ## Was the answer reached?

# %% tags=["check"]
assert table["paid over foretold"].between(2 / 3, 3 / 2).all()
nearest = price_of_ten[e.nlargest(2).index]
assert nearest.max() > 1.2 * nearest.min()
assert 0.06 < float(metric.price(edit, alpha).value) < 0.15

# %% [markdown]
# Go on with [the forecast and its verdict](../forecast.md), how to [choose the layer](../how-to.md#choose-the-layer) by
# what it costs, and [steer and pay](steer_and_pay.md). From the shell: `entangle forecast MODEL DATA --clean CLEAN`.
# [The reference](../reference.md).
