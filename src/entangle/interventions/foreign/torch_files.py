"""What other tools keep with `torch.save`, read without running any of their code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entangle.errors import EntangleError

CONVERT = (
    "where you made it, torch.save({'layer_activations': vector.layer_activations, 'layer_type': vector.layer_type}, "
    "path), or the bare tensors"
)


class Object:
    """Stands in for the one class of another tool that is known here, so that its code is not run."""


def load_torch(path: Path) -> Any:
    """Tensors, numbers, lists and dicts from a file of `torch.save`; steering-vectors' object as a dict of its fields.

    Raises:
        EntangleError: A file that would need unpickling of other classes, which may run any code, or none of torch's.
    """
    allowed = [(Object, "steering_vectors.steering_vector.SteeringVector")]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.simplefilter("ignore")  # of pickle's protocol, before it refuses
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise EntangleError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever unpickling stops at
        raise EntangleError(
            f"{path} is no file of plain tensors: reading it would need unpickling, which runs whatever code is in it; "
            f"save it anew {CONVERT}"
        ) from error
    return vars(loaded) if isinstance(loaded, Object) else loaded


def is_numbers(value: Any) -> bool:
    """Whether it is a tensor of real floats."""
    return isinstance(value, Tensor) and value.is_floating_point()


def layer_vectors(loaded: Mapping[str, Any], path: Path) -> tuple[str, dict[int, Tensor]]:
    """Site and vectors of steering-vectors' `SteeringVector`.

    Its layers are counted as blocks, without the embedding; it adds to the output of the block, or of the module of
    attention or MLP in it.

    Raises:
        EntangleError: Something else under those names, or a place that is no site here.
    """
    sites = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}
    kind, vectors = loaded.get("layer_type", "decoder_block"), loaded["layer_activations"]
    if kind not in sites:
        raise EntangleError(
            f"{path} steers the {kind!r} of its layers, which is no site here: one of {', '.join(map(repr, sites))} "
            "can be read"
        )
    known = isinstance(vectors, Mapping) and all(
        isinstance(n, int) and n >= 0 and is_numbers(v) for n, v in vectors.items()
    )
    if not known or not vectors:
        raise EntangleError(f"layer_activations in {path} must map layer numbers to vectors: save it {CONVERT}")
    return sites[kind], {layer: vector.flatten().float() for layer, vector in vectors.items()}


def is_steered(loaded: Any) -> bool:
    """Whether it is what lm-evaluation-harness's `steered` model reads: hookpoints to settings."""
    return (
        isinstance(loaded, Mapping)
        and bool(loaded)
        and all(isinstance(each, Mapping) and "steering_vector" in each for each in loaded.values())
    )
