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
        SHA-256 of the first 4096 numbers of sixteen parameters spread evenly over the model, also where accelerate has
        offloaded them.
    """
    parameters = dict(model.named_parameters())
    config = getattr(model, "config", None)
    text_config = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    sizes = {name: getattr(text_config, name, None) for name in SIZE_NAMES}
    return {
        "architecture": type(model).__name__,
        "model_type": getattr(config, "model_type", None),
        **{name: size for name, size in sizes.items() if isinstance(size, int)},
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(next(iter(parameters.values())).dtype).removeprefix("torch.") if parameters else None,
        "weights": _weights_hash(model, parameters),
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


def _weights_hash(model: nn.Module, parameters: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    names = list(parameters)
    step = max(1, (len(names) - 1) // (N_SAMPLED - 1)) if len(names) > 1 else 1
    for name in names[::step]:
        parameter = _offloaded(model, name) if parameters[name].is_meta else parameters[name]
        if parameter is None:
            continue
        head = parameter.detach().flatten()[:N_ELEMENTS]
        values = head.float() if head.is_floating_point() else head.to(torch.int64)
        digest.update(name.encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()


def _offloaded(model: nn.Module, name: str) -> Tensor | None:
    """A parameter that accelerate keeps on disk or in memory until its module runs."""
    path, _, own = name.rpartition(".")
    hook = getattr(model.get_submodule(path), "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        weights = getattr(one, "weights_map", None)
        if weights is not None:
            return torch.as_tensor(weights[own])
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:8]}..."
