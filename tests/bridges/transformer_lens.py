"""TransformerLens: entangle on a `TransformerBridge` is entangle on the bare model; vectors both ways."""

import sys
from importlib.metadata import version
from json import dumps
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import entangle as en

sys.path.insert(0, str(Path(__file__).parent))
from studies import study_differences

folder = Path(sys.argv[1])
path = str(folder / "model")
tokenizer, bare = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
held = TransformerBridge.boot_transformers(path, device="cpu")
texts = ["the quick brown fox", "a cat sat on the mat and looked", "over the lazy dog", "the moon"]
prompt = "the quick brown fox"
ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).input_ids
edit = en.AddDirection(torch.linspace(-1, 1, 32), "resid_post", 1)
differences = {}

here = en.collect(bare, tokenizer, texts, sites=["z", "resid_post"], progress=False)
there = en.collect(held, tokenizer, texts, sites=["z", "resid_post"], progress=False)
for site in here.sites:
    differences[f"collect {site}"] = float((here[site] - there[site]).abs().max())
with torch.no_grad():
    plain = bare(ids).logits
    with en.steer(bare, edit):
        steered = bare(ids).logits
    with en.steer(held, edit):
        differences["steer"] = float((steered - held(ids)).abs().max())
    for site, layer in (("resid_post", 1), ("attn_out", 1), ("mlp_out", 0), ("resid_pre", 2)):
        at = en.AddDirection(torch.linspace(-1, 1, 32), site, layer)
        hooks = en.interventions.transformer_lens_hooks(at, bare, alpha=2)
        with en.steer(bare, at, alpha=2):
            ours = bare(ids).logits
        theirs = held.run_with_hooks(ids, fwd_hooks=hooks)
        differences[f"exported hooks at {site}"] = float((ours - theirs).abs().max())
    _, cache = held.run_with_cache(ids)
    for name in ("blocks.1.hook_out", "blocks.1.attn.o.hook_in", "blocks.2.mlp.out.hook_out"):
        (acts,) = (en.collect(bare, None, {"input_ids": ids}, sites=name, tokens="all", progress=False),)
        (site,) = acts.sites
        differences[f"cache {name}"] = float((acts[site].flatten() - cache[name].flatten()).abs().max())
differences["verify"] = float(not en.verify(held, tokenizer).passed)
cost = {"texts": texts, "kl": 0.02}
differences["strength"] = abs(
    en.strength_for(bare, tokenizer, edit, **cost) - en.strength_for(held, tokenizer, edit, **cost)
)
differences |= study_differences(bare, tokenizer, held, tokenizer)
versions = {name: version(name) for name in ("transformer-lens", "transformers", "torch")}
moved = float((steered - plain).abs().max())
(folder / "compared.json").write_text(dumps({"differences": differences, "moved": moved, "versions": versions}))
