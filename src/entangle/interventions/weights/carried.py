"""A model that carries an edit in modules of its own: for what the weights of its stock class cannot hold.

Some configurations have no switch for the biases that an edit needs (Mistral, Qwen-2), a map of the residual stream is
no projection's weight, and a constant behind a norm (OLMo-2, Gemma) is no projection's bias. There `bake` gives a copy
whose modules do the edit as part of their own `forward`: no hooks, so it compiles, moves and copies like any model. Its
`save_pretrained` writes the untouched stock checkpoint and the edit beside it, and `load_baked` puts them together
again; stock classes refuse the directory, rather than load the model without its edit.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from threading import local
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from entangle.errors import EntangleError
from entangle.interventions import files as store
from entangle.interventions.base import BaseEdit
from entangle.interventions.forms import AffineForm
from entangle.interventions.hooks.plan import planned
from entangle.models.atlas import Atlas
from entangle.models.hooks import on_input, on_output
from entangle.models.loading import LOADING_ERRORS, pretrained, refuse_code
from entangle.models.place import Place
from entangle.storage import folder
from entangle.storage.files import write_text  # noqa: F401 (older code reaches it here)
from entangle.storage.folder import Kind
from entangle.storage.sealed import decoding

SETTINGS, MODEL, STOCK = "baked.json", "model", "config.json"
KIND = Kind(
    "a baked model",
    SETTINGS,
    "entangle-baked",
    name_key="format",
    before=(
        "edit.json",
        "edit.safetensors",
        f"{MODEL}/{STOCK}",
        f"{MODEL}/generation_config*.json",
        f"{MODEL}/model*.safetensors",
        f"{MODEL}/model*.safetensors.index.json",
    ),
    for_people=store.KIND.for_people,
)


def carry(model: PreTrainedModel, edit: BaseEdit, alpha: float | str, *, why: str) -> PreTrainedModel:
    """Make a model do an affine edit of all tokens in its own modules.

    Args:
        model: The model; it is changed.
        edit: An affine edit that was checked against the model.
        alpha: Its strength.
        why: Why no weights hold it, for whoever meets the model later.

    Returns:
        The model, now of a subclass of its stock class whose `save_pretrained` writes the edit too.

    Raises:
        EntangleError: If a module of the edit is several layers at once (ALBERT).
    """
    for stop in planned(Atlas(model), [edit.affine(alpha) if edit.strength(alpha) else []]):
        form = stop.forms[0]  # affine forms at one place merge into one
        if not isinstance(form, AffineForm):
            continue
        if stop.place.turn is not None:
            raise EntangleError(
                f"{stop.place.path} is several layers, so it cannot carry the edit of one: use it with steer(...)"
            )
        change = Change(form, model.dtype).to(model.device)
        if stop.carry is not None:
            change.made = Made()
            _add(stop.carry, Again(change.made))
        _add(stop.place, change)
    stock = type(model)
    vars(model).pop("save_pretrained", None)  # of a model that has another edit in its weights
    model.__class__ = type(f"Edited{stock.__name__}", (EditedModel, stock), {})
    model.edit, model.edit_alpha, model.edit_why = edit, edit.strength(alpha), why
    return model


class Made(local):
    """What a `Change` added in the pass that a thread is in now; each thread has its own, and a copy begins empty."""

    change: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Made, ()


class Change(nn.Module):
    """x -> x + (x - mean) left right + bias on `[*batch d]`, as a module; a map runs in single precision at least."""

    left: Tensor | None
    right: Tensor | None
    constant: Tensor

    def __init__(self, form: AffineForm, dtype: torch.dtype) -> None:
        super().__init__()
        exact = dtype if form.is_constant else torch.promote_types(dtype, torch.float32)
        # Not persistent: the state dict stays the stock model's.
        self.register_buffer("constant", form.constant.detach().to(exact).clone(), persistent=False)
        self.register_buffer("left", None if form.left is None else form.left.detach().to(exact), persistent=False)
        self.register_buffer("right", None if form.right is None else form.right.detach().to(exact), persistent=False)
        self.made: Made | None = None  # of one that acts on a branch, and again where the branch ends

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The edited x."""
        if self.left is None or self.right is None:
            edited = x + self.constant.to(x.dtype)
        else:
            edited = x + ((x.to(self.left.dtype) @ self.left) @ self.right + self.constant).to(x.dtype)
        if self.made is not None:
            self.made.change = edited - x
        return edited


class Again(nn.Module):
    """Adds what a `Change` added earlier in the same pass: the residual stream goes round the module it edited."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """x and the change."""
        change, self.made.change = self.made.change, None
        return x if change is None else x + change


class EditedModule(nn.Module):
    """Mixed into the class of a module that has edits at its input or its output."""

    edits_before: Sequence[tuple[Place, nn.Module]]
    edits_after: Sequence[tuple[Place, nn.Module]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The stock module's forward, between the edits."""
        for place, change in self.edits_before:
            args, kwargs = on_input(change, place, args, kwargs) or (args, kwargs)
        output = super().forward(*args, **kwargs)
        for place, change in self.edits_after:
            output = on_output(change, place, output)
        return output


