"""Results as plain lists and numbers, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from entangle.metrics import Estimate


def plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A result's fields with each estimate as its three columns, tensors as lists, and None where nothing is known."""
    columns: dict[str, Any] = {}
    for name, value in fields.items():
        columns |= value.columns(name) if isinstance(value, Estimate) else {name: value}
    return {name: _listed(value) for name, value in columns.items()}


def _listed(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _listed(value.tolist())
    if isinstance(value, Mapping):
        return {key: _listed(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
