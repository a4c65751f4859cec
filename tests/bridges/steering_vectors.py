"""steering-vectors: its `SteeringVector` kept by torch.save, and those that entangle exported."""

import sys
from importlib.metadata import version
from json import dumps
from pathlib import Path

import torch
from steering_vectors import SteeringVector
from transformers import AutoModelForCausalLM

folder = Path(sys.argv[1])
model, ids = AutoModelForCausalLM.from_pretrained(folder / "model").eval(), torch.load(folder / "ids.pt")
width = model.config.hidden_size


def run(vector=None, multiplier=1.0):
    with torch.no_grad():
        if vector is None:
            return model(ids).logits
        with vector.apply(model, multiplier=multiplier):
            return model(ids).logits


logits = {"plain": run()}
for number, kind in enumerate(("decoder_block", "self_attn", "mlp")):
    generator = torch.Generator().manual_seed(number)
    theirs = SteeringVector({layer: torch.randn(width, generator=generator) for layer in (0, 2)}, kind)
    torch.save(theirs, folder / f"theirs_{kind}.pt")
    logits[f"theirs_{kind}"] = run(theirs, 1.5)
    logits[f"ours_{kind}"] = run(SteeringVector(**torch.load(folder / f"ours_{kind}.pt", weights_only=True)))
torch.save(logits, folder / "logits.pt")
tools = ("steering-vectors", "transformers", "torch")
(folder / "versions.json").write_text(dumps({name: version(name) for name in tools}))
