"""Sites of a plain module whose user says where they are; a forward tells their sizes and confirms that they run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from entangle.errors import EntangleError
from entangle.models.heads import heads_of
from entangle.models.sites import SITES, Found, Layout, Missing, Side
from entangle.models.trace import Call, Trace

SIDES: dict[str, Side] = {
    "resid_pre": "input",
    "z": "input",
    "attn_out": "output",
    "resid_mid": "input",
    "mlp_post": "input",
    "mlp_out": "output",
    "resid_post": "output",
}


def explicit_sites(
    model: nn.Module, trace: Trace, modules: Mapping[str, str], n_heads: int | None
) -> tuple[tuple[str, ...], tuple[dict[str, Found | Missing], ...]]:
    """The block (or its stand-in) and the sites of each layer.

    Args:
        model: The module.
        trace: Of a forward of it.
        modules: The path of each site's module, with `{layer}` in it: `{"z": "layers.{layer}.attn.out"}`. Its input is
            taken for `resid_pre`, `z`, `resid_mid` and `mlp_post`, its output for the others.
        n_heads: Of `z`, where no attention kernel tells.

    Raises:
        EntangleError: A site that is none, a path without `{layer}`, or to a module that does not exist or did not run.
    """
    names = dict(model.named_modules())
    for site, template in modules.items():
        if site not in SITES or "{layer}" not in template:
            raise EntangleError(
                f"modules maps sites ({', '.join(SITES)}) to paths with {{layer}} in them, but holds {site!r}: "
                f"{template!r}"
            )
    n_layers = 0
    while any(template.format(layer=n_layers) in names for template in modules.values()):
        n_layers += 1
    if n_layers == 0:
        raise EntangleError(f"no module of {type(model).__name__} is at {', '.join(modules.values())} for layer 0")
    layers = []
    for layer in range(n_layers):
        paths = {site: template.format(layer=layer) for site, template in modules.items()}
        layers.append({site: _site(site, paths.get(site), names, trace, n_heads) for site in SITES})
    anchor = modules.get("resid_post") or modules.get("resid_pre") or next(iter(modules.values()))
    return tuple(anchor.format(layer=layer) for layer in range(n_layers)), tuple(layers)


def _site(
    site: str, path: str | None, names: Mapping[str, nn.Module], trace: Trace, n_heads: int | None
) -> Found | Missing:
    if path is None:
        return Missing("no path was given for it")
    if path not in names:
        return Missing(f"there is no module {path}")
    calls = [call for call in trace.calls if call.path == path]
    if not calls:
        raise EntangleError(f"{path} was given for {site} but did not run: give the module that is called")
    call, side = calls[0], SIDES[site]
    tensors = call.inputs if side == "input" else call.outputs
    if not tensors or tensors[0].ndim != 3 or trace.batch not in tensors[0].shape[:2]:
        shapes = [tuple(x.shape) for x in tensors]
        raise EntangleError(f"the {side} of {path} must be [batch pos size] for {site}, but is {shapes}")
    layout: Layout = "batch pos" if tensors[0].shape[0] == trace.batch else "pos batch"
    size = tensors[0].shape[-1]
    if site != "z":
        return Found(path, side, size, layout)
    return _with_heads(Found(path, side, size, layout), call, trace, n_heads)


def _with_heads(location: Found, call: Call, trace: Trace, n_heads: int | None) -> Found:
    before = [kernel for kernel in trace.kernels if kernel.time < call.start]
    seen = heads_of(before[-1], call.inputs[0]) if before else None
    heads, note = seen if seen is not None else (n_heads, "not confirmed by an attention kernel")
    if heads is None:
        raise EntangleError(f"no attention kernel tells the heads of z at {location.path}: pass n_heads=...")
    if location.size % heads:
        raise EntangleError(
            f"z at {location.path} has {location.size} numbers a token, which {heads} heads do not divide"
        )
    return Found(location.path, location.side, location.size, location.layout, n_heads=heads, note=note)
