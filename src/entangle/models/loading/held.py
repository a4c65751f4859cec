"""The model inside what another tool made of it: told by what the object holds, so that no tool need be imported."""

from __future__ import annotations

from typing import Any

from torch import nn

from entangle.errors import EntangleError

TRACER = "nnsight"
HOLDERS = ("_module", "_model", "model")  # nnsight and nnterp; lm-evaluation-harness; pipelines and trainers


def held(model: Any) -> Any:
    """The torch module inside an object that holds one; a torch module itself as it is.

    Args:
        model: A torch module, or an object that keeps one: nnsight's `LanguageModel`, nnterp's
            `StandardizedTransformer`, a `transformers` pipeline or `Trainer`, a model of lm-evaluation-harness.

    Returns:
        The module.

    Raises:
        EntangleError: There is no module in it, or one without numbers.

    Example:
        >>> from types import SimpleNamespace
        >>> from torch import nn
        >>> pipeline = SimpleNamespace(model=nn.Linear(2, 2), tokenizer=None)
        >>> held(pipeline) is pipeline.model
        True
    """
    inner = model
    while not isinstance(inner, nn.Module):
        known = getattr(inner, "__dict__", {})
        inside = next((known[name] for name in HOLDERS if known.get(name) is not None), None)
        if inside is None or isinstance(inside, str):
            raise EntangleError(
                f"a model must be a torch module, or an object that holds one (nnsight, a pipeline), but a "
                f"{type(model).__name__} arrived: pass AutoModelForCausalLM.from_pretrained(...)"
            )
        inner = inside
    if inner is not model and any(tensor.is_meta for tensor in inner.parameters()) and not _is_offloaded(inner):
        raise EntangleError(
            f"the {type(model).__name__} has not loaded its weights yet: make it with dispatch=True, or run it once"
        )
    return inner


def underlying(model: Any) -> Any:
    """The HuggingFace model that computes: what `held` gives, and of a TransformerLens bridge the model in that.

    Example:
        >>> en.models.underlying(model) is model
        True
    """
    module = held(model)
    original = vars(module).get("_modules", {}).get("original_model") or vars(module).get("original_model")
    return original if type(module).__name__ == "TransformerBridge" and isinstance(original, nn.Module) else module


def own_tokenizer(model: Any, tokenizer: Any) -> Any:
    """The tokenizer given, or where that is None the one that the holder of a model keeps beside it.

    Example:
        >>> from types import SimpleNamespace
        >>> own_tokenizer(SimpleNamespace(model=model, tokenizer=tokenizer), None) is tokenizer
        True
    """
    if tokenizer is not None or isinstance(model, str):
        return tokenizer
    return getattr(model, "__dict__", {}).get("tokenizer")


def is_traced(module: nn.Module) -> bool:
    """Whether the forward that a module was given is nnsight's, which outside of traces runs the class's own."""
    given, own = vars(module), type(module).forward
    state = getattr(given.get("forward"), "state", None)
    return "forward" in given and own in (given.get("__nnsight_forward__"), getattr(state, "original", None))


def untraced(model: nn.Module) -> nn.Module:
    """The model, a copy that nobody else has, without what nnsight put on it: its modules run their own forward.

    Example:
        >>> from copy import deepcopy
        >>> copied = deepcopy(model)
        >>> untraced(copied) is copied
        True
    """
    for module in model.modules():
        if is_traced(module):
            for name in ("forward", "__nnsight_forward__", "__nnsight__"):
                vars(module).pop(name, None)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if str(hook.__module__).partition(".")[0] == TRACER]:
                del hooks[key]
    return model


def _is_offloaded(model: nn.Module) -> bool:
    return any(hasattr(module, "_hf_hook") for module in model.modules())
