"""What makes two models the same model: architecture, sizes, configuration, and every bit of every weight."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from functools import partial
from types import MethodType
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from entangle.errors import EntangleError
from entangle.models.loading.gguf import is_marked
from entangle.models.loading.held import TRACER, held, is_traced, underlying
from entangle.storage import parts_of, settings_of, unwrapped
from entangle.storage.digest import digest, weights_hash

Mark = Mapping[str, Any] | None  # what `fingerprint` gives, where there is one
VERSION = 2
SIZE_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
# Entries of a configuration that say where it came from, what is returned or how it is run, not what is computed.
NOT_COMPUTED = frozenset(
    [
        *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "name_or_path"),
        *("use_cache", "output_attentions", "output_hidden_states", "return_dict", "torchscript"),
    ]
)
TOKENIZER_SETTINGS = (
    *("special_tokens_map", "chat_template", "padding_side", "truncation_side", "model_max_length"),
    *("model_input_names", "clean_up_tokenization_spaces", "split_special_tokens"),
)
# What a slow tokenizer goes by; a fast one keeps them as remarks, which a saved one may have lost, and goes by its
# backend's own template and normaliser.
SLOW_SETTINGS = ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy")
LIBRARIES = ("torch", "transformers", "accelerate", "peft", TRACER)  # hooks of theirs are part of how a model is run


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """A JSON-able mark of the model, the same wherever the same weights are loaded, on any device.

    It is made anew at every call, in about a twentieth of a second a gigabyte on a CPU, so that no change of a weight
    goes unnoticed, by whatever way it was made.

    Args:
        model: Any module; a HuggingFace model also tells its `model_type` and sizes. Of one inside `DataParallel`, a
            TransformerLens `TransformerBridge`, an nnsight model or a pipeline the model itself is marked.

    Returns:
        `version` of the mark; `architecture`, `model_type`, the sizes its configuration names, `n_parameters` and
        `dtype`, for people; `configuration`, a hash of all that it says of the computation; `structure`, one of the
        classes and settings of all parts, adapters that are active, merged or disabled among them; `weights`, one of
        every bit of every parameter and buffer, also where accelerate has offloaded them; and `active`, one of what is
        hooked on the model now, such as the edits of an open `steer` block, or `None`. Tied weights are the same model
        as untied copies unless the configuration differs; another kernel of attention is the same model.

    Raises:
        EntangleError: A weight that is not there (on the meta device) or cannot be read.

    Example:
        >>> mark = en.models.fingerprint(model)
        >>> mark["architecture"], mark["n_parameters"]
        ('LlamaForCausalLM', 53408)
        >>> mark == en.models.fingerprint(model)
        True
    """
    model = underlying(unwrapped(held(model)))
    config = getattr(model, "config", None)
    text_config = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    sizes = {name: getattr(text_config, name, None) for name in SIZE_NAMES}
    parts = parts_of(model)
    sizes_of = {id(p): p.numel() for _, part in parts for p in part._parameters.values() if p is not None}
    first = next(model.parameters(), None)
    return {
        "version": VERSION,
        "architecture": type(model).__name__,
        "model_type": getattr(config, "model_type", None),
        **{name: size for name, size in sizes.items() if isinstance(size, int)},
        "n_parameters": sum(sizes_of.values()),
        "dtype": None if first is None else str(first.dtype).removeprefix("torch."),
        "configuration": digest(_computed(config)),
        "structure": digest(settings_of(model)),
        "weights": weights_hash(model),
        "active": active(model),
    }


def check_fingerprint(saved: Mapping[str, Any], model: nn.Module, *, what: str, active: bool = True) -> None:
    """Raise an `EntangleError` that names the differences unless `model` is the one `saved` was taken from.

    Args:
        saved: What `fingerprint` gave when `what` was made.
        model: The model it is about to be used with.
        what: Named in the message, such as "these activations".
        active: Whether what is hooked on the model must be the same too; not for an edit, which may act after others.

    Example:
        >>> saved = en.models.fingerprint(model)
        >>> en.models.check_fingerprint(saved, model, what="these activations")
        >>> en.models.check_fingerprint({**saved, "weights": "others"}, model, what="these activations")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: these activations came from another model (weights others there, ...
    """
    check_same(saved, fingerprint(model), what=what, active=active)


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], *, what: str, active: bool = True) -> None:
    """`check_fingerprint` with the model's mark in its place.

    Example:
        >>> mark = en.models.fingerprint(model)
        >>> en.models.check_same(mark, mark, what="these probes")
        >>> en.models.check_same({**mark, "n_parameters": 7}, mark, what="these probes")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: these probes came from another model (n_parameters 7 there, ...
    """
    different = [name for name in now if saved.get(name) != now[name] and (active or name != "active")]
    if not different:
        return
    if saved.get("version") != now.get("version") and not {"architecture", "n_parameters"} & set(different):
        raise EntangleError(
            f"{what} came from an earlier version, whose mark of a model looked at few of its weights and cannot tell "
            "whether this is the same: make them anew (of an edit known to be this model's, "
            "dataclasses.replace(edit, fingerprint=entangle.models.fingerprint(model)))"
        )
    if different == ["active"]:
        raise EntangleError(
            f"{what} came from this model with other edits or hooks on it: close the steer block, remove the hooks, or "
            "make them anew as it is now"
        )
    changes = ", ".join(
        f"{name} {_short(saved.get(name))} there, {_short(now[name])} here" for name in different if name != "version"
    )
    raise EntangleError(
        f"{what} came from another model ({changes}): use the model they were made with, or make them anew"
    )


def check_made_with(saved: Mark, model: nn.Module | None, mark: Mark = None, *, what: str) -> None:
    """Refuse a saved result of another model, where there is a model, or the mark of one, to check it by.

    Args:
        saved: The fingerprint kept with the result; `None` where it has none.
        model: The model it is about to be used with; `None` checks nothing.
        mark: That model's fingerprint in its place.
        what: The result, for the message.

    Raises:
        EntangleError: They differ, or the result has no fingerprint to check.

    Example:
        >>> mark = en.models.fingerprint(model)
        >>> en.models.check_made_with(mark, model, what="these probes")
        >>> en.models.check_made_with(None, model, what="these probes")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: these probes were saved without a model's fingerprint, so they cannot be ...
    """
    if model is None and mark is None:
        return
    if saved is None:
        raise EntangleError(
            f"{what} were saved without a model's fingerprint, so they cannot be checked: load them without one"
        )
    if mark is not None:
        check_same(saved, mark, what=what)
    if model is not None:
        check_fingerprint(saved, model, what=what)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of all that decides how texts become tokens and tokens texts: the same wherever it was loaded from.

    Args:
        tokenizer: A HuggingFace tokenizer, fast or slow, or any object with content.

    Returns:
        32 hexadecimal digits: of the vocabulary, merges, normaliser, template of special tokens and decoder, the
        special tokens, the chat template, the sides and the length that it pads and truncates at.

    Example:
        >>> len(en.models.tokenizer_fingerprint(tokenizer))
        32
    """
    if tokenizer is None or not hasattr(tokenizer, "special_tokens_map"):
        return digest(tokenizer)
    is_slow = getattr(tokenizer, "backend_tokenizer", None) is None
    names = (*TOKENIZER_SETTINGS, *SLOW_SETTINGS) if is_slow else TOKENIZER_SETTINGS
    settings = {name: getattr(tokenizer, name, None) for name in names}
    return digest([type(tokenizer).__name__, _words(tokenizer), settings])


def _words(tokenizer: Any) -> Any:
    """How a tokenizer cuts a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Before its tokens it says how the last call padded and truncated, which is no part of it. Reading a vocabulary
        # of 262,144 as JSON to leave that out would take seconds.
        json_text = str(backend.to_str())
        return json_text[max(0, json_text.find('"added_tokens":')) :]
    pieces = getattr(tokenizer, "sp_model", None)
    model = None if pieces is None else pieces.serialized_model_proto()
    merges = getattr(tokenizer, "bpe_ranks", None)
    words = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return [words, model, merges, str(getattr(tokenizer, "added_tokens_decoder", None))]


def _computed(config: Any) -> Any:
    """A configuration as plain values, without what is not computed by."""
    if config is None:
        return None
    values = _kept(config.to_dict() if hasattr(config, "to_dict") else config)
    if is_marked(config):  # weights unpacked from a GGUF file are plain ones; packed ones are parts of another class
        del values["quantization_config"]
    return values


def _kept(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _kept(item)
            for key, item in value.items()
            if key not in NOT_COMPUTED and not str(key).startswith("_")
        }
    # JSON knows no tuples, so a configuration that was saved has none.
    return [_kept(item) for item in value] if isinstance(value, list | tuple) else value


def active(model: nn.Module) -> str | None:
    """A hash of what is hooked on a model and is no part of how its libraries run it; `None` where nothing is.

    Args:
        model: The model.
    """
    hooked = [(path, kind, _content(hook)) for path, kind, hook in _hooks(model)]
    return digest(hooked) if hooked else None


def is_hooked(model: nn.Module) -> bool:
    """Whether something that is no part of how its libraries run it hangs on a model, and may change what it computes.

    Args:
        model: The model.

    Example:
        >>> with en.steer(model, iti):
        ...     en.models.is_hooked(model)
        ...
        True
        >>> en.models.is_hooked(model)
        False
    """
    return next(_hooks(model), None) is not None


def _hooks(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Every hook and every forward put in another's place, with the path of its module, but those of libraries."""
    hooks: list[tuple[str, str, Any]] = [
        ("everywhere", kind, hook)
        for kind, registered in (
            ("before", torch_module._global_forward_pre_hooks),
            ("after", torch_module._global_forward_hooks),
        )
        for hook in registered.values()
    ]
    seen = set[nn.Module]()
    for path, module in parts_of(model):
        if module in seen:
            continue
        seen.add(module)
        hooks += [(path, "before", hook) for hook in module._forward_pre_hooks.values()]
        hooks += [(path, "after", hook) for hook in module._forward_hooks.values()]
        forward = vars(module).get("forward")
        # PEFT puts a module's own back; accelerate's runs it.
        own = forward is None or forward == MethodType(type(module).forward, module) or is_traced(module)
        if not own and "_hf_hook" not in vars(module):
            yield path, "instead", forward
    for path, kind, hook in hooks:
        inner = hook
        while isinstance(inner, partial):
            inner = inner.func
        where = str(getattr(inner, "__module__", None) or type(inner).__module__)
        if where.partition(".")[0] not in LIBRARIES and getattr(hook, "content", True) is not None:
            yield path, kind, hook


def _content(hook: Any) -> str:
    """What a hook does; of one that cannot be read, or whose content cannot be compared, nothing that comes again."""
    try:
        return digest(hook)
    except EntangleError:
        return secrets.token_hex(16)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:8]}..."
