"""One hash of a value's content, so that a saved result can tell whether it belongs to what is asked for now."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import nn

from entangle.models.fingerprint import fingerprint


def digest(value: Any) -> str:
    """16 hexadecimal digits that change with any number, name or weight inside `value`."""
    return hashlib.sha256(_bytes(value)).hexdigest()[:16]


def _bytes(value: Any) -> bytes:
    kind = type(value).__qualname__.encode()
    match value:
        case None | bool() | int() | float() | str() | bytes():
            body = repr(value).encode()
        case torch.Tensor():
            body = str(tuple(value.shape)).encode() + value.detach().cpu().double().numpy().tobytes()
        case np.ndarray():
            body = str(value.shape).encode() + value.tobytes()
        case nn.Module():
            body = _bytes(fingerprint(value))
        case Mapping():
            body = b"".join(_part(key) + _part(value[key]) for key in sorted(value, key=repr))
        case Set():
            body = b"".join(sorted(map(_part, value)))
        case Sequence():
            body = b"".join(map(_part, value))
        case _ if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            body = b"".join(_part(field.name) + _part(getattr(value, field.name)) for field in fields)
        case _ if hasattr(value, "__dict__") and not callable(value):
            body = _bytes(vars(value))
        case _:
            # What has no content to look at (functions, classes) goes by its name.
            body = getattr(value, "__qualname__", kind.decode()).encode()
    return kind + b":" + body


def _part(value: Any) -> bytes:
    """The hash and not the content, so that where one part ends and the next begins matters."""
    return hashlib.sha256(_bytes(value)).digest()
