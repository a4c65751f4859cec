"""The edit that users meet: it can also be baked into weights, exported, saved and shared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import nn
from transformers import PreTrainedModel

from entangle.errors import EntangleError
from entangle.interventions import files as store
from entangle.interventions.base import BaseEdit
from entangle.interventions.weights import bake as compile
from entangle.interventions.weights import export


@dataclass(frozen=True, eq=False)
class Edit(BaseEdit):
    """A change of what a model computes, at one or several places; see `BaseEdit` for what a subclass defines.

    Example:
        >>> edit: en.Edit = en.AddDirection(directions.vectors[0], layer=1)
        >>> edit.save_pretrained("edit")
        >>> x = torch.randn(3, 32)
        >>> bool(torch.equal(en.Edit.from_pretrained("edit")(x), edit(x)))
        True
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        known = store.REGISTRY.get(cls.__name__)
        if known is not None and known.__module__ != cls.__module__ and known.__module__.startswith("entangle."):
            raise EntangleError(
                f"an edit of this library is called {cls.__name__} already, and saved edits go by their class's name: "
                "name yours otherwise"
            )
        store.REGISTRY[cls.__name__] = cls

    def bake(self, model: PreTrainedModel, alpha: float | str = 1.0) -> PreTrainedModel:
        """A copy of `model` with the edit in its weights; see `entangle.interventions.weights.bake.bake`."""
        return compile.bake(model, self, alpha)

    def export(self, path: str | Path, *, format: str, model: PreTrainedModel, alpha: float | str = 1.0) -> Path:
        """Write the edit for another tool; see `entangle.interventions.weights.export.export`."""
        return export.export(self, path, format=format, model=model, alpha=alpha)

    def save_pretrained(self, path: str | Path, *, model: nn.Module | None = None) -> None:
        """Write the edit to a directory; see `entangle.interventions.files.save_pretrained`."""
        store.save_pretrained(self, path, model=model)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, model: nn.Module | None = None, revision: str | None = None) -> Self:
        """Read an edit from a directory or the hub; see `entangle.interventions.files.from_pretrained`."""
        edit = store.from_pretrained(path, model=model, revision=revision)
        if not isinstance(edit, cls):
            raise EntangleError(
                f"{path} holds a {type(edit).__name__}, not a {cls.__name__}: load it with Edit.from_pretrained"
            )
        return edit

    def push_to_hub(
        self, repo_id: str, *, model: nn.Module | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """Upload the edit to the HuggingFace hub; see `entangle.interventions.files.push_to_hub`."""
        return store.push_to_hub(self, repo_id, model=model, private=private, token=token)
