"""What decides what a module computes: its tensors, the kinds of its parts, and the settings these carry."""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.storage.tensors import tensor_hash

INTERNAL = frozenset(vars(nn.Module()))
# What running, loading or training leaves behind without changing what is computed.
LEFT_BEHIND = frozenset(
    [
        *(
            *("__nnsight_forward__", "__path__"),
            "_gradient_checkpointing_func",
            "_is_hf_initialized",
            "_old_forward",
            "_weight_conversions",
            "forward",
        ),
        *("all_tied_weights_keys", "compute_type_is_set", "conv1d_state", "device_map", "generate"),
        *("gradient_checkpointing", "hf_device_map", "is_loaded_in_4bit", "is_loaded_in_8bit", "is_parallelizable"),
        *("is_quantized", "kernel_config", "loss_type", "max_seq_len_cached", "model_parallel", "name_or_path"),
        *("quantization_method", "recurrent_states", "warnings_issued"),
    ]
)
NO_SETTINGS = INTERNAL | LEFT_BEHIND
PLAIN = frozenset((type(None), bool, int, float, str))
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, partial)
# Wrappers that hold a model and compute the same, and what they call it.
WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
# Packages that put modules of their own beside a model's, for what they trace and nothing that is computed.
TRACERS = frozenset(("nnsight", "nnterp"))
# Packages whose code their version tells; of any other class the code of `forward` is looked at.
VERSIONED = frozenset(("accelerate", "bitsandbytes", "entangle", "peft", "torch", "transformer_lens", "transformers"))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `DataParallel`, `DistributedDataParallel` or `torch.compile`; any other itself.

    Example:
        >>> en.storage.unwrapped(torch.nn.DataParallel(model)) is model
        True
    """
    while isinstance(inner := getattr(module, WRAPPERS.get(type(module).__name__, ""), None), nn.Module):
        module = inner
    return module


def parts_of(module: nn.Module, path: str = "") -> list[tuple[str, nn.Module]]:
    """A module and all its parts with their paths, a shared part at each: `named_modules`, which is slow, as a list.

    Example:
        >>> [path for path, _ in en.storage.parts_of(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()))]
        ['', '0', '1']
    """
    parts = [(path, module)]
    for name, child in module._modules.items():
        if child is not None:
            parts += parts_of(child, f"{path}.{name}" if path else name)
    return parts


def tensors_of(module: nn.Module) -> dict[str, Any]:
    """Every parameter, buffer and plain tensor attribute by its name, tied ones at each of theirs.

    What a part adds to its state dict besides, such as the scales of a quantised weight, is among them, as it is. A
    weight that accelerate has offloaded is a function that reads it.
    """
    tensors: dict[str, Any] = {}
    for path, part in parts_of(unwrapped(module)):
        own = _extra_state(part)  # first: it may put packed weights back into the form that they are saved in
        for name, x in {**part._parameters, **part._buffers, **_set_back(part)}.items():
            if x is not None:
                own[name] = partial(_offloaded, part, name) if x.is_meta else x
        for name, value in vars(part).items():
            if name not in NO_SETTINGS and isinstance(value, Tensor) and not _of_the_longest(part, name):
                own[name] = value
        tensors |= {f"{path}.{name}": x for name, x in own.items()} if path else own
    return tensors


def settings_of(module: nn.Module) -> str:
    """The class and the plain settings of every part by its path: numbers, names, functions and lists of these.

    As the text that Python writes of them, in which no two settings look alike.

    Example:
        >>> en.storage.settings_of(torch.nn.Dropout(0.5))
        "[('', 'Dropout', None, [('inplace', False), ('p', 0.5)])]"
    """
    settings = [
        (path, type(part).__qualname__, _code(type(part).forward), sorted(attributes(part).items()))
        for path, part in parts_of(unwrapped(module))
        if type(part).__module__.partition(".")[0] not in TRACERS
    ]
    settings.sort(key=itemgetter(0))  # paths differ, and parts may have been added in another order
    return repr(settings)


def attributes(module: nn.Module) -> dict[str, Any]:
    """What a module has been set to, by name: not its tensors and parts, nor what running it leaves behind."""
    hf_model = hasattr(module, "from_pretrained")
    values: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name in NO_SETTINGS or (hf_model and name.startswith("_")) or _of_the_longest(module, name):
            continue
        if type(value) in PLAIN:
            values[name] = value
        elif isinstance(value, FUNCTIONS):
            if not hf_model:  # there it is how it is loaded and spread out
                values[name] = _function(value)
        elif _is_plain(value):
            values[name] = _listed(value)
    return values


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return depth < 4 and all(_is_plain(item, depth + 1) for item in value)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | (Tensor if depth else bool))


def _listed(value: Any) -> Any:
    """Tuples as lists, which they become in a configuration that was saved; what has no order in one; hashes."""
    if isinstance(value, Mapping):
        return sorted(((key, _listed(item)) for key, item in value.items()), key=repr)
    if isinstance(value, set | frozenset):
        return {"any order": sorted(map(repr, value))}
    if isinstance(value, Tensor):
        return "tensor", tensor_hash(value)
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _function(value: Any) -> tuple[Any, ...]:
    """A function that a module was given, such as its activation: its name, its code and what it is bound to."""
    if isinstance(value, partial):
        bound = (*enumerate(value.args), *value.keywords.items())
        plain = [(key, _listed(item)) for key, item in bound if _is_plain(item)]
        return (*_function(value.func), plain)
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}", _code(
        value
    )


def _code(function: Any) -> tuple[Any, ...] | None:
    """The code of a function outside well-known packages, since no version tells it."""
    code = getattr(function, "__code__", None)
    if code is None or str(function.__module__).partition(".")[0] in VERSIONED:
        return None
    constants = [each.co_code if isinstance(each, types.CodeType) else repr(each) for each in code.co_consts]
    return code.co_code, code.co_names, constants


def _extra_state(part: nn.Module) -> dict[str, Any]:
    """What a part saves beside its parameters and buffers."""
    kind = type(part)
    state: dict[str, Any] = {}
    if kind.get_extra_state is not nn.Module.get_extra_state:
        state["_extra_state"] = part.get_extra_state()
    for name, parameter in part._parameters.items():
        # bitsandbytes' scales; asking for its state dict would repack the weights of a model that has run.
        scales = getattr(parameter, "quant_state", None)
        if scales is not None:
            state[f"{name}.scales"] = scales.as_dict()
        scales = getattr(parameter, "SCB", None)
        scales = getattr(getattr(part, "state", None), "SCB", None) if scales is None else scales
        if scales is not None:
            state[f"{name}.scales"] = scales
    own = kind._save_to_state_dict is not nn.Module._save_to_state_dict
    if own and kind.__module__.partition(".")[0] != "bitsandbytes" and not _is_offloaded(part):
        part._save_to_state_dict(state, "", False)
    return state


def _is_offloaded(part: nn.Module) -> bool:
    return any(x is not None and x.is_meta for x in (*part._parameters.values(), *part._buffers.values()))


def _set_back(part: nn.Module) -> dict[str, Tensor]:
    """The frequencies of rotary embeddings that a long text changes, as the next short text sets them back.

    Some versions of transformers write down how long the text was where they never look, and set nothing back: there a
    long text makes another model of it, and the frequencies are those that it has.
    """
    kinds = _kinds(part)
    values: dict[str, Any] = {**part._buffers, **vars(part)} if kinds else {}
    back: dict[str, Tensor] = {}
    for prefix, kind in kinds.items():
        original, length = values.get(f"{prefix}original_inv_freq"), values.get("original_max_seq_len")
        longest = values.get(f"{prefix}max_seq_len_cached", values.get("max_seq_len_cached"))
        grown = longest is not None and length is not None and int(longest) > int(length)
        if original is not None and (kind == "longrope" or ("dynamic" in kind and grown)):
            back[f"{prefix}inv_freq"] = original
    return back


def _of_the_longest(part: nn.Module, name: str) -> bool:
    """Whether an attribute of a rotary embedding is what it remembers of long texts."""
    return name.endswith(("max_seq_len_cached", "long_inv_freq")) and bool(_kinds(part))


def _kinds(part: nn.Module) -> dict[str, str]:
    """How a rotary embedding scales its frequencies, by the beginning of their names: that of a type of layers."""
    kinds = vars(part).get("rope_type")
    if isinstance(kinds, Mapping):
        return {f"{layer_type}_": str(kind) for layer_type, kind in kinds.items()}
    return {} if kinds is None else {"": str(kinds)}


def _offloaded(part: nn.Module, name: str) -> Tensor:
    """A weight that accelerate keeps on disk or in memory until its module runs."""
    hook = getattr(part, "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        weights = getattr(one, "weights_map", None)
        if weights is not None:
            return torch.as_tensor(weights[name])
    raise EntangleError(
        f"{name} of a {type(part).__name__} has no numbers (it is on the meta device): load the model's weights first"
    )
