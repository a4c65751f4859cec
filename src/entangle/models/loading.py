"""Load a model and its tokenizer from a directory or the hub, with one clear line for whatever is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from entangle.errors import EntangleError

Task = Literal["causal", "encoder", "auto"]


def load(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    task: Task = "auto",
) -> tuple[nn.Module, Any]:
    """A model in evaluation mode and its tokenizer, which can pad.

    No code from the repository is run. A tokenizer without a padding token pads with its end-of-sequence token.

    Args:
        path_or_id: a local directory, or an id on the HuggingFace hub.
        revision: of a hub model: a commit, for a result that can be repeated.
        dtype: of the weights; as they were saved by default.
        device: where to put the model; where HuggingFace puts it by default.
        task: `"causal"` for a language model with its head, `"encoder"` for the bare model, `"auto"` for the first that
            its configuration allows.

    Raises:
        EntangleError: no model there, one that needs code of its own, no tokenizer, or no token to pad with.
    """
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if task not in ("causal", "encoder", "auto"):
        raise EntangleError(f"task must be 'causal', 'encoder' or 'auto', but is {task!r}")
    name = str(path_or_id)
    config = _config(name, revision)
    causal = task == "causal" or (task == "auto" and _is_causal(config, MODEL_FOR_CAUSAL_LM_MAPPING))
    auto = AutoModelForCausalLM if causal else AutoModel
    try:
        model = auto.from_pretrained(name, revision=revision, dtype=dtype or "auto")
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise EntangleError(f"{name} could not be loaded as a model: {_first_line(error)}") from error
    tokenizer = load_tokenizer(name, revision=revision)
    return (model if device is None else model.to(device)).eval(), tokenizer


def load_tokenizer(path_or_id: str | Path, *, revision: str | None = None) -> Any:
    """The tokenizer beside a model; see `load`."""
    from transformers import AutoTokenizer

    name = str(path_or_id)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise EntangleError(
            f"{name} has no tokenizer that can be loaded: save one beside the model with "
            "tokenizer.save_pretrained(...) "
            f"({_first_line(error)})"
        ) from error
    if tokenizer.vocab_size <= len(tokenizer.all_special_ids):  # transformers makes up an empty one where there is none
        raise EntangleError(
            f"{name} has no tokenizer (its vocabulary is empty): save one beside the model with "
            "tokenizer.save_pretrained(...)"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise EntangleError(
                f"the tokenizer of {name} has neither a padding nor an end-of-sequence token: set one and save it"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    path = Path(name)
    if path.is_file():
        raise EntangleError(
            f"a model is a directory or a hub id, but {name} is a file: pass the directory that holds config.json"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise EntangleError(
            f"{name} is not a model: it has no config.json; pass a directory written by model.save_pretrained(...)"
        )
    try:
        return AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        where = (
            "a local directory (none exists of this name) or a hub id that can be reached"
            if not path.is_dir()
            else "a model"
        )
        raise EntangleError(f"{name} is not {where}: {_first_line(error)}") from error


def _is_causal(config: Any, mapping: Any) -> bool:
    architectures = getattr(config, "architectures", None) or []
    if architectures:
        return any("CausalLM" in name or "LMHead" in name for name in architectures)
    return type(config) in mapping


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
