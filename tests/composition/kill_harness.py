"""Train in a process that will be killed: `kill_harness.py CHECKPOINT WEIGHTS`; the weights are written at the end."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from entangle.composition import Training, new_model, train_tokenizer
from entangle.composition.training.pretrain import pretrain

ARCHITECTURE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TRAINING = Training(batch_size=4, context=32, learning_rate=1e-2, precision="fp32", epochs=5, schedule="wsd")


def train(checkpoint: Path | None) -> torch.Tensor:
    """All weights after 500 steps, in one row."""
    torch.set_num_threads(1)
    tokens = torch.randint(0, 250, (12_801,), generator=torch.Generator().manual_seed(0))
    model = new_model(ARCHITECTURE, train_tokenizer(["the cat sat on the mat"], 300))
    pretrain(model, tokens, TRAINING, checkpoint=checkpoint, checkpoint_steps=3, progress=False)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


if __name__ == "__main__":
    checkpoint, weights = map(Path, sys.argv[1:])
    save_file({"weights": train(checkpoint)}, weights.with_suffix(".part"))
    weights.with_suffix(".part").rename(weights)
