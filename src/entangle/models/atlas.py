"""Atlas: where the sites of a model are, found by structure and confirmed by running it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

from entangle.errors import EntangleError
from entangle.models.explicit import explicit_sites
from entangle.models.fingerprint import active
from entangle.models.loading.held import held, underlying
from entangle.models.place import AtlasError, Place
from entangle.models.probe_inputs import probe_inputs
from entangle.models.refusals import refuse_compiled, refuse_meta
from entangle.models.sites import SITES, Found, Missing, find_sites
from entangle.models.stacks import Stack, find_stacks
from entangle.models.trace import Trace, trace
from entangle.storage import digest, parts_of, settings_of

# TransformerLens's names of the sites within a block, of old and of its bridges; the first of each is the one we write.
HOOK_NAMES = {
    "hook_resid_pre": "resid_pre",
    "hook_in": "resid_pre",
    "attn.hook_z": "z",
    "attn.o.hook_in": "z",
    "attn.hook_out": "attn_out",
    "attn.o.hook_out": "attn_out",
    "hook_resid_mid": "resid_mid",
    "mlp.hook_post": "mlp_post",
    "mlp.out.hook_in": "mlp_post",
    "mlp.hook_out": "mlp_out",
    "mlp.out.hook_out": "mlp_out",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
}
# What is added to the residual stream: the site, unless a norm or a scale lies between (OLMo 2, Gemma 2 and 3).
ADDED_NAMES = {"hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out"}


def hook_name(site: str, layer: int) -> str:
    """The name that a TransformerLens bridge has for a site of a layer.

    Example:
        >>> en.models.hook_name("z", 3), en.models.hook_name("resid_post", 0)
        ('blocks.3.attn.hook_z', 'blocks.0.hook_resid_post')
    """
    return f"blocks.{layer}.{next(name for name, other in HOOK_NAMES.items() if other == site)}"


def place_named(name: str) -> tuple[str, int] | None:
    """Site and layer of a TransformerLens name that is one tensor whatever the model; `None` of any other name.

    Args:
        name: Such as `blocks.3.hook_out` or `blocks.3.attn.o.hook_in`.

    Example:
        >>> place_named("blocks.3.hook_out"), place_named("resid_post")
        (('resid_post', 3), None)
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    return (HOOK_NAMES[match[2]], int(match[1])) if match and match[2] in HOOK_NAMES else None


@dataclass(frozen=True)
class _Survey:
    """What a probe forward found, in paths only: good for every model of the same structure."""

    stack: str
    blocks: tuple[str, ...]
    sites: tuple[dict[str, Found | Missing], ...]


_SURVEYS: dict[tuple[str, str | None], _Survey] = {}


