"""Load a model and its tokenizer from a directory or the hub, with one clear line for whatever is wrong."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from entangle.errors import EntangleError
from entangle.models.loading.gguf import SUFFIX, dense, source, unmark
from entangle.storage.folder import check_files

Task = Literal["causal", "encoder", "auto"]
# What transformers raises where a folder holds no model that can be made: no two of its parts agree on one.
LOADING_ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, ImportError, AttributeError),
    *(StrictDataclassError, SafetensorError, struct.error),  # the last two: a file that is cut off
)
MANIFEST = "entangle.json"
"""Names the files of a model that this library trained; where it is, they are compared with it."""
SAFE = {"pytorch_model": "model"}
"""Stems of files of weights where the safe format has another than the pickled."""
IN_BLOCK = re.compile(r"\.\d+\.")
# Buffers that older versions of transformers saved; they hold no weights.
OLD_BUFFER = re.compile(r"(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$|position_ids$|token_type_ids$")


def load(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    task: Task = "auto",
) -> tuple[nn.Module, Any]:
    """A model in evaluation mode and its tokenizer, which can pad.

    No code from the repository is run, and no pickle is read: weights come from safetensors, all of them. A tokenizer
    without a padding token pads with its end-of-sequence token.

    Args:
        path_or_id: A local directory, an id on the HuggingFace hub, or a GGUF file or a directory with one, whose
            weights are unpacked (needs `pip install 'entangle[gguf]'`).
        revision: Of a hub model: a commit, for a result that can be repeated.
        dtype: Of the weights, in which the model computes; by default that of `dtype_rule`.
        device: Where to put the model; where HuggingFace puts it by default.
        task: `"causal"` for a language model with its head, `"encoder"` for the bare model, `"auto"` for the first that
            its configuration allows.

    Raises:
        EntangleError: No model there, one that needs code of its own, whose weights are pickled, or not all there; no
            tokenizer, or no token to pad with; or no such device.

    Example:
        >>> model.save_pretrained("saved")
        >>> _ = tokenizer.save_pretrained("saved")
        >>> again, its_tokenizer = en.models.load("saved")
        >>> en.models.fingerprint(again)["weights"] == en.models.fingerprint(model)["weights"]
        True
    """
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if task not in ("causal", "encoder", "auto"):
        raise EntangleError(f"task must be 'causal', 'encoder' or 'auto', but is {task!r}")
    if device is not None:
        check_device(device)
    name, options = source(path_or_id, revision)
    config = _config(name, options)
    causal = task == "causal" or (task == "auto" and _is_causal(config, MODEL_FOR_CAUSAL_LM_MAPPING))
    auto = AutoModelForCausalLM if causal else AutoModel
    model = pretrained(auto, name, **options, dtype=dtype or "auto")
    tokenizer = load_tokenizer(path_or_id, revision=revision)
    model = model if device is None else model.to(device)
    return (dtype_rule(model) if dtype is None else model).eval(), tokenizer


def dtype_rule(model: nn.Module) -> nn.Module:
    """The type in which a model computes where nobody chose one; every result says it in its model's fingerprint.

    As it was saved, but float32 for float16 on a CPU, which holds the same weights exactly. Measured on one thread of a
    CPU that multiplies bfloat16 (docs/real-models.md): bfloat16 takes about half the time of float32 and moves the
    next-token distributions by a thousandth of a nat; float16 takes three times as long as float32.

    Args:
        model: A model as it was loaded; it is changed.

    Returns:
        The model.
    """
    config: Any = getattr(model, "config", None)
    if any(each.dtype == torch.float16 and each.device.type == "cpu" for each in model.parameters()):
        model = model.float()
        if config is not None:
            config.dtype = torch.float32
    return model


def check_device(device: torch.device | str) -> None:
    """Refuse a device that this machine cannot compute on.

    Raises:
        EntangleError: No such device, or one that holds no numbers.

    Example:
        >>> en.models.check_device("cpu")
        >>> en.models.check_device("gpu")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: device 'gpu' cannot be used ...
    """
    try:
        placed = torch.ones(1, device=device)
        works = not placed.is_meta and float(placed.sum()) == 1
        reason = "" if works else "it holds no numbers"
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, TypeError, ValueError) as error:
        reason = _first_line(error)
    if reason:
        devices = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise EntangleError(
            f"device {str(device)!r} cannot be used ({reason}): choose one that is here, such as {devices}"
        )


def load_tokenizer(path_or_id: str | Path, *, revision: str | None = None) -> Any:
    """The tokenizer beside a model; see `load`.

    Example:
        >>> _ = tokenizer.save_pretrained("saved")
        >>> len(en.models.load_tokenizer("saved"))
        512
    """
    from transformers import AutoTokenizer

    name, options = source(path_or_id, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options, trust_remote_code=False)
    except LOADING_ERRORS as error:
        refuse_code(name, error)
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


def pretrained(auto: Any, name: str, *, what: str = "a model", **options: Any) -> Any:
    """A model from a checkpoint that holds all its weights, as safetensors; every model of this library comes by here.

    Args:
        auto: A class of transformers with `from_pretrained`.
        name: A directory, or an id on the hub.
        what: What it should be, for messages: "a text-classification model".
        options: For `from_pretrained`: `revision`, `dtype`, ...

    Returns:
        The model, in evaluation mode.

    Raises:
        EntangleError: Nothing there that can be loaded, code that would have to run, a pickle, weights that are missing
            (transformers would draw them at random) or have another shape, or weights of a block that the class has no
            place for.

    Example:
        >>> model.save_pretrained("saved")
        >>> from transformers import AutoModelForCausalLM
        >>> en.models.pretrained(AutoModelForCausalLM, "saved").training
        False
    """
    if "gguf_file" in options:
        options |= dense()
    else:
        _refuse_pickles(name)
        check_files(Path(name), MANIFEST, what)
        options |= {"use_safetensors": True}
    options |= {"trust_remote_code": False, "output_loading_info": True}
    try:
        model, info = auto.from_pretrained(name, **options)
        pooled = [key for key in info["missing_keys"] if "pooler." in key]
        if pooled and len(pooled) == len(info["missing_keys"]) and hasattr(model, "pooler"):
            # Language models of the BERT family are saved without the pooler, which nothing here reads.
            model, info = auto.from_pretrained(name, add_pooling_layer=False, **options)
    except LOADING_ERRORS as error:
        refuse_code(name, error)
        raise EntangleError(f"{name} could not be loaded as {what}: {_first_line(error)}") from error
    _refuse_partial(name, model, info, what)
    return unmark(model).eval()


def refuse_code(name: str, error: Exception) -> None:
    """Raise one line of our own where transformers refused a repository that carries code; else do nothing.

    Example:
        >>> error = ValueError("pass trust_remote_code=True to run it")
        >>> en.models.refuse_code("someone/model", error)
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: someone/model carries Python code of its own, which is never run ...
    """
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        raise EntangleError(
            f"{name} carries Python code of its own, which is never run here: save it as a class of transformers, or "
            "load it yourself and pass the objects"
        ) from error


def _refuse_pickles(name: str) -> None:
    """Refuse a directory whose weights are there as a pickle alone, which can run any code when it is read."""
    folder = Path(name)
    if not folder.is_dir():
        return
    for stem in ("pytorch_model", "adapter_model"):
        pickled = sorted(path.name for path in folder.glob(f"{stem}*.bin"))
        if pickled and not any(folder.glob(f"{SAFE.get(stem, stem)}*.safetensors")):
            raise EntangleError(
                f"{folder / pickled[0]} is a pickle, which can run code when it is read, so it is not read: convert "
                "it once, where you trust it, with AutoModel.from_pretrained(...).save_pretrained(...), which writes "
                "safetensors"
            )


def _refuse_partial(name: str, model: nn.Module, info: Mapping[str, Any], what: str) -> None:
    """Refuse a model some of whose weights are not those of the checkpoint."""
    for key, how in (
        ("missing_keys", "lacks"),
        ("mismatched_keys", "has another shape of"),
        ("error_msgs", "fails at"),
    ):
        names = sorted(str(each[0] if isinstance(each, tuple) else each) for each in info.get(key) or ())
        if names:
            raise EntangleError(
                f"{name} is no whole checkpoint of {what}: it {how} {_listed(names)}, which would be drawn at random "
                f"in {type(model).__name__}; save all its weights"
            )
    unused = sorted(str(each) for each in info.get("unexpected_keys") or ())
    inner = [each for each in unused if IN_BLOCK.search(each) and not OLD_BUFFER.search(each)]
    if inner:
        raise EntangleError(
            f"{name} is not {what} of the class {type(model).__name__} alone: this has no place for {_listed(inner)}; "
            "mend its config.json (layers, biases), or merge its adapter into the weights"
        )
    if unused and type(model).__name__ in (getattr(getattr(model, "config", None), "architectures", None) or ()):
        outer = [each for each in unused if not OLD_BUFFER.search(each)]
        if outer:
            warnings.warn(
                f"{name} holds weights that {type(model).__name__} does not use: {_listed(outer)}", stacklevel=3
            )


def _listed(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _config(name: str, options: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    path = Path(name)
    if path.is_file():
        raise EntangleError(
            f"a model is a directory, a hub id or a {SUFFIX} file, but {name} is a file: pass the directory that holds "
            "config.json"
        )
    if path.is_dir() and not (path / "config.json").is_file() and "gguf_file" not in options:
        raise EntangleError(
            f"{name} is not a model: it has no config.json; pass a directory written by model.save_pretrained(...)"
        )
    try:
        return AutoConfig.from_pretrained(name, **options, trust_remote_code=False)
    except LOADING_ERRORS as error:
        refuse_code(name, error)
        where = (
            "a local directory (none exists of this name) or a hub id that can be reached"
            if not path.is_dir()
            else "a model"
        )
        raise EntangleError(f"{name} is not {where}: {_first_line(error)}") from error


def _is_causal(config: Any, mapping: Any) -> bool:
    architectures = getattr(config, "architectures", None) or []
    if not (isinstance(architectures, list | tuple) and all(isinstance(name, str) for name in architectures)):
        raise EntangleError(f"architectures in config.json must be a list of names; got {architectures!r}: correct it")
    if architectures:
        return any("CausalLM" in name or "LMHead" in name for name in architectures)
    return type(config) in mapping


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
