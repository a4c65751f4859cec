"""Activations as other libraries hold them: xarray, HuggingFace datasets, TransformerLens."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from entangle.activations.inputs.tokens import MEAN
from entangle.errors import EntangleError

# Where a TransformerLens cache holds each site. Its `hook_attn_out` and `hook_mlp_out` come after the norm that some
# models put there (Gemma 2, OLMo 2); `attn.hook_out` and `mlp.hook_out` never do.
CACHE_NAMES = {
    "resid_pre": "hook_resid_pre",
    "z": "attn.hook_z",
    "attn_out": "attn.hook_out",
    "resid_mid": "hook_resid_mid",
    "mlp_post": "mlp.hook_post",
    "mlp_out": "mlp.hook_out",
    "resid_post": "hook_resid_post",
}


class _Captured(Protocol):
    """What is read of `Activations`, which import this module."""

    @property
    def rows(self) -> Tensor: ...
    @property
    def input_ids(self) -> Sequence[Sequence[int]]: ...
    @property
    def fingerprint(self) -> Mapping[str, Any]: ...
    @property
    def sites(self) -> tuple[str, ...]: ...
    def layers(self, site: str) -> list[int]: ...
    def __getitem__(self, site: str) -> Tensor: ...


def as_array(x: Tensor) -> Any:
    """A numpy array; `bfloat16`, which numpy does not have, as `float32`."""
    return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()


def to_xarray(acts: _Captured, site: str) -> Any:
    """See `Activations.to_xarray`."""
    xarray = _package("xarray")
    x = as_array(acts[site])
    example, position = acts.rows.T.numpy()
    one_each = acts.rows[:, 0].tolist() == list(range(len(acts.input_ids)))
    row = "example" if one_each else "token"
    dims = (row, "layer", *(("head", "d_head") if x.ndim == 4 else ("size",)))
    coordinates = {"layer": acts.layers(site), "example": (row, example), "position": (row, position)}
    return xarray.DataArray(x, dims=dims, coords=coordinates, name=site, attrs={"model": str(acts.fingerprint)})


def to_dataset(acts: _Captured) -> Any:
    """See `Activations.to_dataset`."""
    datasets = _package("datasets")
    columns: dict[str, Any] = {"example": acts.rows[:, 0].numpy(), "position": acts.rows[:, 1].numpy()}
    features = dict.fromkeys(columns, datasets.Value("int64"))
    columns["token"] = [_token(acts, example, position) for example, position in acts.rows.tolist()]
    features["token"] = datasets.Value("int64")
    for site in acts.sites:
        columns[site] = x = as_array(acts[site])
        array = datasets.Array3D if x.ndim == 4 else datasets.Array2D
        features[site] = array(shape=x.shape[1:], dtype=str(x.dtype))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features)).with_format(
        "torch", columns=list(acts.sites), output_all_columns=True
    )


def to_cache(acts: _Captured, model: Any) -> Any:
    """See `Activations.to_cache`."""
    cache = _package("transformer_lens").ActivationCache
    lengths = [len(row) for row in acts.input_ids]
    every = [(i, p) for i, n in enumerate(lengths) for p in range(n)]
    rows = [tuple(row) for row in acts.rows.tolist()]
    one_each = [i for i, _ in rows] == list(range(len(lengths)))
    if rows != every and not one_each:
        raise EntangleError(
            "a cache is [batch, pos, ...], so it needs every token of each example, or one: collect with "
            "tokens='all', special_tokens=True, or with tokens='last'"
        )
    width = max(lengths) if rows == every else 1
    example, position = acts.rows.T if rows == every else (acts.rows[:, 0], torch.zeros(len(rows), dtype=torch.long))
    tensors: dict[str, Tensor] = {}
    for site in acts.sites:
        x = acts[site]
        for column, layer in enumerate(acts.layers(site)):
            padded = x.new_full((len(lengths), width, *x.shape[2:]), float("nan"))
            padded[example, position] = x[:, column]
            tensors[f"blocks.{layer}.{CACHE_NAMES[site]}"] = padded
    return cache(tensors, model)


def from_cache(cache: Any, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
    """The fields of the Activations in a TransformerLens cache; see `Activations.from_cache`."""
    ids = torch.as_tensor(input_ids).cpu()
    mask = torch.ones_like(ids).bool() if attention_mask is None else torch.as_tensor(attention_mask).bool().cpu()
    if ids.ndim != 2 or mask.shape != ids.shape:
        shapes = f"{tuple(ids.shape)} and {tuple(mask.shape)}"
        raise EntangleError(f"input_ids and attention_mask must both be [example pos], but are {shapes}")
    batched = getattr(cache, "has_batch_dim", True)
    layers: dict[str, list[int]] = {}
    parts: dict[str, list[Tensor]] = {}
    n_layers = 1 + max((int(name.split(".")[1]) for name in cache if name.startswith("blocks.")), default=-1)
    for site, hook in CACHE_NAMES.items():
        for layer in range(n_layers):
            name = f"blocks.{layer}.{hook}"
            if name not in cache:
                continue
            x = (cache[name] if batched else cache[name][None]).detach().cpu()
            if x.shape[:2] != ids.shape:
                raise EntangleError(
                    f"{name} is {tuple(x.shape)}, but input_ids are {tuple(ids.shape)}: pass the tokens the cache was "
                    "made with, and cache every position"
                )
            layers.setdefault(site, []).append(layer)
            parts.setdefault(site, []).append(x[mask])
    if not parts:
        names = ", ".join(f"blocks.0.{hook}" for hook in CACHE_NAMES.values())
        raise EntangleError(f"the cache holds none of the names that are sites here ({names}): cache one of these")
    for site, here in parts.items():
        if len({x.shape for x in here}) > 1:
            raise EntangleError(f"{site} is not of one shape in all layers of the cache: cache these layers apart")
    counted = mask.long().cumsum(1) - 1
    return {
        "data": {site: torch.stack(here, 1) for site, here in parts.items()},
        "site_layers": layers,
        "rows": torch.stack([mask.nonzero()[:, 0], counted[mask]], 1),
        "input_ids": [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)],
    }


def _token(acts: _Captured, example: int, position: int) -> int | None:
    ids = acts.input_ids[example]
    return None if position == MEAN or not ids else ids[position]


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EntangleError(f"this needs the package {name}, which is not installed: pip install {name}") from error
