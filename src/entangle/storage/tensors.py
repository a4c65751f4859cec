"""Every bit of a tensor as one hash, whatever its type, its layout and the device it lies on."""

from __future__ import annotations

from typing import Any

import torch
import xxhash
from torch import Tensor

from entangle.errors import EntangleError

CHUNK = 2**26  # bytes that are copied from another device at a time


def tensor_hash(x: Tensor) -> str:
    """32 hexadecimal digits (XXH3, 128 bits) that change with the type, the shape and any bit of a tensor.

    The same for the same numbers on any device and in any memory layout: strides, views and storage that is shared with
    other tensors do not matter. A sharded tensor is gathered, so every process that holds a part of it must ask.

    Args:
        x: Dense, sparse, nested or quantised, of any type. A subclass that holds tensors is known by those.

    Returns:
        The digits.

    Raises:
        EntangleError: A tensor without numbers (on the meta device), or of a kind that cannot be read.
    """
    hasher = xxhash.xxh3_128()
    try:
        _update(hasher, x.detach())
    except (RuntimeError, TypeError, NotImplementedError) as error:
        why = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise EntangleError(
            f"a tensor of type {type(x).__name__}, {x.dtype} and layout {x.layout} cannot be read ({why[0]}): "
            "convert it to a dense one"
        ) from error
    return hasher.hexdigest()


def _update(hasher: Any, x: Tensor) -> None:
    if hasattr(x, "full_tensor"):  # sharded over processes
        x = x.full_tensor()
    parts = _parts(x)
    if parts is None:
        hasher.update(f"{x.dtype}{tuple(x.shape)}".encode())
        _update_dense(hasher, x)
        return
    kind, inner, rest = parts
    hasher.update(f"{kind}{x.dtype}{len(inner)}{rest}".encode())
    for part in inner:
        _update(hasher, part)


def _parts(x: Tensor) -> tuple[str, list[Tensor], Any] | None:  # noqa: PLR0911 (one for each kind)
    """What a tensor that is no plain array of numbers is made of: its kind, tensors, and the rest; else `None`."""
    if x.is_nested:
        return "nested", list(x.unbind()), None
    if hasattr(x, "__tensor_flatten__"):
        names, context = x.__tensor_flatten__()
        return type(x).__name__, [getattr(x, name) for name in names], context
    size = tuple(x.shape)
    if x.layout is torch.sparse_coo:
        x = x.coalesce()
        return "coo", [x.indices(), x.values()], size
    if x.layout in (torch.sparse_csr, torch.sparse_bsr):
        return str(x.layout), [x.crow_indices(), x.col_indices(), x.values()], size
    if x.layout in (torch.sparse_csc, torch.sparse_bsc):
        return str(x.layout), [x.ccol_indices(), x.row_indices(), x.values()], size
    if x.is_quantized and x.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return "quantised", [x.int_repr()], (x.q_scale(), x.q_zero_point())
    if x.is_quantized:
        scales = [x.q_per_channel_scales(), x.q_per_channel_zero_points()]
        return "quantised", [x.int_repr(), *scales], x.q_per_channel_axis()
    return None


def _update_dense(hasher: Any, x: Tensor) -> None:
    if x.is_meta:
        raise EntangleError(
            f"a tensor of shape {list(x.shape)} has no numbers (it is on the meta device): load the weights first"
        )
    if x.layout is not torch.strided:
        x = x.to_dense()
    flat = x.resolve_conj().resolve_neg().reshape(-1)
    if not flat.is_contiguous():  # one number repeated
        flat = flat.contiguous()
    octets = flat.view(torch.uint8)
    if octets.device.type == "cpu":
        hasher.update(octets.numpy())  # as it lies there, without a copy
        return
    for start in range(0, len(octets), CHUNK):
        hasher.update(octets[start : start + CHUNK].cpu().numpy())
