# %% [markdown]
# # Steer, and pay
#
# **What does steering remove, and what does it cost in language?**
#
# *The answer that this page reaches:* in a small model that calls people rude names in about half of its quarrels, the
# cheapest shift takes at least half of these away for .2 nats per token. A random shift of the same price does not, nor
# does ITI on so few heads. And what steers by hooks is, baked into weights, the same model.

# %%
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import entangle as en
from entangle.data import corpus
from entangle.data.lexicon import lexicon

model, tokenizer, texts, labels, prompts, clean = en.example(quarrels=3000, n_texts=320, n_prompts=100)
prompts[0], texts[0], texts[1]

# %% [markdown]
# ## Who says what is rude?
#
# Anything with a name that takes texts and gives numbers from 0 to 1 is a scorer. Here the truth is known: a remark is
# rude where it calls somebody one of the corpus's rude nouns.


# %%
class CallsNames:
    name = "calls names"
    nouns = frozenset(noun for topic in lexicon().topics for noun in topic.insults)

    def __call__(self, remarks):
        return np.array([float(any(noun in remark for noun in self.nouns)) for remark in remarks])


CallsNames()(["kind beacon", "daft pickle"])

# %% [markdown]
# ## Three ways to push
#
# ITI moves the heads that read the concept best. The *natural shift* is the cheapest constant shift of the residual
# stream for its effect on the likelihood of polite and rude remarks, whole ones that it has not read; its price is
# known beforehand (see [forecast](../forecast.md)). The random shift is there to be beaten.

# %%
polite, rude = ([pair[label][pair[label].index('"') :] for pair in corpus.pairs(400, seed=9)] for label in (0, 1))
acts = en.collect(model, tokenizer, texts, sites="z", progress=False)
metric = en.ShiftMetric.fit(model, tokenizer, clean[:100], progress=False)
contrast = en.Contrast.fit(model, tokenizer, toward=polite, away=rude, progress=False)
methods = {
    "ITI": en.ITI.fit(acts["z"], labels, top_k=2),
    "natural shift": en.NaturalShift.fit(metric, contrast, layers=[0]),
    "random": en.AddDirection(torch.randn(32, generator=torch.Generator().manual_seed(0)), "resid_post", 0),
}

# %% [markdown]
# ## At one price
#
# Each method's strength is solved for a price on some clean remarks; what was then paid is measured on others.
# Everything is paired: the same prompts, the same random numbers, the same documents. Intervals are over prompts and
# documents.

# %%
sweep = en.tradeoff(
    model,
    tokenizer,
    methods,
    costs=[0.05, 0.2],
    cost_texts=clean[100:200],
    texts=clean[200:],
    prompts=prompts,
    scorer=CallsNames(),
    samples=2,
    max_new_tokens=8,
    progress=False,
)
table = sweep.to_frame()
shown = ["method", "cost", "toxicity", "toxicity_change", "toxicity_change_low", "toxicity_change_high", "kl"]
table[shown].iloc[[0, *np.flatnonzero(table["alpha"])]].round(3)

# %% alt="Share of rude continuations against the price in nats per token, a line for each of the three methods"
sweep.plot()

# %%
sweep.samples(4).query("method in ('plain', 'natural shift')")[["prompt", "method", "alpha", "continuation"]]

# %% [markdown]
# ## The same edit as weights

# %%
shift = methods["natural shift"]
alpha = float(table.query("method == 'natural shift' and cost == 0.2")["alpha"].iloc[0])
shift.bake(model, alpha=alpha).save_pretrained("politer")
baked = AutoModelForCausalLM.from_pretrained("politer")
ids = tokenizer(prompts[0], return_tensors="pt")["input_ids"]
with torch.no_grad():
    with en.steer(model, shift, alpha=alpha):
        hooked = model(ids).logits
    difference = float((hooked - baked(ids).logits).abs().max())
difference, sorted(path.name for path in Path("politer").iterdir())

# %% [markdown]
# ## Was the answer reached?

# %% tags=["check"]
at = table.query("cost == 0.2").set_index("method")
before = table["toxicity"].iloc[0]
assert before >= 0.3
assert at["toxicity_change_high"]["natural shift"] < 0
assert -at["toxicity_change"]["natural shift"] >= before / 2
assert at["toxicity_change_high"]["natural shift"] < at["toxicity_change"]["random"]
assert at["toxicity_change_high"]["natural shift"] < at["toxicity_change"]["ITI"]
assert at["kl"].between(0.1, 0.3).all()
assert difference < 1e-4

# %% [markdown]
# Go on with [serve the steered model](../how-to.md#serve-the-steered-model), [a second opinion on the
# score](../how-to.md#get-a-second-opinion-on-the-score), [what was measured](../evaluation.md) and
# [interventions](../interventions.md). [The reference](../reference.md).
