"""repeng: a control vector that it trained and wrote as GGUF, and one that entangle exported."""

import sys
from importlib.metadata import version
from json import dumps
from pathlib import Path

import numpy as np
import torch
from repeng import ControlModel, ControlVector
from transformers import AutoModelForCausalLM

folder = Path(sys.argv[1])
model, ids = AutoModelForCausalLM.from_pretrained(folder / "model").eval(), torch.load(folder / "ids.pt")
layers, width = list(range(model.config.num_hidden_layers)), model.config.hidden_size
draw = np.random.default_rng(0)
with torch.no_grad():
    logits = {"plain": model(ids).logits}
theirs = ControlVector(model.config.model_type, {layer: draw.normal(size=width).astype(np.float32) for layer in layers})
theirs.export_gguf(str(folder / "theirs.gguf"))
ours = ControlVector.import_gguf(str(folder / "ours.gguf"))
controlled = ControlModel(model, layers)
for name, vector, strength in (("theirs", theirs, 1.5), ("ours", ours, 1.0)):
    zero = np.zeros(width, dtype=np.float32)
    every = ControlVector(vector.model_type, {layer: vector.directions.get(layer, zero) for layer in layers})
    controlled.set_control(every, strength)
    with torch.no_grad():
        logits[name] = controlled(ids).logits
torch.save(logits, folder / "logits.pt")
tools = ("repeng", "gguf", "transformers", "torch")
(folder / "versions.json").write_text(dumps({name: version(name) for name in tools}))
