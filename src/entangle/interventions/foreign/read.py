"""Vectors and autoencoders that other tools wrote, as edits of this library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entangle.errors import EntangleError
from entangle.interventions.base import BaseEdit
from entangle.interventions.edit import Edit
from entangle.interventions.edits.directions import AddDirection, Affine, Compose, Set
from entangle.interventions.files import KIND, from_pretrained
from entangle.interventions.foreign.autoencoders import SETTINGS, Autoencoder, read_saelens
from entangle.interventions.foreign.gguf import read_gguf
from entangle.interventions.foreign.modules import output_place
from entangle.interventions.foreign.torch_files import is_numbers, is_steered, layer_vectors, load_torch
from entangle.models import Atlas, underlying


def read(
    path: str | Path,
    *,
    model: Any = None,
    layer: int | None = None,
    site: str | None = None,
    site_out: str | None = None,
    embedding: bool | None = None,
) -> BaseEdit | Autoencoder:
    """A steering vector or an autoencoder that another tool wrote; what it is, its content tells.

    - A GGUF control vector of repeng or llama.cpp: `direction.N` is added to the output of block N, counted from 0.
    - steering-vectors' `SteeringVector`, kept by `torch.save`: layers are blocks counted from 0; "decoder_block" is
      `resid_post`, "self_attn" `attn_out`, "mlp" `mlp_out`.
    - A file of lm-evaluation-harness's `steered` model: hookpoints are modules of `model.base_model`, and the vectors
      act on their outputs; needs `model`.
    - A tensor `[layer, d]`, as persona vectors are kept: row i is `hidden_states[i]`, so with one row more than there
      are blocks the first is the embedding's and row i belongs to the output of block i - 1.
    - A directory of SAELens: an autoencoder with `encode`, `decode`, `W_dec` and `feature(index, value)`.
    - A directory of `edit.save_pretrained`.

    At alpha 1 an edit does what the tool does at a strength of 1.

    Args:
        path: The file or directory.
        model: The model it will be used with: its architecture and widths are then compared, and its layers counted.
        layer: Only the vector of this block, counted from 0; needed where the file holds one per layer and the tool
            itself adds one of them at a time.
        site: For a tensor without a place, a site (`"resid_post"` by default); for an autoencoder whose directory does
            not say where it reads, a full name such as `"blocks.3.hook_out"`.
        site_out: Likewise, where a transcoder writes.
        embedding: Whether the first row of a tensor `[layer, d]` is the embedding's, where no model is given to tell.

    Returns:
        An edit, or an autoencoder.

    Raises:
        EntangleError: A file of no known kind, one that would need unpickling, one of another model, or one whose place
            cannot be told.

    Example:
        >>> vector = en.AddDirection(torch.ones(model.config.hidden_size), "resid_post", 1)
        >>> path = vector.export("vector.pt", format="steering-vectors", model=model)
        >>> edit = read(path, model=model)
        >>> edit.site, edit.layer
        ('resid_post', 1)
    """
    place, inner = Path(path), None if model is None else underlying(model)
    if not place.exists():
        raise EntangleError(f"there is no {place}: give the file or directory that the tool wrote")
    if place.is_dir():
        if (place / KIND.manifest).is_file():
            return from_pretrained(place, model=inner)
        if (place / SETTINGS).is_file():
            autoencoder = read_saelens(place, site, site_out)
            _check_autoencoder(autoencoder, inner, place)
            return autoencoder
        raise EntangleError(f"{place} holds no autoencoder of SAELens ({SETTINGS}) and no edit: give one of these")
    with place.open("rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        return _added("resid_post", read_gguf(place, inner), layer, inner, place)
    if start[:2] != b"PK" and not start.startswith(b"\x80"):
        raise EntangleError(
            f"{place} is neither a GGUF file nor one of torch.save: give one of the kinds that are known"
        )
    loaded = load_torch(place)
    if isinstance(loaded, Mapping) and "layer_activations" in loaded:
        return _added(*layer_vectors(loaded, place), layer, inner, place)
    if is_steered(loaded):
        return _steered(loaded, inner, place)
    if is_numbers(loaded):
        return _rows(loaded, site or "resid_post", layer, inner, embedding, place)
    raise EntangleError(
        f"{place} holds a {type(loaded).__name__} that is no vector known here: give a tensor [layer, d], a "
        "SteeringVector, or a file of lm-evaluation-harness"
    )


def _added(site: str, vectors: Mapping[int, Tensor], layer: int | None, model: Any, path: Path) -> BaseEdit:
    """The vectors, each added at its layer."""
    if layer is not None:
        if layer not in vectors:
            raise EntangleError(
                f"{path} has no vector for layer {layer}, only for {sorted(vectors)}: choose one of these"
            )
        vectors = {layer: vectors[layer]}
    edits = [AddDirection(vector, site, number) for number, vector in sorted(vectors.items())]
    if model is not None:
        atlas = Atlas(model)
        for edit in edits:
            _check_width(edit.vector, atlas, site, int(edit.layer or 0), path)
    return edits[0] if len(edits) == 1 else Compose(edits)


def _check_width(vector: Tensor, atlas: Atlas, site: str, layer: int, path: Path) -> None:
    if layer >= atlas.n_layers:
        raise EntangleError(
            f"{path} has a vector for layer {layer}, but the model has layers 0 to {atlas.n_layers - 1}: it was made "
            "for another model"
        )
    size = atlas.size(site, layer)
    if vector.numel() != size:
        raise EntangleError(
            f"{path} has vectors of {vector.numel()} numbers, but {site} in layer {layer} of the model has {size}: it "
            "was made for another model"
        )


def _rows(rows: Tensor, site: str, layer: int | None, model: Any, embedding: bool | None, path: Path) -> BaseEdit:
    """One row of a tensor `[layer, d]`, or the one vector `[d]`."""
    if rows.ndim not in (1, 2) or not rows.numel():
        raise EntangleError(f"{path} holds a tensor {list(rows.shape)}: a vector is [d] or [layer, d]")
    if layer is None:
        raise EntangleError(
            f"{path} holds a tensor {list(rows.shape)} and no places: pass layer=, the block (counted from 0) after "
            "which to add it"
        )
    if rows.ndim == 1:
        return _added(site, {layer: rows}, layer, model, path)
    if model is not None:
        blocks = Atlas(model).n_layers
        if len(rows) not in (blocks, blocks + 1) or embedding not in (None, len(rows) == blocks + 1):
            raise EntangleError(
                f"{path} has {len(rows)} rows, but the model has {blocks} blocks, so it needs {blocks} or, with "
                f"the embedding's, {blocks + 1}: it was made for another model"
            )
        embedding = len(rows) == blocks + 1
    if embedding is None:
        raise EntangleError(
            f"{path} has {len(rows)} rows, and whether the first is the embedding's is not said: pass model=, or "
            "embedding=True (as persona vectors are kept) or False"
        )
    start = int(embedding)
    return _added(site, dict(enumerate(rows[start:])), layer, model, path)


def _steered(loaded: Mapping[str, Mapping[str, Any]], model: Any, path: Path) -> BaseEdit:
    """Every hookpoint's addition or clamping, at the place that its module's output is."""
    if model is None:
        raise EntangleError(f"{path} names modules ({next(iter(loaded))!r}), which only a model can place: pass model=")
    atlas = Atlas(model)
    edits: list[Edit] = []
    for name, settings in loaded.items():
        vector, strength = settings["steering_vector"], float(settings.get("steering_coefficient", 1.0))
        action: Any = settings.get("action", "add")
        bias: Any = settings.get("bias")
        if not is_numbers(vector) or vector.numel() != vector.shape[-1] or settings.get("head_index") is not None:
            raise EntangleError(
                f"{path} has no single vector [d] for the whole width at {name!r}: one per head, or per position, "
                "cannot be read"
            )
        place, vector = output_place(model, atlas, name), vector.flatten().float()
        _check_width(vector, atlas, place.site, place.layer, path)
        if action == "add":
            edits.append(AddDirection(strength * vector, place.site, place.layer))
        elif action == "clamp" and bias is None:
            edits.append(Set(vector, strength, place.site, place.layer))
        elif action == "clamp" and is_numbers(bias):
            unit = vector / torch.linalg.vector_norm(vector)
            edits.append(
                Affine(
                    place.site, place.layer, None, bias.flatten().float(), -unit[:, None], unit[None], strength * unit
                )
            )
        else:
            raise EntangleError(f"{path} has the action {action!r} at {name!r}; known are 'add' and 'clamp'")
    return edits[0] if len(edits) == 1 else Compose(edits)


def _check_autoencoder(autoencoder: Autoencoder, model: Any, path: Path) -> None:
    if model is None:
        return
    atlas = Atlas(model)
    for name, layer, size in (
        (autoencoder.site, autoencoder.layer, autoencoder.W_enc.shape[0]),
        (
            getattr(autoencoder, "site_out", autoencoder.site),
            getattr(autoencoder, "layer_out", autoencoder.layer),
            autoencoder.W_dec.shape[1],
        ),
    ):
        site, number = atlas.resolve(name) if layer is None else (name, layer)
        _check_width(torch.empty(size), atlas, site, number, path)
