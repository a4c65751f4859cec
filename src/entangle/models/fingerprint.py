"""What makes two models the same model: architecture, sizes, and a hash of some weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from entangle.errors import EntangleError

N_SAMPLED = 16
N_ELEMENTS = 4096
SIZE_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """A JSON-able mark of the model, the same wherever the same weights are loaded, on any device.

    Args:
        model: any module; a HuggingFace model also tells its `model_type` and sizes.

    Returns:
        `architecture`, `model_type`, the sizes its configuration names, `n_parameters`, `dtype`, and `weights`: the
        SHA-256 of the first 4096 numbers of sixteen parameters spread evenly over the model.
    """
    parameters = {name: p for name, p in model.named_parameters() if not p.is_meta}
    config = getattr(model, "config", None)
    text_config = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    sizes = {name: getattr(text_config, name, None) for name in SIZE_NAMES}
    return {
        "architecture": type(model).__name__,
        "model_type": getattr(config, "model_type", None),
        **{name: size for name, size in sizes.items() if isinstance(size, int)},
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(next(iter(parameters.values())).dtype).removeprefix("torch.") if parameters else None,
        "weights": _weights_hash(parameters),
    }


def check_fingerprint(saved: Mapping[str, Any], model: nn.Module, *, what: str) -> None:
    """Raise an `EntangleError` that names the differences unless `model` is the one `saved` was taken from.

    Args:
        saved: what `fingerprint` gave when `what` was made.
        model: the model it is about to be used with.
        what: named in the message, such as "these activations".
    """
    now = fingerprint(model)
    different = [name for name in now if saved.get(name) != now[name]]
    if different:
        changes = ", ".join(f"{name} {_short(saved.get(name))} there, {_short(now[name])} here" for name in different)
        raise EntangleError(
            f"{what} came from another model ({changes}): use the model they were made with, or make them anew"
        )


def _weights_hash(parameters: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    names = list(parameters)
    step = max(1, (len(names) - 1) // (N_SAMPLED - 1)) if len(names) > 1 else 1
    for name in names[::step]:
        head = parameters[name].detach().flatten()[:N_ELEMENTS]
        values = head.float() if head.is_floating_point() else head.to(torch.int64)
        digest.update(name.encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:8]}..."
