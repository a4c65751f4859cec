"""Edits as what other steering libraries and servers ask for: vectors added to the output of blocks or branches."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.interventions.foreign.modules import output_place
from entangle.models.atlas import Atlas
from entangle.models.place import Place

Vectors = Mapping[Place, Tensor]
# What steering-vectors calls the place -> our sites whose constants go there, and what its module's name must hold.
BRANCHES = {"self_attn": (("z", "attn_out"), ("attn", "attention")), "mlp": (("mlp_post", "mlp_out"), ("mlp",))}


def steering_vectors(path: Path, model: nn.Module, vectors: Vectors) -> None:
    """The fields of a `SteeringVector`, as plain tensors: `SteeringVector(**torch.load(path))`.

    Its layers are counted as blocks; it adds to the output of the block, of the attention or of the MLP in it.
    """
    kind = _branch(vectors)
    if kind != "decoder_block":
        atlas = Atlas(model)
        for place in vectors:
            name = _branch_name(model, place, atlas)
            if not any(word in name.rpartition(".")[2] for word in BRANCHES[kind][1]):
                raise EntangleError(
                    f"steering-vectors finds the {kind} of a layer by its name, and here it is {name!r}: bake the edit "
                    "instead"
                )
    layers: dict[int, Tensor] = {}
    for place, vector in vectors.items():
        layers[place.layer] = layers.get(place.layer, 0) + vector
    torch.save({"layer_activations": layers, "layer_type": kind}, path)


def vllm_lens(path: Path, model: nn.Module, vectors: Vectors) -> None:
    """`SamplingParams(**json)`: vllm-lens's `SteeringVector` in `extra_args`, scale 1, added at every position."""
    layers = _blocks(vectors, "vllm-lens")
    stacked = torch.stack(list(layers.values()))
    vector = {
        "activations": {
            "data": _base64(stacked),
            "dtype": "float32",
            "original_dtype": "torch.float32",
            "shape": list(stacked.shape),
        },
        "layer_indices": list(layers),
        "scale": 1.0,
        "norm_match": False,
        "position_indices": None,
    }
    path.write_text(json.dumps({"extra_args": {"apply_steering_vectors": [vector]}}))


def easysteer(path: Path, model: nn.Module, vectors: Vectors) -> None:
    """`SteeringSpec(**json)`: an EasySteer `VectorSpec` that holds its vectors, for prompt and generation."""
    layers = _blocks(vectors, "EasySteer")
    tensors = {f"layer.{layer}": {"shape": list(v.shape), "data": _base64(v)} for layer, v in layers.items()}
    digest = hashlib.sha256(b"direction:1")
    for name in sorted(tensors):
        vector = layers[int(name.removeprefix("layer."))]
        digest.update(name.encode() + str(tuple(vector.shape)).encode() + _bytes(vector))
    payload = {"version": 1, "kind": "direction", "tensors": tensors, "extra": {}, "sha256": digest.hexdigest()}
    vector_spec = {
        "data": payload,
        "algorithm": "direct",
        "scale": 1.0,
        "layers": sorted(layers),
        "normalize": False,
        "apply": {"phases": ["prompt", "generation"]},
    }
    path.write_text(json.dumps({"vectors": [vector_spec]}))


def _blocks(vectors: Vectors, tool: str) -> dict[int, Tensor]:
    """The vectors by block, if they are added to the output of whole blocks."""
    for place in vectors:
        if place.site != "resid_post":
            raise EntangleError(
                f"{tool} adds to the output of whole blocks, so it cannot say this edit at {place.site} in layer "
                f"{place.layer}: bake the edit and serve the model instead"
            )
    return {place.layer: vector.float().contiguous() for place, vector in vectors.items()}


def _branch(vectors: Vectors) -> str:
    """What steering-vectors calls the one kind of place that all vectors are for."""
    kinds = {
        "decoder_block"
        if place.site == "resid_post"
        else next((kind for kind, (sites, _) in BRANCHES.items() if place.site in sites), place.site)
        for place in vectors
    }
    unknown = kinds - {"decoder_block", *BRANCHES}
    if unknown or len(kinds) > 1:
        raise EntangleError(
            f"a SteeringVector adds to blocks, or to attentions, or to MLPs, one kind a file, and this edit acts at "
            f"{', '.join(sorted({place.site for place in vectors}))}: bake the edit instead, or export its parts"
        )
    return kinds.pop()


def _branch_name(model: nn.Module, place: Place, atlas: Atlas) -> str:
    """The name of the whole attention or MLP around a place, if its output is the place's module's."""
    block = next(name for name, module in model.named_modules() if module is place.block)
    name = f"{block}.{place.path.removeprefix(f'{block}.').partition('.')[0]}"
    same = output_place(model, atlas, name)
    meant = "attn_out" if place.site in BRANCHES["self_attn"][0] else "mlp_out"
    if (same.site, same.layer) != (meant, place.layer):
        raise EntangleError(f"the output of {name} is not that of {place.path}: a SteeringVector would be another edit")
    return name


def _base64(tensor: Tensor) -> str:
    return base64.b64encode(_bytes(tensor)).decode("ascii")


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().float().contiguous().numpy().tobytes()
