"""lm-evaluation-harness: its `steered` model on files of its own making, and on one that entangle exported."""

import sys
from importlib.metadata import version
from json import dumps
from pathlib import Path

import torch
from lm_eval.models.hf_steered import SteeredModel

folder = Path(sys.argv[1])
ids = torch.load(folder / "ids.pt")


def run(path):
    steered = SteeredModel(pretrained=str(folder / "model"), steer_path=str(path), device="cpu", dtype="float32")
    with torch.no_grad():
        return steered.forward(ids).logits


def entry(seed, action="add", bias=False):
    generator = torch.Generator().manual_seed(seed)
    vector, shift = torch.randn(32, generator=generator), torch.randn(32, generator=generator)
    return {
        "steering_vector": vector,
        "steering_coefficient": 1.5,
        "action": action,
        "bias": shift if bias else None,
        "head_index": None,
    }


files = {
    "blocks": {"layers.0": entry(0), "layers.2": entry(1)},
    "branches": {"layers.1.self_attn.o_proj": entry(2), "layers.1.mlp": entry(3)},
    "clamp": {"layers.1": entry(4, "clamp", bias=True)},
}
logits = {}
for name, contents in files.items():
    torch.save(contents, folder / f"theirs_{name}.pt")
    logits[f"theirs_{name}"] = run(folder / f"theirs_{name}.pt")
logits["ours"] = run(folder / "ours.pt")
torch.save({"layers.0": {**entry(0), "steering_coefficient": 0.0}}, folder / "nothing.pt")
logits["plain"] = run(folder / "nothing.pt")
torch.save(logits, folder / "logits.pt")
tools = ("lm_eval", "transformers", "torch")
(folder / "versions.json").write_text(dumps({name: version(name) for name in tools}))
