"""The state of an unfinished training in one safetensors file, to go on from as if it had never stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from entangle.composition.recipe.training import Training
from entangle.composition.training.stream import Stream
from entangle.errors import EntangleError
from entangle.storage.digest import digest
from entangle.storage.files import replacing

CHECKSUM = "sha256"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def training_key(stream: Stream, training: Training, seed: int) -> str:
    """A hash of everything that decides how a training goes on, other than the weights."""
    return digest([training, seed, stream.tokens, stream.scored, stream.cooldown])


def save_checkpoint(
    path: Path, model: PreTrainedModel, optimiser: torch.optim.Optimizer, losses: list[float], key: str
) -> None:
    """Write weights, moments and the losses so far, under a temporary name first."""
    state: dict[str, Tensor] = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for name, parameter in model.named_parameters():
        state[f"weight {name}"] = parameter.detach()
        state.update({f"{moment} {name}": optimiser.state[parameter][moment] for moment in MOMENTS})
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata={"key": key, CHECKSUM: _checksum(contiguous)})


@torch.no_grad()
def load_checkpoint(path: Path, model: PreTrainedModel, optimiser: torch.optim.Optimizer, key: str) -> list[float]:
    """Put weights and moments back, and return the losses so far.

    Raises:
        EntangleError: Where the file cannot be read, is damaged, or belongs to another training.
    """
    try:
        with safe_open(path, framework="pt", device=str(model.device)) as state:
            if (state.metadata() or {}).get("key") != key:
                raise EntangleError(
                    f"{path} is the checkpoint of another training (other text, settings or seed): delete it"
                )
            checksum = (state.metadata() or {}).get(CHECKSUM)  # which older versions did not write
            if checksum and checksum != _checksum({name: state.get_tensor(name) for name in state.keys()}):  # noqa: SIM118
                raise EntangleError(f"{path} is a checkpoint that is damaged (its checksum says so): delete it")
            for name, parameter in model.named_parameters():
                parameter.copy_(state.get_tensor(f"weight {name}"))
                moments = {moment: state.get_tensor(f"{moment} {name}") for moment in MOMENTS}
                optimiser.state[parameter] = {**moments, "step": moments["step"].cpu()}
            losses: list[float] = state.get_tensor("losses").tolist()
    except (SafetensorError, OSError, RuntimeError) as error:
        raise EntangleError(f"{path} is no checkpoint that can be read ({error}): delete it") from None
    return losses


def _checksum(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of all tensors and their names."""
    hasher = hashlib.sha256()
    for name in sorted(state):
        hasher.update(name.encode())
        hasher.update(state[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
