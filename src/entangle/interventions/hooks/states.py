"""What a pass is given of earlier ones: caches and recurrent states, known by what they are and do, not by the name of
the argument they come in.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class State:
    """A cache or recurrent state as a pass finds it.

    Attributes:
        value: What it is.
        key: The object by which it is known again.
        length: Columns it says that it holds; `None` where it does not say.
        room: Columns it can hold; `None` where it does not say.
    """

    value: Any
    key: Any
    length: int | None
    room: int | None = None

    @property
    def kind(self) -> str:
        """What to call it."""
        return type(self.value).__name__


def states(values: Mapping[str, Any]) -> list[State]:
    """Every cache and recurrent state among the arguments or outputs of a pass.

    An object that nothing is known about is one too, with no length: it may well hold earlier passes.

    Args:
        values: Arguments or outputs by name.
    """
    seen: dict[int, State] = {}
    for name, value in values.items():
        if _harmless(name, value):
            continue
        key: Any = value
        if isinstance(value, tuple | list):
            tensors = list(_tensors(value))
            if not tensors:
                continue
            key = tensors[0]
        if id(key) not in seen:
            length = _length(value)
            seen[id(key)] = State(value, key, length, _room(value) if length is not None else None)
    return list(seen.values())


# Outputs and inputs that are lists of tensors and hold nothing of earlier passes.
_PER_LAYER = ("hidden_states", "attentions", "logits", "embeds", "masks", "image_sizes", "features")
_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device, Tensor, nn.Module)


def _harmless(name: str, value: Any) -> bool:
    if value is None or isinstance(value, _PLAIN) or callable(value) or isinstance(value, Mapping):
        return True
    # Masks of other kinds than tensors (flex attention's) say who attends to whom, not what was computed before.
    return "mask" in name or name.endswith(_PER_LAYER)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _length(value: Any) -> int | None:
    if isinstance(value, tuple | list):
        return _legacy_length(value)
    lengths = list(_lengths(value))
    if lengths and max(lengths) > 0:
        return max(lengths)
    recurrent = _recurrent(value)
    if recurrent:
        return None
    return 0 if lengths or recurrent is False else None


def _lengths(cache: Any) -> Iterator[int]:
    """What its layers say, the first with a length alone: layers of linear attention have none, and may be the first
    that it is asked about.
    """
    ask = getattr(cache, "get_seq_length", None)
    if not callable(ask):
        return
    layers = getattr(cache, "layers", None)
    for index in range(max(1, len(layers) if isinstance(layers, tuple | list) else 1)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                length = int(ask(index) if index else ask())
        except (ValueError, TypeError, IndexError, AttributeError, NotImplementedError):
            continue
        yield length
        if length:
            return


def _recurrent(cache: Any) -> bool | None:
    """Whether a recurrent state is in it; `None` where it keeps none that it tells of."""
    answer = getattr(cache, "has_previous_state", None)
    layers = getattr(cache, "layers", None)
    answers = [_any(getattr(layer, "has_previous_state", None)) for layer in layers] if isinstance(layers, list) else []
    answered = [one for one in answers if one is not None]
    if answered:
        return any(answered)
    if callable(answer):
        try:
            return bool(answer())
        except (ValueError, TypeError, IndexError):
            return None
    return _any(answer)


def _any(answer: Any) -> bool | None:
    if isinstance(answer, Mapping):
        return any(answer.values())
    return answer if isinstance(answer, bool) else None


def _room(cache: Any) -> int | None:
    for name in ("get_max_length", "get_max_cache_shape", "max_cache_len"):
        try:
            answer = getattr(cache, name, None)
            answer = answer() if callable(answer) else answer
        except (ValueError, TypeError, IndexError, AttributeError):
            continue
        if isinstance(answer, int) and answer > 0:
            return answer
    return None


def _legacy_length(value: Any) -> int | None:
    """Of a tuple with keys and values `[row, head, column, d]` for each layer, the columns; `None` for other shapes."""
    layers = [layer for layer in value if isinstance(layer, tuple | list) and len(layer) >= 2]
    if len(layers) != len(value) or not layers:
        return None
    keys, values = layers[0][0], layers[0][1]
    if not (isinstance(keys, Tensor) and isinstance(values, Tensor) and keys.ndim == values.ndim == 4):
        return None
    return keys.shape[2] if keys.shape[:3] == values.shape[:3] else None
