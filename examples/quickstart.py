# %% [markdown]
# # Quickstart: how entangled is rudeness, and what does it cost to steer it out?
#
# The steps of `entangle report`, one library call at a time, on a small model that has read rude text. If
# `entangle demo` has run, its models are used; else they are trained first (about a minute). Nothing is downloaded.

# %%
import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import entangle as en
from entangle.data import corpus

parser = argparse.ArgumentParser()
parser.add_argument("--models", type=Path, default=Path("entangle-demo/models"), help="where the demo's models are")
folder = parser.parse_known_args()[0].models

recipe = en.composition.demo_recipe()
path = en.composition.run(recipe, folder).model(share=0.1).path
model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)

# %% [markdown]
# ## Does everything land where we think?

# %%
print(en.Atlas(model))
print(en.verify(model, tokenizer))

# %% [markdown]
# ## Capture
#
# The output of every head and the residual stream, at each text's last token. The model was trained with a
# beginning-of-text token before every document, so the texts get one too.

# %%
rude, tense, topic = (corpus.labelled(name, 2000, seed=1) for name in ("rudeness", "tense", "topic"))
acts = {
    data.name: en.collect(model, tokenizer, data.texts, sites=["z", "resid_post"], tokens="last", prepend_bos=True)
    for data in (rude, tense, topic)
}
print(acts["rudeness"])

# %% [markdown]
# ## Probe: one for every layer and head
#
# Fitted on one part of the texts, ranked on another, reported on a third; beside a null of permuted labels, and a bag
# of words on the very same rows.

# %%
grid = en.fit_probes(acts["rudeness"]["z"], rude.labels, seed=0)
print(grid.to_frame().sort_values("accuracy", ascending=False).head().to_string(index=False))
print("best of a shuffled grid stays below", round(grid.null_ceiling(), 3))
print("bag of words:", en.probes.bag_of_words(rude.texts, rude.labels, grid.split).accuracy)
grid.plot(top=4)

# %% [markdown]
# ## Entanglement: how far does each concept's direction lie along another's?
#
# E depends on the concepts asked about, and random directions are not at zero: read it beside its percentile. The share
# of the activations' variance along a direction says more about the price of steering.

# %%
layer = 2
samples, directions = {}, {}
for data in (rude, tense, topic):
    rows = en.probes.three_way(data.labels, seed=0).fit
    x, y = acts[data.name]["resid_post"][rows, layer], data.labels[rows]
    samples[data.name] = (x, y)
    directions[data.name] = x[y == 1].mean(0) - x[y == 0].mean(0)
report = en.entanglement_report(en.Directions.stack(**directions), samples, estimator="mean_difference")
columns = ["concept", "entanglement", "low", "high", "partner", "percentile", "variance_share"]
print(report.to_frame()[columns].round(3).to_string(index=False))

# %% [markdown]
# ## Steer it out, and pay
#
# Positive alpha moves away from label 1. The scorer has seen only the fitting rows.

# %%
iti = en.ITI.fit(acts["rudeness"], rude.labels, top_k=4, grid=grid)
prompts = corpus.prompts(100, seed=2)
with en.steer(model, iti, alpha=8):
    steered = model.generate(**tokenizer(prompts[0], return_tensors="pt"), max_new_tokens=12, do_sample=False)
print(tokenizer.decode(steered[0]))

fit = grid.split.fit.tolist()
scorer = en.LinearToxicityScorer.fit([rude.texts[i] for i in fit], rude.labels[fit])
price = en.tradeoff(
    model,
    tokenizer,
    iti,
    alphas=[0, 4, 8],
    prompts=prompts,
    scorer=scorer,
    texts=recipe.held_out.texts()[:100],
    prepend_bos=True,
)
print(price.to_frame()[["alpha", "toxicity", "toxicity_low", "toxicity_high", "ce", "kl", "degenerate"]].round(3))
price.plot()

# %% [markdown]
# The same edit as plain weights, to be saved and loaded like any other model:

# %%
iti.bake(model, alpha=8).save_pretrained(folder.parent / "politer")
