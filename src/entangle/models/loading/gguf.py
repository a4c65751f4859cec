"""GGUF files as models: found by their name, read by transformers, and from then on plain weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from entangle.errors import EntangleError

SUFFIX = ".gguf"
NEEDS = ("gguf", "accelerate")
"""What transformers reads such a file with."""


def find_gguf(path: str | Path) -> Path | None:
    """The GGUF file that a path names: itself, or the one in a directory that holds no other model.

    Args:
        path: A file, a directory, or an id on the hub.

    Returns:
        The file; None where there is none, or where `config.json` says that the directory is another model.

    Raises:
        EntangleError: Several files in the directory.
    """
    place = Path(path)
    if place.is_file():
        return place if place.suffix.lower() == SUFFIX else None
    if not place.is_dir() or (place / "config.json").exists():
        return None
    files = sorted(each for each in place.iterdir() if each.suffix.lower() == SUFFIX and each.is_file())
    if len(files) > 1:
        names = ", ".join(each.name for each in files[:3])
        raise EntangleError(f"{place} holds {len(files)} GGUF files ({names}): name the one that is meant")
    return files[0] if files else None


def source(path: str | Path, revision: str | None = None) -> tuple[str, dict[str, Any]]:
    """The name that `from_pretrained` of transformers takes for a path or id, and its options.

    Args:
        path: A directory, an id on the hub, or a GGUF file or a directory with one.
        revision: Of a hub model.

    Returns:
        The directory or id, and `revision` or `gguf_file`.

    Raises:
        EntangleError: A GGUF file, and a package that reads it is not installed; or several such files.
    """
    file = find_gguf(path)
    if file is None:
        return str(path), {"revision": revision}
    lacking = [name for name in NEEDS if find_spec(name) is None]
    if lacking:
        raise EntangleError(
            f"{file} is read with {' and '.join(NEEDS)}; {' and '.join(lacking)} cannot be imported: "
            "pip install 'entangle[gguf]'"
        )
    return str(file.parent), {"gguf_file": file.name}


def dense() -> dict[str, Any]:
    """The option by which transformers unpacks every weight; older versions do nothing else and know no option."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def is_marked(config: Any) -> bool:
    """Whether a configuration says that its model's weights came from a GGUF file, plain as they may be by now."""
    marks = getattr(config, "quantization_config", None)
    method = marks.get("quant_method") if isinstance(marks, dict) else getattr(marks, "quant_method", None)
    return str(getattr(method, "value", method)).lower() == "gguf"


def unmark(model: nn.Module) -> nn.Module:
    """Take the marks of quantisation off a model whose weights were unpacked from a GGUF file; another stays as it is.

    Its weights are plain, but transformers goes on calling it quantised and refuses to save it.

    Args:
        model: Any model; its marks are changed, not its weights.

    Returns:
        The model.

    Raises:
        EntangleError: Its weights are still packed.

    Example:
        >>> en.models.unmark(model) is model  # weights that were never packed bear no marks
        True
    """
    config: Any = getattr(model, "config", None)
    if not is_marked(config):
        return model
    if any(type(part).__name__.startswith("Gguf") for part in model.modules()):
        raise EntangleError(
            f"this {type(model).__name__} computes with the packed weights of a GGUF file; entangle needs plain ones: "
            "load it with entangle.models.load(path), or with quantization_config=GgufConfig(dequantize=True)"
        )
    del config.quantization_config
    for name in ("hf_quantizer", "quantization_method"):
        vars(model).pop(name, None)
    if vars(model).get("is_quantized"):
        vars(model).pop("is_quantized")
    return model
