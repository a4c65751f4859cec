"""Small inputs that a model can be probed with: a few random tokens, an image, a moment of sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from entangle.errors import EntangleError

BATCH, POSITIONS, SAMPLES, FRAMES = 2, 7, 4000, 64


def probe_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Two random examples of what the model's `main_input_name` says it takes, in sizes from its configuration.

    Raises:
        EntangleError: The model does not say what it takes, or takes something else.

    Example:
        >>> en.models.probe_inputs(model)["input_ids"].shape
        torch.Size([2, 7])
    """
    name = getattr(model, "main_input_name", None)
    config = getattr(model, "config", None)
    if config is None or name not in MAKERS:
        raise EntangleError(
            f"probing needs to know what the model takes, but {type(model).__name__} has the main input {name!r}: pass "
            "example inputs, Atlas(model, inputs={...})"
        )
    generator = torch.Generator().manual_seed(0)
    inputs = {str(name): MAKERS[name](config, generator)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _tokens(config, generator)
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return {name: x.to(device, dtype if x.is_floating_point() else x.dtype) for name, x in inputs.items()}


def _tokens(config: Any, generator: Generator) -> Tensor:
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = int(text_config.vocab_size)
    return torch.randint(min(10, size // 2), size, (BATCH, POSITIONS), generator=generator)


def _pixels(config: Any, generator: Generator) -> Tensor:
    config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    frames = getattr(config, "num_frames", None)
    shape = (BATCH, *([frames] if frames else []), getattr(config, "num_channels", None) or 3, height, width)
    return torch.randn(shape, generator=generator)


def _waveform(config: Any, generator: Generator) -> Tensor:
    mel_bins = getattr(config, "num_mel_bins", None)
    if mel_bins and getattr(config, "patch_size", None):  # a spectrogram cut into patches
        return torch.randn(BATCH, config.max_length, mel_bins, generator=generator)
    return torch.randn(BATCH, SAMPLES, generator=generator)


def _features(config: Any, generator: Generator) -> Tensor:
    per_frame = getattr(config, "input_feat_per_channel", None)
    if per_frame:
        return torch.randn(BATCH, FRAMES, per_frame, generator=generator)
    if hasattr(config, "num_mel_bins"):
        positions = getattr(config, "max_source_positions", None)
        return torch.randn(BATCH, config.num_mel_bins, 2 * positions if positions else FRAMES, generator=generator)
    return torch.randn(BATCH, FRAMES, config.feature_projection_input_dim, generator=generator)


MAKERS: dict[Any, Callable[[Any, Generator], Tensor]] = {
    "input_ids": _tokens,
    "pixel_values": _pixels,
    "input_values": _waveform,
    "input_features": _features,
}
