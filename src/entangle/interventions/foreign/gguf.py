"""Control vectors in GGUF, as repeng and llama.cpp write them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entangle.errors import EntangleError

# What llama.cpp calls an architecture -> what transformers calls those that it runs under that name.
ALSO = {
    "llama": ("llama", "mistral", "mixtral"),
    "phi2": ("phi",),
    "commandr": ("cohere",),
    "deepseek2": ("deepseekv2", "deepseekv3"),
}


def read_gguf(path: Path, model: Any) -> dict[int, Tensor]:
    """The directions of a control vector by the block to whose output they are added, counted from 0.

    `direction.N` is added to the output of block N in repeng (`model.layers[N]`) and in llama.cpp, which has none for
    block 0: neither counts the embedding.

    Args:
        path: The file.
        model: The model that it is meant for, whose architecture is then compared with the one stated; or None.

    Raises:
        EntangleError: No control vector, a damaged one, or one of another architecture.
    """
    try:
        import gguf
    except ImportError as error:
        raise EntangleError("reading GGUF needs the package gguf: pip install gguf") from error
    try:
        reader = gguf.GGUFReader(path)
        architecture = _text(reader, "general.architecture")
        hint = _text(reader, "controlvector.model_hint")
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (OSError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise EntangleError(f"{path} is no whole GGUF file ({why[:120]}): write it again") from error
    if architecture != "controlvector":
        raise EntangleError(
            f"a control vector is a GGUF file of architecture 'controlvector', but {path} is one of {architecture!r}: "
            "give the vector's file, or this one as a model"
        )
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if hint and model_type and not _is_same(hint, str(model_type)):
        raise EntangleError(
            f"{path} states that it is for {hint!r}, but the model is {model_type!r}: give it the model it was made for"
        )
    directions: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"direction\.(\d+)", name)
        if match is None:
            raise EntangleError(
                f"{path} holds {name!r} beside directions: this is no control vector that is known here"
            )
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        directions[int(match[1])] = torch.from_numpy(numbers.copy()).float()
    if not directions:
        raise EntangleError(f"{path} holds no direction: write it again")
    return directions


def _text(reader: Any, name: str) -> str:
    field = reader.get_field(name)
    return "" if field is None else bytes(field.parts[-1]).decode()


def _is_same(hint: str, model_type: str) -> bool:
    stated, ours = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (hint, model_type))
    ours = ours.removesuffix("text")
    return ours == stated.removesuffix("text") or ours in ALSO.get(stated, ())
