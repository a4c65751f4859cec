"""Edits on disk and on the hub: safetensors for the numbers, JSON for the rest, a card for people."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.interventions.base import BaseEdit
from entangle.models.fingerprint import check_fingerprint, fingerprint
from entangle.storage import folder
from entangle.storage.folder import Kind
from entangle.storage.sealed import decoding

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

NUMBERS, SETTINGS, CARD = "edit.safetensors", "edit.json", "README.md"
CARD_BEGINS = "---\nlibrary_name: entangle\n"
KIND = Kind(
    "an edit",
    SETTINGS,
    "entangle-edit",
    name_key="format",
    before=(NUMBERS,),
    for_people={CARD: CARD_BEGINS},
)

REGISTRY: dict[str, type[BaseEdit]] = {}
"""Every kind of edit by its name in a file."""


def save_pretrained(edit: BaseEdit, path: str | Path, *, model: nn.Module | None = None) -> None:
    """Write an edit to a directory: `edit.safetensors`, `edit.json` and a model card.

    Args:
        edit: Any edit of this library, except one that holds an autoencoder.
        path: The directory; made if need be. The files are written together or not at all.
        model: The model it was made for, whose fingerprint is kept if the edit has none yet.

    Raises:
        EntangleError: If the edit holds something that has no file format, or was made for another model, or files that
            are not an edit of ours are in the way.
    """
    if model is not None and edit.fingerprint is not None:
        check_fingerprint(edit.fingerprint, model, what=f"this {type(edit).__name__}", active=False)
    tensors: dict[str, Tensor] = {}
    encoded = _encoded(edit, "edit", tensors)
    made_for = edit.fingerprint if edit.fingerprint is not None or model is None else fingerprint(model)

    def fill(new: Path) -> None:
        save_file(tensors, new / NUMBERS)
        (new / CARD).write_text(_card(edit, made_for))

    folder.write(path, KIND, {"edit": encoded, "fingerprint": None if made_for is None else dict(made_for)}, fill)


def from_pretrained(path: str | Path, *, model: nn.Module | None = None, revision: str | None = None) -> BaseEdit:
    """Read an edit from a directory, or from the HuggingFace hub.

    Args:
        path: The directory, or a repository id.
        model: The model it will be used on, checked now rather than when it steers.
        revision: Branch, tag or commit, for the hub.

    Returns:
        The edit as it was saved.

    Raises:
        EntangleError: If there is no edit there, it is damaged, its version is not known, or it was made for another
            model.
    """
    place = Path(path)
    if not place.exists() and HUB_ID.fullmatch(str(path)):
        place = _downloaded(str(path), revision)
    settings = folder.read(place, KIND)
    with decoding(path, "an edit", remedy=KIND.remedy):
        tensors = load_file(place / NUMBERS)
        made_for = settings["fingerprint"]
        edit = _decoded(settings["edit"], tensors, path)
        if not isinstance(edit, BaseEdit):
            raise EntangleError(f"{path} holds no edit but a {type(edit).__name__}: save it again")
        if made_for is not None and not isinstance(made_for, dict):
            raise EntangleError(f"{path} holds an edit whose fingerprint is a {type(made_for).__name__}: save it again")
    if model is not None and made_for is not None:
        check_fingerprint(made_for, model, what=f"the edit in {path}", active=False)
    object.__setattr__(edit, "fingerprint", made_for)
    return edit


def _downloaded(repo_id: str, revision: str | None) -> Path:
    """The files of an edit on the hub, in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[NUMBERS, SETTINGS]))
    except (OSError, ValueError, RuntimeError) as error:  # offline, unknown, private
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EntangleError(
            f"{repo_id} is no directory here, and no repository of the hub that can be reached ({reason})"
        ) from error


def push_to_hub(
    edit: BaseEdit, repo_id: str, *, model: nn.Module | None = None, private: bool = False, token: str | None = None
) -> str:
    """Upload an edit to a repository on the HuggingFace hub, made if need be.

    Args:
        edit: The edit.
        repo_id: Such as `"me/detoxify-olmo"`.
        model: As for `save_pretrained`.
        private: Whether a new repository is private.
        token: Of an account that may write there; by default the one logged in.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    hub.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as local:
        save_pretrained(edit, local, model=model)
        return str(
            hub.upload_folder(repo_id=repo_id, folder_path=local, commit_message=f"Upload {type(edit).__name__}")
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
    if str(value.get("class")) not in REGISTRY:
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
    return f"""{CARD_BEGINS}tags: [activation-steering, {type(edit).__name__.lower()}]
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
