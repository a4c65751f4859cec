"""Small inputs that a model can be probed with: a few random tokens, pixels or audio frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from entangle.errors import EntangleError

BATCH, POSITIONS = 2, 7


def probe_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Inputs of two examples, drawn with a seed of their own, for whatever the model's `main_input_name` is.

    Raises:
        EntangleError: the model does not say what it takes.
    """
    name = getattr(model, "main_input_name", None)
    config = getattr(model, "config", None)
    generator = torch.Generator().manual_seed(0)
    if name == "input_ids" and config is not None:
        inputs = {"input_ids": _tokens(config, generator)}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = _tokens(config, generator)
    else:
        raise EntangleError(
            f"probing needs to know what the model takes, but {type(model).__name__} has the main input {name!r}: "
            "pass example inputs, "
            "Atlas(model, inputs={...})"
        )
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    return {name: x.to(device) for name, x in inputs.items()}


def _tokens(config: Any, generator: torch.Generator) -> Tensor:
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = int(text_config.vocab_size)
    return torch.randint(min(10, size // 2), size, (BATCH, POSITIONS), generator=generator)
