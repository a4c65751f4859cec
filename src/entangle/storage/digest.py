"""One hash of a value's content, so that a saved result can tell whether it belongs to what is asked for now."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import nn

from entangle.errors import EntangleError


def digest(value: Any) -> str:
    """16 hexadecimal digits that change with any number, name or weight inside `value`.

    An object that is not known by its fields alone, such as one that stands for a file, says by what in `content()`.
    """
    return hashlib.sha256(_bytes(value)).hexdigest()[:16]


def _bytes(value: Any) -> bytes:
    kind = type(value).__qualname__.encode()
    match value:
        case (
            None
            | bool()
            | int()
            | float()
            | str()
            | bytes()
            | os.PathLike()
            | np.generic()
            | torch.dtype()
            | torch.device()
        ):
            body = repr(value).encode()
        case torch.Tensor():
            body = str(tuple(value.shape)).encode() + value.detach().cpu().double().numpy().tobytes()
        case np.ndarray():
            body = str(value.shape).encode() + value.tobytes()
        case nn.Module():
            # Every weight, since a baked edit changes few of them, and buffers that are not saved, which may carry one.
            body = _bytes(value.state_dict() | dict(value.named_buffers()))
        case _ if callable(getattr(value, "content", None)):
            body = _bytes(value.content())
        case Mapping():
            body = b"".join(_part(key) + _part(value[key]) for key in sorted(value, key=repr))
        case Set():
            body = b"".join(sorted(map(_part, value)))
        case Sequence():
            body = b"".join(map(_part, value))
        case _ if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            body = b"".join(_part(field.name) + _part(getattr(value, field.name)) for field in fields)
        case _ if callable(value) and hasattr(value, "__qualname__"):
            body = f"{value.__module__}.{value.__qualname__}".encode()  # a function or a class goes by its name
        case _ if hasattr(value, "__dict__"):
            body = _bytes(vars(value))
        case _:
            raise EntangleError(
                f"a {kind.decode()} has no content that can be compared; use a dataclass of numbers and texts"
            )
    return kind + b":" + body


def _part(value: Any) -> bytes:
    """The hash and not the content, so that where one part ends and the next begins matters."""
    return hashlib.sha256(_bytes(value)).digest()
