"""Edits on disk and on the hub: safetensors for the numbers, JSON for the rest, a card for people."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.interventions.base import BaseEdit
from entangle.models.fingerprint import check_fingerprint, fingerprint
from entangle.storage.files import replacing_together

VERSION = 1
NUMBERS, SETTINGS, CARD = "edit.safetensors", "edit.json", "README.md"

REGISTRY: dict[str, type[BaseEdit]] = {}
"""Every kind of edit by its name in a file."""


def save_pretrained(edit: BaseEdit, path: str | Path, *, model: nn.Module | None = None) -> None:
    """Write an edit to a directory: `edit.safetensors`, `edit.json` and a model card.

    Args:
        edit: any edit of this library, except one that holds an autoencoder.
        path: the directory; made if need be. The files are written together or not at all.
        model: the model it was made for, whose fingerprint is kept if the edit has none yet.

    Raises:
        EntangleError: if the edit holds something that has no file format, or was made for another model.
    """
    if model is not None and edit.fingerprint is not None:
        check_fingerprint(edit.fingerprint, model, what=f"this {type(edit).__name__}", active=False)
    tensors: dict[str, Tensor] = {}
    settings = {
        "format": "entangle-edit",
        "version": VERSION,
        "edit": _encoded(edit, "edit", tensors),
        "fingerprint": dict(edit.fingerprint)
        if edit.fingerprint is not None
        else fingerprint(model)
        if model is not None
        else None,
    }
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing_together(folder / NUMBERS, folder / CARD, folder / SETTINGS) as (numbers, card, rest):
        save_file(tensors, numbers)
        card.write_text(_card(edit, settings["fingerprint"]))
        rest.write_text(json.dumps(settings, indent=2) + "\n")


def from_pretrained(path: str | Path, *, model: nn.Module | None = None, revision: str | None = None) -> BaseEdit:
    """Read an edit from a directory, or from the HuggingFace hub.

    Args:
        path: the directory, or a repository id.
        model: the model it will be used on, checked now rather than when it steers.
        revision: branch, tag or commit, for the hub.

    Returns:
        The edit as it was saved.

    Raises:
        EntangleError: if there is no edit there, its version is not known, or it was made for another model.
    """
    folder = Path(path)
    if not folder.exists() and str(path).count("/") == 1:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(path), revision=revision, allow_patterns=[NUMBERS, SETTINGS]))
    if not (folder / SETTINGS).is_file() or not (folder / NUMBERS).is_file():
        raise EntangleError(
            f"{path} holds no edit: it needs {SETTINGS} and {NUMBERS}, which edit.save_pretrained writes"
        )
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        tensors = load_file(folder / NUMBERS)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise EntangleError(f"the edit in {path} cannot be read ({error}): save it again") from error
    if settings.get("format") != "entangle-edit" or settings.get("version") != VERSION:
        found = f"{settings.get('format')} version {settings.get('version')}"
        raise EntangleError(
            f"{path} holds {found}, but this library reads entangle-edit version {VERSION}: save it again"
        )
    if model is not None and settings["fingerprint"] is not None:
        check_fingerprint(settings["fingerprint"], model, what=f"the edit in {path}", active=False)
    edit = _decoded(settings["edit"], tensors, path)
    if not isinstance(edit, BaseEdit):
        raise EntangleError(f"{path} holds no edit but a {type(edit).__name__}: save it again")
    object.__setattr__(edit, "fingerprint", settings["fingerprint"])
    return edit


def push_to_hub(
    edit: BaseEdit, repo_id: str, *, model: nn.Module | None = None, private: bool = False, token: str | None = None
) -> str:
    """Upload an edit to a repository on the HuggingFace hub, made if need be.

    Args:
        edit: the edit.
        repo_id: such as `"me/detoxify-olmo"`.
        model: as for `save_pretrained`.
        private: whether a new repository is private.
        token: of an account that may write there; by default the one logged in.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    hub.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(edit, folder, model=model)
        return str(
            hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Upload {type(edit).__name__}")
        )


def _encoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; tensors are put aside under their name."""
    if isinstance(value, Tensor):
        tensors[name] = value.clone().contiguous()  # safetensors refuses tensors that share memory
        return {"tensor": name}
    if isinstance(value, BaseEdit):
        own = {f.name: getattr(value, f.name) for f in fields(value) if f.name != "fingerprint"}
        return {
            "class": type(value).__name__,
            "fields": {key: _encoded(item, f"{name}.{key}", tensors) for key, item in own.items()},
        }
    if isinstance(value, list | tuple):
        return [_encoded(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float):
        return value
    raise EntangleError(
        f"{name} is a {type(value).__name__}, which has no file format: save what it is made of, and make the edit anew"
    )


def _decoded(value: Any, tensors: Mapping[str, Tensor], path: str | Path) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors, path) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        if value["tensor"] not in tensors:
            raise EntangleError(
                f"the edit in {path} names {value['tensor']}, which {NUMBERS} does not hold: save it again"
            )
        return tensors[value["tensor"]]
    if value.get("class") not in REGISTRY:
        raise EntangleError(
            f"{path} holds a {value.get('class')}, which this library does not know (it knows {', '.join(REGISTRY)})"
        )
    return REGISTRY[value["class"]](**{key: _decoded(item, tensors, path) for key, item in value["fields"].items()})


def _card(edit: BaseEdit, made_for: Mapping[str, Any] | None) -> str:
    model = "a model that was not recorded" if made_for is None else f"`{made_for.get('architecture')}`"
    size = (
        ""
        if made_for is None
        else f" ({made_for.get('n_parameters'):,} parameters, weights `{str(made_for.get('weights'))[:12]}`)"
    )
    places = sorted({(form.site, form.layer, form.head) for form in edit.forms()}, key=str)
    where = "\n".join(
        f"- {site}" + (f", layer {layer}" if layer is not None else "") + (f", head {head}" if head is not None else "")
        for site, layer, head in places
    )
    return f"""---
library_name: entangle
tags: [activation-steering, {type(edit).__name__.lower()}]
---

# {type(edit).__name__}

An edit of the activations of {model}{size}. It acts at

{where}

```python
import entangle as en
from entangle.interventions import Edit

edit = Edit.from_pretrained("this repository")
with en.steer(model, edit, alpha=1.0):
    model.generate(...)
```
"""
