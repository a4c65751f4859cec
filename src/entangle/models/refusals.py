"""Models that cannot be looked into: compiled ones, which ignore hooks, and those without weights."""

from __future__ import annotations

from torch import nn

from entangle.errors import EntangleError
from entangle.storage import parts_of


def refuse_compiled(model: nn.Module) -> None:
    """Raise an `EntangleError` if the model, or a part of it, is `torch.compile`d: hooks added later would not run.

    Example:
        >>> en.models.refuse_compiled(model)
        >>> en.models.refuse_compiled(torch.compile(model))
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: hooks need an uncompiled model, but the model is torch.compile'd ...
    """
    for name, module in parts_of(model):
        # By its own dictionary: a module takes long to say that it lacks something.
        if "_orig_mod" in module._modules or vars(module).get("_compiled_call_impl") is not None:
            part = f"its part {name}" if name else "the model"
            raise EntangleError(
                f"hooks need an uncompiled model, but {part} is torch.compile'd and would ignore them: pass the "
                "original model "
                "(compiled._orig_mod), or bake the edit into the weights first and compile the result"
            )


def refuse_meta(model: nn.Module) -> None:
    """Raise an `EntangleError` if weights are on the meta device and nothing is there to load them when they are used:
    such a model has shapes and no numbers.
    """
    parts = parts_of(model)
    if any("_hf_hook" in vars(module) for _, module in parts):  # offloaded: each part loads as it runs
        return
    for path, module in parts:
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_meta:
                raise EntangleError(
                    f"{type(model).__name__} must have its weights, but {path}.{name} is on the meta device, which "
                    "holds none: load it with from_pretrained(...), or model.to_empty(device=...) and "
                    "load_state_dict(...)"
                )
