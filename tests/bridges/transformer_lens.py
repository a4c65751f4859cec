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
from studies import PROMPT, entry_differences, study_differences

folder = Path(sys.argv[1])
path = str(folder / "model")
tokenizer, bare = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
held = TransformerBridge.boot_transformers(path, device="cpu")
ids = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False).input_ids
edit = en.AddDirection(torch.linspace(-1, 1, 32), "resid_post", 1)
differences = entry_differences(bare, tokenizer, held, tokenizer)
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
differences |= study_differences(bare, tokenizer, held, tokenizer)
versions = {name: version(name) for name in ("transformer-lens", "transformers", "torch")}
moved = float((steered - plain).abs().max())
(folder / "compared.json").write_text(dumps({"differences": differences, "moved": moved, "versions": versions}))
