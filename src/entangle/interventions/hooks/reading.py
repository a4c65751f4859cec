"""What a pass is given besides its cache, and which module is given it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

OTHER_TEXTS = ("encoder", "cross", "head", "decoder_head")


def around(model: nn.Module, inside: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The innermost language model around a module, whatever wraps it, and the innermost that generates.

    Args:
        model: What the module is in.
        inside: The module.
    """
    path = next((name for name, module in model.named_modules(remove_duplicate=False) if module is inside), "")
    parts = path.split(".") if path else []
    line = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
    models = [module for module in line if isinstance(module, PreTrainedModel)]
    speakers = [module for module in models if hasattr(module, "prepare_inputs_for_generation")]
    return (models or [model])[-1], (speakers or [model])[-1]


def tokens_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """The ids `[row pos]` or embeddings `[row pos d]` that a model is called with, by name or else by what they are."""
    named = (inputs.get(name) for name in ("input_ids", "inputs_embeds", "input"))
    for given in (*named, *inputs.values()):
        if isinstance(given, Tensor) and given.ndim == (3 if given.is_floating_point() else 2):
            return given
    return None


def mask_of(inputs: Mapping[str, Any], tokens: Tensor) -> Tensor | None:
    """The mask that says which tokens are padding; of another shape than `[row column]`, it says less."""
    mask = inputs.get("attention_mask")
    if mask is not None:
        return mask if isinstance(mask, Tensor) else None
    masks = (value for name, value in inputs.items() if name.endswith("mask") and not name.startswith(OTHER_TEXTS))
    fitting = (x for x in masks if isinstance(x, Tensor) and x.ndim == 2 and len(x) == len(tokens))
    return next((x for x in fitting if x.shape[1] >= tokens.shape[1]), None)


def positions_of(inputs: Mapping[str, Any], tokens: Tensor) -> Tensor | None:
    """The positions that the model is told, `[row or 1, pos]`; `None` where they are of another kind."""
    positions = inputs.get("position_ids")
    if positions is None:
        positions = inputs.get("cache_position")
    if not isinstance(positions, Tensor) or positions.is_floating_point():
        return None
    positions = positions[None] if positions.ndim == 1 else positions
    fits = positions.ndim == 2 and positions.shape[1] == tokens.shape[1] and positions.shape[0] in (1, len(tokens))
    return positions if fits else None
