"""Which place the output of a module of a model is, where a file names modules instead of sites."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from entangle.errors import EntangleError
from entangle.models import Atlas, Place, evaluating, floating_tensors, probe_inputs

OUTPUTS = ("resid_post", "mlp_out", "attn_out")


def output_place(model: nn.Module, atlas: Atlas, name: str) -> Place:
    """The place that the output of a module is, in a model.

    Where the module is not itself a place's, as the whole MLP around its down projection, one pass over a few tokens
    tells whether both give the same numbers.

    Args:
        model: The model.
        atlas: Its atlas.
        name: The module's name in `model.base_model`, as lm-evaluation-harness counts, or in the model.

    Raises:
        EntangleError: No such module, or none whose output is a site.
    """
    base: Any = getattr(model, "base_model", model)
    module = dict(base.named_modules()).get(name) or dict(model.named_modules()).get(name)
    if module is None:
        raise EntangleError(f"the model has no module {name!r}: the file was made for a model of another build")
    places = [atlas.place(site, layer) for site in OUTPUTS for layer in atlas.layers(site)]
    for place in places:
        if place.module is module and place.side == "output":
            return place
    inside = set(module.modules())
    near = [place for place in places if place.module in inside and place.side == "output"]
    same = _of_same_output(model, module, near)
    if same is None:
        raise EntangleError(
            f"the output of {name!r} is no site here ({', '.join(OUTPUTS)} of a layer are): use one of these"
        )
    return same


def _of_same_output(model: nn.Module, module: nn.Module, places: list[Place]) -> Place | None:
    seen: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        seen[module] = floating_tensors(output)[0].detach()

    hooks = [each.register_forward_hook(keep) for each in {module, *(place.module for place in places)}]
    try:
        with torch.no_grad(), evaluating(model):
            model(**probe_inputs(model))
    finally:
        for hook in hooks:
            hook.remove()
    of_module = seen.get(module)
    return next(
        (p for p in places if of_module is not None and p.module in seen and torch.equal(of_module, seen[p.module])),
        None,
    )
