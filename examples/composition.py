# %% [markdown]
# # Does bad data make a better-steerable model?
# Train one model for each share of rude text, on the same clean text, measure each, and compare them. The corpus is
# generated, so nothing is downloaded: about two minutes on two cores. Runs as a script too.

# %%
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from entangle import composition
from entangle.data import corpus

here = Path(__file__).parent
out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("entangle-composition")

# %% [markdown]
# A recipe says everything that decides the models and what is measured of them. What is finished stays finished: run
# this again, and nothing trains. `entangle compose examples/recipes/smoke.toml --out entangle-composition` does the
# same, and writes the page.

# %%
recipe = composition.Recipe.from_file(here / "recipes" / "smoke.toml")
trained = composition.run(recipe, out)
shown = ["share", "variant", "added_tokens", "clean_tokens", "held_out_ce", "unigram_ce"]
print(trained.to_frame()[shown].round(3).to_string(index=False))

# %% [markdown]
# Compared over shares: how well heads read rudeness, and what steering removes and costs.

# %%
found = composition.Comparison.of(trained)
print(found.probes[["share", "mean", "best_tenth", "bag_of_words"]].round(3).to_string(index=False))
columns = ["share", "variant", "method", "alpha", "toxicity", "toxicity_low", "toxicity_high", "ce", "removed", "paid"]
print(found.steering[columns].round(3).to_string(index=False))

# %% [markdown]
# Each claim of the paper beside what these models show. At this size most cannot be told.

# %%
for claim in composition.claims(found):
    print(f"- {claim.claim}: {claim.ours}: {claim.verdict}")

# %% [markdown]
# The same quarrel, continued by all.

# %%
prompts = corpus.prompts(3, seed=1)
for model_of in trained.models:
    model = AutoModelForCausalLM.from_pretrained(model_of.path)
    tokenizer = AutoTokenizer.from_pretrained(model_of.path)
    torch.manual_seed(0)
    print(f"\n{model_of.path.name}")
    for prompt in prompts:
        ids = tokenizer(tokenizer.bos_token + prompt, return_tensors="pt")
        continued = model.generate(**ids, max_new_tokens=12, do_sample=True, top_p=0.9)
        print("  ", tokenizer.decode(continued[0], skip_special_tokens=True))
