"""A result on disk: tensors as safetensors beside a JSON of everything else, written together or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from entangle.errors import EntangleError
from entangle.storage.files import replacing_together

TENSORS, META = "tensors.safetensors", "meta.json"


def write(
    directory: str | os.PathLike[str], kind: str, version: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Write a result, replacing one that is there.

    Args:
        directory: Made if needed.
        kind: Name of the class, checked on reading.
        version: Of the format, checked on reading.
        tensors: By name.
        meta: Anything JSON can hold.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"kind": kind, "version": version, **meta}, indent=1)
    with replacing_together(folder / TENSORS, folder / META) as (numbers, rest):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, numbers)
        rest.write_text(text)


def read(directory: str | os.PathLike[str], kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a result that `write` wrote.

    Raises:
        EntangleError: Nothing is there, or something else, or it is damaged or of another version.
    """
    folder = Path(directory)
    for name in (META, TENSORS):
        if not (folder / name).is_file():
            raise EntangleError(f"{folder} holds no saved {kind}: {name} is missing")
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text())
        tensors = load_file(folder / TENSORS)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise EntangleError(f"the {kind} saved in {folder} is damaged ({error}); save it again") from None
    found = (meta.get("kind"), meta.get("version"))
    if found != (kind, version):
        raise EntangleError(f"{folder} holds {found[0]} version {found[1]}, not {kind} version {version}")
    return tensors, meta


def check_same_model(saved: Mapping[str, Any] | None, given: Mapping[str, Any] | None, what: str) -> None:
    """Refuse a result of another model.

    Args:
        saved: Fingerprint kept with the result, if any.
        given: Fingerprint of the model it is about to be used with; None checks nothing.
        what: The result, for the message.

    Raises:
        EntangleError: They differ, or the result has none.
    """
    if given is None:
        return
    if saved is None:
        raise EntangleError(
            f"{what} was saved without a model's fingerprint, so it cannot be checked; load it without one"
        )
    differing = [key for key in {**saved, **given} if saved.get(key) != given.get(key)]
    if differing:
        key = differing[0]
        raise EntangleError(
            f"{what} belongs to another model: its {key} is {saved.get(key)!r}, this one's {given.get(key)!r}"
        )