def _add(place: Place, change: nn.Module) -> None:
    module: Any = place.module
    if not isinstance(module, EditedModule):
        stock = type(module)
        module.__class__ = type(f"Edited{stock.__name__}", (EditedModule, stock), {})
        module.edits_before, module.edits_after = (), ()
    module.add_module(f"edit_of_{place.site}_{len(module.edits_before) + len(module.edits_after)}", change)
    if place.side == "input":
        module.edits_before = (*module.edits_before, (place, change))
    else:
        module.edits_after = (*module.edits_after, (place, change))


def _without_edits(module: Any, known: dict[int, Any] | None = None) -> Any:
    """The stock module around the same weights; a part that stands at several paths stays one."""
    known = {} if known is None else known
    if id(module) not in known:
        stock = known[id(module)] = copy.copy(module)
        if isinstance(module, EditedModel | EditedModule):
            _, stock.__class__ = type(module).__bases__  # as `carry` and `_add` made it
            for name in ("edits_before", "edits_after", "edit", "edit_alpha", "edit_why"):
                vars(stock).pop(name, None)
        stock._modules = {
            name: _without_edits(part, known)
            for name, part in module._modules.items()
            if not isinstance(part, Change | Again)
        }
    return known[id(module)]


class EditedModel:
    """Mixed into the class of a model that carries an edit.

    Attributes:
        edit: What its modules do.
        edit_alpha: At what strength.
        edit_why: Why its weights do not hold it.
    """

    edit: BaseEdit
    edit_alpha: float
    edit_why: str

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the stock checkpoint, the edit and how they go together; `load_baked` reads it.

        Args:
            save_directory: The directory; `model/` in it is the model without the edit, the rest is the edit.
            **kwargs: For the stock `save_pretrained`.

        Raises:
            EntangleError: If asked to push to the hub as well, where the stock method would leave the edit behind.
        """
        if kwargs.get("push_to_hub"):
            raise EntangleError(
                "a model that carries an edit is pushed as a folder: save it, then HfApi().upload_folder(...)"
            )
        stock: Any = _without_edits(self)

        def fill(new: Path) -> None:
            stock.save_pretrained(new / MODEL, **kwargs)
            store.save_pretrained(self.edit, new, model=stock)

        folder.write(save_directory, KIND, {"alpha": self.edit_alpha, "why": self.edit_why}, fill)


def saves_whole(model: PreTrainedModel) -> None:
    """Have a model whose weights hold an edit save itself as a baked model too, in place of one that is there."""
    own: Any = model
    own.save_pretrained = MethodType(_save_in_weights, model)


def _save_in_weights(model: PreTrainedModel, save_directory: str | Path, **kwargs: Any) -> None:
    """Write the stock checkpoint; the arguments are those of the stock class's `save_pretrained`."""
    stock = type(model).save_pretrained
    push = kwargs.pop("push_to_hub", False)
    hub = {name: kwargs.pop(name) for name in ("repo_id", "commit_message", "private", "token") if name in kwargs}
    if kwargs.get("is_main_process", True):
        folder.write(save_directory, KIND, {"weights": True}, lambda new: stock(model, new, **kwargs))
    if push:
        model.push_to_hub(hub.pop("repo_id", None) or Path(save_directory).name, **hub)


def load_baked(path: str | Path, *, device: torch.device | str | None = None) -> PreTrainedModel:
    """Load what `bake(...).save_pretrained(path)` wrote, whether weights hold the edit or the model carries it.

    Args:
        path: The directory.
        device: Where to put the model.

    Returns:
        The model with its edit, in evaluation mode.

    Raises:
        EntangleError: If there is no baked model, or its model and its edit do not belong together.

    Example:
        >>> iti.bake(model, alpha=8).save_pretrained("steered")
        >>> again = en.load_baked("steered")
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> with en.steer(model, iti, alpha=8):
        ...     bool(torch.allclose(model(ids).logits, again(ids).logits, atol=1e-4))
        ...
        True
    """
    place = Path(path)
    if not os.path.lexists(place / SETTINGS):
        return _stock(place, device)
    settings = folder.read(place, KIND)
    if settings.get("weights"):
        return _stock(place, device)
    if (place / STOCK).exists():
        raise EntangleError(
            f"{place} holds a baked model in {MODEL}/, and another model that was saved there later ({STOCK}): move "
            "one of them to another directory"
        )
    model = _stock(place / MODEL, device)
    edit = store.from_pretrained(place, model=model)
    with decoding(place, KIND.what, remedy=KIND.remedy):
        return carry(model, edit, settings["alpha"], why=settings["why"])


def _stock(folder: Path, device: torch.device | str | None) -> PreTrainedModel:
    """A stock checkpoint, by the class that its configuration names."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        (architecture,) = config.architectures
        stock = getattr(transformers, architecture)
        model: PreTrainedModel = pretrained(stock, str(folder), what="a baked model")
    except LOADING_ERRORS as error:
        refuse_code(str(folder), error)
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise EntangleError(f"{folder} holds no baked model: bake(...).save_pretrained writes one ({why})") from error
    return (model if device is None else model.to(device)).eval()