class Atlas:
    """Where `z`, the residual stream and the MLP are in a model.

    The blocks are found by structure and the sites by a probe forward of a few tokens that watches the attention kernel
    and which linear module receives its result; what cannot be confirmed is missing, with a reason, never guessed. The
    probe runs once for all models of one structure in a process.

    Args:
        model: Any HuggingFace model (adapted by PEFT, quantised, or spread over devices as it may be), a
            TransformerLens `TransformerBridge`, an object that holds one (an nnsight `LanguageModel`, nnterp's
            `StandardizedTransformer`, a pipeline), or a plain module with `modules`; not compiled.
        stack: Which list of blocks, where a model has several: a part of its path, such as `"encoder"`. By default the
            last one that runs: the decoder of an encoder-decoder, the language model of a vision-language model.
        modules: For a plain module: the path of each site's module, with `{layer}` in it, such as
            `{"z": "layers.{layer}.attn.out", "resid_post": "layers.{layer}"}`.
        n_heads: Of `z` at those modules, where attention runs in no kernel that the probe knows.
        inputs: Example inputs of at least two positions, for a model whose inputs cannot be derived from its
            configuration.

    Attributes:
        model: The model (of a `TransformerBridge` or another holder, the HuggingFace model in it).
        stack: Path of the list of blocks.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        sites: The sites that at least one layer has.

    Raises:
        AtlasError: No list of blocks, or none or several of that name.
        EntangleError: A compiled model, or one whose inputs are not known.

    Example:
        >>> atlas = en.Atlas(model)
        >>> atlas.n_layers, atlas.d_model, atlas.n_heads(0), atlas.d_head(0)
        (2, 32, 4, 8)
        >>> atlas.path("z", 1), atlas.place("z", 1).side
        ('model.layers.1.self_attn.o_proj', 'input')
        >>> atlas.resolve("blocks.1.attn.hook_z")
        ('z', 1)
    """

    def __init__(
        self,
        model: Any,
        *,
        stack: str | None = None,
        modules: Mapping[str, str] | None = None,
        n_heads: int | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        refuse_compiled(held(model))
        model = self.model = underlying(model)
        refuse_meta(model)
        survey = _survey(model, stack, inputs) if modules is None else _given(model, modules, n_heads, inputs)
        self.stack = survey.stack
        self._found = survey.sites
        self.blocks: list[nn.Module] = [model.get_submodule(path) for path in survey.blocks]
        self.n_layers = len(self.blocks)
        self.sites: tuple[str, ...] = tuple(
            site for site in SITES if any(isinstance(layer[site], Found) for layer in self._found)
        )
        widths = [layer["resid_post"].size for layer in self._found if isinstance(layer["resid_post"], Found)]
        self.d_model: int = widths[-1] if widths else 0

    def __repr__(self) -> str:
        sizes = f"stack={self.stack!r}, n_layers={self.n_layers}, d_model={self.d_model}"
        return f"Atlas({type(self.model).__name__}, {sizes}, sites={self.sites})"

    def layers(self, site: str) -> list[int]:
        """The layers that have a site, in order."""
        _known(site)
        return [layer for layer in range(self.n_layers) if isinstance(self._found[layer][site], Found)]

    def place(self, site: str, layer: int) -> Place:
        """The module and side to hook for a site of a layer.

        Raises:
            AtlasError: The layer has no such site (the reason is given), or there is no such layer.
        """
        location = self._found_or_raise(site, layer)
        module = self.model.get_submodule(location.path)
        return Place(
            site=site,
            layer=layer,
            path=location.path,
            module=module,
            side=location.side,
            size=location.size,
            n_heads=location.n_heads,
            d_head=location.size // location.n_heads if location.n_heads else None,
            layout=location.layout,
            turn=location.turn,
            within=None if location.turn is None else self.model.get_submodule(location.within),
            block=self.blocks[layer],
            root=self.model,
            bypassed=location.bypassed,
        )

    def module(self, site: str, layer: int) -> nn.Module:
        """The module whose input or output the site is."""
        return self.place(site, layer).module

    def path(self, site: str, layer: int) -> str:
        """The name of that module in the model."""
        return self._found_or_raise(site, layer).path

    def size(self, site: str, layer: int) -> int:
        """Numbers a token at the site."""
        return self._found_or_raise(site, layer).size

    def n_heads(self, layer: int) -> int:
        """Number of heads in the layer's `z`."""
        return self._heads(layer)[0]

    def d_head(self, layer: int) -> int:
        """Numbers a head in the layer's `z`."""
        return self._heads(layer)[1]

    def counted(self, layer: int) -> int:
        """A layer's number, which counts from the end where it is negative: -1 is the last.

        Raises:
            AtlasError: There is no such layer.

        Example:
            >>> en.Atlas(model).counted(-1)
            1
        """
        number = int(layer) + self.n_layers * (-self.n_layers <= layer < 0)
        self._check_layer(number)
        return number

    def reason(self, site: str, layer: int) -> str | None:
        """Why a layer does not have a site; `None` where it has."""
        _known(site)
        self._check_layer(layer)
        location = self._found[layer][site]
        return location.reason if isinstance(location, Missing) else None

    def resolve(self, name: str) -> tuple[str, int]:
        """Site and layer of a TransformerLens hook name or of a module path.

        Args:
            name: Such as `blocks.3.attn.hook_z` or a bridge's `blocks.3.attn.o.hook_in`, or
                `model.layers.3.self_attn.o_proj`, the module that `place` gives.
                Where one module is at two sites, its input is meant for an output projection (`z`, `mlp_post`), its
                output for a block.

        Raises:
            AtlasError: No site goes by that name, or what it names is the norm of a site.
        """
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if match and match[2] in (HOOK_NAMES | ADDED_NAMES):
            layer, site = int(match[1]), (HOOK_NAMES | ADDED_NAMES)[match[2]]
            location = self._found_or_raise(site, layer)
            if match[2] in ADDED_NAMES and location.followed:
                raise AtlasError(
                    f"TransformerLens's {name} is what {location.followed} makes of {site}, and that is no site here: "
                    f"use {hook_name(site, layer)} for {site} itself"
                )
            return site, layer
        for site in ("z", "mlp_post", "resid_post", "mlp_out", "attn_out", "resid_mid", "resid_pre"):
            for layer in self.layers(site):
                if self.path(site, layer) == name:
                    return site, layer
        raise AtlasError(
            f"{name!r} names no site of this model: use a site ({', '.join(self.sites)}), a TransformerLens name such "
            "as "
            "blocks.0.attn.hook_z, or a module path from atlas.table()"
        )

    def table(self) -> pd.DataFrame:
        """One row per layer and site: module, side, heads, sizes, and a note or the reason why it is missing."""
        rows: list[dict[str, Any]] = []
        for layer, sites in enumerate(self._found):
            for site in SITES:
                location = sites[site]
                row: dict[str, Any] = {"layer": layer, "site": site}
                if isinstance(location, Missing):
                    rows.append({**row, "note": location.reason})
                    continue
                heads = (
                    {"n_heads": location.n_heads, "d_head": location.size // location.n_heads}
                    if location.n_heads
                    else {}
                )
                rows.append(
                    {
                        **row,
                        "module": location.path,
                        "side": location.side,
                        "size": location.size,
                        "note": location.note,
                        **heads,
                    }
                )
        columns = ["layer", "site", "module", "side", "n_heads", "d_head", "size", "note"]
        frame = pd.DataFrame(rows, columns=columns)
        return frame.astype({"n_heads": "Int64", "d_head": "Int64", "size": "Int64"})

    def _heads(self, layer: int) -> tuple[int, int]:
        n_heads, d_head = self.place("z", layer).shape
        return n_heads, d_head

    def _found_or_raise(self, site: str, layer: int) -> Found:
        _known(site)
        self._check_layer(layer)
        location = self._found[layer][site]
        if isinstance(location, Missing):
            others = self.layers(site)
            advice = f"layers that have it: {others}" if others else "no layer of this model has it"
            raise AtlasError(f"layer {layer} has no {site}: {location.reason}; {advice}")
        return location

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise AtlasError(f"layer {layer} was asked for, but {self.stack} has layers 0 to {self.n_layers - 1}")


def _known(site: str) -> None:
    if site not in SITES:
        raise AtlasError(f"{site!r} is not a site: use one of {', '.join(SITES)}")


def _survey(model: nn.Module, stack: str | None, inputs: Mapping[str, Any] | None) -> _Survey:
    key = (_structure(model), stack)
    if inputs is None and key in _SURVEYS:
        return _SURVEYS[key]
    # What depends on what is read off the autograd graph, which a caller's no_grad or inference_mode would leave out.
    with torch.inference_mode(False), torch.enable_grad():
        record = _probe(model, inputs)
        chosen = _choose(find_stacks(model, record), stack, model)
        sites = tuple(find_sites(record, block) for block in chosen.blocks)
    survey = _Survey(chosen.path, tuple(block.path for block in chosen.blocks), sites)
    if inputs is None and active(model) is None:  # what is hooked on it may hide a site from us, and will be gone
        _SURVEYS[key] = survey
    return survey


def _given(
    model: nn.Module, modules: Mapping[str, str], n_heads: int | None, inputs: Mapping[str, Any] | None
) -> _Survey:
    with torch.inference_mode(False), torch.enable_grad():
        blocks, sites = explicit_sites(model, _probe(model, inputs), modules, n_heads)
    return _Survey("the modules given", blocks, sites)


def _probe(model: nn.Module, inputs: Mapping[str, Any] | None) -> Trace:
    example_inputs = probe_inputs(model) if inputs is None else inputs
    try:
        return trace(model, example_inputs)
    except EntangleError:
        raise
    except Exception as error:  # whatever the model raises, on inputs that may not be for it
        shapes = {name: tuple(x.shape) if isinstance(x, torch.Tensor) else x for name, x in example_inputs.items()}
        why = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise AtlasError(
            f"{type(model).__name__} did not run on the example inputs {shapes} ({why[0]}): pass inputs it takes, "
            "Atlas(model, inputs={...})"
        ) from error


def _is_finite(weight: torch.Tensor) -> bool:
    return weight.is_meta or not weight.is_floating_point() or bool(weight.isfinite().all())


def _choose(stacks: list[Stack], name: str | None, model: nn.Module) -> Stack:
    what = type(model).__name__
    if not stacks:
        broken = next((key for key, weight in model.named_parameters() if not _is_finite(weight)), None)
        if broken is not None:
            raise AtlasError(
                f"the weights of {what} hold NaN or inf ({broken}), so that nothing it computes can be compared: load "
                "them anew, or in a wider type"
            )
        raise AtlasError(
            f"{what} has no list of blocks that each take and return the residual stream, so no layer can be told"
        )
    if name is not None:
        named = [stack for stack in stacks if name in stack.path.split(".") or name == stack.path]
        if len(named) != 1:
            paths = ", ".join(stack.path for stack in stacks)
            raise AtlasError(
                f"stack={name!r} must name one list of blocks of {what}, but names {len(named)}: it has {paths}"
            )
        return named[0]
    with_attention = [stack for stack in stacks if stack.n_kernels]
    if with_attention:
        return with_attention[-1]
    return max(stacks, key=lambda stack: len(stack.blocks))


def _structure(model: nn.Module) -> str:
    """A hash of what decides where the sites are.

    That is the classes, code and settings of all parts, the shapes of their parameters and which of these hold nothing
    but zeros (what they give is no trace of anything), and its configuration.
    """
    config = getattr(model, "config", None)
    shapes = [
        (path, name, None if x is None else (tuple(x.shape), str(x.dtype), _is_zero(x)))
        for path, part in parts_of(model)
        for name, x in part._parameters.items()
    ]
    attention = str(getattr(config, "_attn_implementation", None))
    return digest([settings_of(model), repr(shapes), repr(config), attention, torch.__version__])


def _is_zero(x: torch.Tensor) -> bool:
    """Whether a parameter holds nothing but zeros; most show in their middle that they do not."""
    if x.is_meta or not x.numel() or type(x) not in (torch.Tensor, nn.Parameter):
        return False
    return not x.detach()[tuple(size // 2 for size in x.shape)].item() and not bool(x.any())
