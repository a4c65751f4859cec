# %% [markdown]
# # Does bad data make a better-steerable model?
# Train one model for each share of rude text, on the same clean text, and look at what each has learnt. The corpus is
# generated, so nothing is downloaded. Runs as a script too.

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
# A recipe says everything that decides the models. What is finished stays finished: run this again, and nothing trains.

# %%
recipe = composition.Recipe.from_file(here / "recipes" / "smoke.toml")
trained = composition.run(recipe, out)
print(trained.to_frame()[["share", "added_tokens", "clean_tokens", "held_out_ce", "unigram_ce"]].round(3).to_string())

# %% [markdown]
# The same quarrel, continued by both.

# %%
prompts = corpus.prompts(3, seed=1)
for model_of in trained.models:
    model = AutoModelForCausalLM.from_pretrained(model_of.path)
    tokenizer = AutoTokenizer.from_pretrained(model_of.path)
    torch.manual_seed(0)
    print(f"\n{model_of.share:.0%} rude text")
    for prompt in prompts:
        ids = tokenizer(tokenizer.bos_token + prompt, return_tensors="pt")
        continued = model.generate(**ids, max_new_tokens=12, do_sample=True, top_p=0.9)
        print("  ", tokenizer.decode(continued[0], skip_special_tokens=True))
