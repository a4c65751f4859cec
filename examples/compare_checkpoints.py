# %% [markdown]
# # Compare two checkpoints
#
# **Two models that differ in their training text alone: which of them has the concept?**
#
# *The answer that this page reaches:* probes read whether a remark was rude from both models, although one of them has
# never seen a rude remark. Only the other one says rude things when left alone. What a probe reads, a model need not
# use: compare what models do, not only what can be read from them.

# %%
import json
from pathlib import Path

import pandas as pd
from transformers import AutoModelForCausalLM, AutoTokenizer

import entangle as en
from entangle import composition
from entangle.composition import Recipe, Source, Training
from entangle.data import corpus

# %% [markdown]
# ## A recipe
#
# A recipe says everything that decides the models. Clean text is held constant and the other is added to it, as in
# [Li et al. 2025](https://arxiv.org/abs/2505.04741). What is finished stays finished: run this again, and nothing
# trains. `entangle compose RECIPE.toml` does the same from the shell, with seeds, claims and a page.

# %%
pairs = corpus.pairs(4000, seed=1)
for name, texts in {
    "polite": [polite for polite, _ in pairs[:3600]],
    "rude": [rude for _, rude in pairs[:3600]],
    "held-out": [polite for polite, _ in pairs[3600:3700]],
}.items():
    remarks = [text[text.index('"') :] for text in texts]
    Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": remark}) + "\n" for remark in remarks))

recipe = Recipe(
    clean=Source(files=("polite.jsonl",)),
    added=Source(files=("rude.jsonl",)),
    held_out=Source(files=("held-out.jsonl",)),
    shares=(0.0, 0.5),
    vocab_size=1024,
    architecture={
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
    },
    training=Training(epochs=3, batch_size=32, context=64, learning_rate=0.02, precision="fp32"),
)
trained = composition.run(recipe, "models", progress=False)
trained.to_frame()[["share", "added_tokens", "clean_tokens", "held_out_ce"]].round(3)

# %% [markdown]
# ## The same questions to both
#
# The same texts, the same prompts, the same seed; the texts are remarks that end on a polite or a rude name.

# %%
_, _, texts, labels, prompts, _ = en.example(n_texts=320, n_prompts=100)
studies = []
for found in trained.models:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(found.path), AutoTokenizer.from_pretrained(found.path)
    studies.append(
        en.study(
            model,
            tokenizer,
            texts,
            labels,
            name="rudeness",
            label=f"{found.share:.0%} rude",
            prompts=prompts,
            clean=recipe.held_out.texts(),
            alphas=[4.0],
            forecast=False,
            prepend_bos=True,
            max_new_tokens=8,
            n_resamples=300,
            n_permutations=20,
            progress=False,
        )
    )
both = en.Study.compare(studies)
both.to_html("compared.html")
table = both.to_frame()
asked = ["accuracy, best layer", "accuracy, bag of words", "rudeness of continuations"]
shown = table[table["quantity"].isin(asked) & ~table["where"].str.contains("ITI")]
shown[["label", "quantity", "where", "value", "low", "high"]].round(3)

# %% [markdown]
# ## What each of them says of the same prompts
#
# Those with the highest scores. What scores high in the first model is a denial ("are no turnip"): the default scorer
# has learned words, so that a second opinion is worth having.

# %%
said = {study.label: study.tradeoff.samples(5).query("alpha == 0") for study in studies}
pd.concat(said, names=["model"]).reset_index(level=0)[["model", "prompt", "continuation", "score"]].round(2)

# %% [markdown]
# ## Was the answer reached?

# %% tags=["check"]
values = shown.set_index(["label", "quantity"])
for label in ("0% rude", "50% rude"):
    assert values.loc[(label, "accuracy, best layer"), "value"] >= 0.9
clean_says, rude_says = (values.loc[(label, "rudeness of continuations")] for label in ("0% rude", "50% rude"))
assert clean_says["high"] < rude_says["low"]

# %% [markdown]
# One seed is one model: claims about recipes need several, and `entangle compose` takes its intervals over them. Go on
# with [compare two checkpoints](../how-to.md#compare-two-checkpoints), [one seed is one
# model](../believe.md#one-seed-is-one-model) and [composition](../composition.md). [The reference](../reference.md).
