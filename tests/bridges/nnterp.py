"""nnterp: entangle on a `StandardizedTransformer` is entangle on the bare model, traces and generation are steered."""

import sys
from importlib.metadata import version
from json import dumps
from pathlib import Path

import torch
from nnterp import StandardizedTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

import entangle as en
from entangle.models import fingerprint

sys.path.insert(0, str(Path(__file__).parent))
from studies import PROMPT, entry_differences, study_differences

folder = Path(sys.argv[1])
path = str(folder / "model")
tokenizer, bare = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
held = StandardizedTransformer(path, device_map="cpu", dispatch=True)
ids = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False).input_ids
edit = en.AddDirection(torch.linspace(-1, 1, 32), "resid_post", 1)
differences = entry_differences(bare, tokenizer, held, None)
with torch.no_grad():
    plain = bare(ids).logits
    with en.steer(bare, edit):
        steered = bare(ids).logits
    with en.steer(held, edit), held.trace(ids):
        traced = held.lm_head.output.save()
    differences["steer"] = float((steered - traced).abs().max())
    baked = en.interventions.bake(held, edit)
    differences["bake"] = float((steered - baked(ids).logits).abs().max())
    with held.trace(ids):
        held.model.layers[1].output[:] = held.model.layers[1].output + torch.linspace(-1, 1, 32)
        by_trace = held.lm_head.output.save()
    differences["their own edit"] = float((steered - by_trace).abs().max())
differences["fingerprint"] = float(fingerprint(bare) != fingerprint(held))
differences |= study_differences(bare, tokenizer, held, None)
versions = {name: version(name) for name in ("nnterp", "nnsight", "transformers", "torch")}
moved = float((steered - plain).abs().max())
(folder / "compared.json").write_text(dumps({"differences": differences, "moved": moved, "versions": versions}))
