"""Captured activations, found again by model, texts and settings: in memory while a study holds them, or on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from entangle.activations import Activations, collect
from entangle.data import LabelledTexts
from entangle.models import fingerprint, is_hooked, tokenizer_fingerprint
from entangle.storage.digest import digest

# What finished studies hold; when the last that holds it goes, so does it.
_HELD: WeakValueDictionary[str, Activations] = WeakValueDictionary()


def captured(
    model: Any,
    tokenizer: Any,
    data: LabelledTexts,
    sites: Sequence[str],
    *,
    cache: Path | None = None,
    layers: Sequence[int] | None = None,
    max_length: int | None = None,
    prepend_bos: bool = False,
    **options: Any,
) -> Activations:
    """`collect` at the last token, or what was collected before from the same model, texts and settings.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        data: The texts.
        sites: The sites.
        cache: The folder of earlier runs; without it they are found again only while a study holds them.
        layers: As for `collect`.
        max_length: As for `collect`.
        prepend_bos: As for `collect`.
        options: Arguments of `collect` that do not change what is captured, such as `batch_tokens`.

    Returns:
        The activations.
    """
    settings: dict[str, Any] = {
        "sites": list(sites),
        "layers": None if layers is None else list(layers),
        "tokens": "last",
        "max_length": max_length,
        "prepend_bos": prepend_bos,
    }
    if is_hooked(model):  # what hooks change, such as a steered model's activations, no key could tell
        return collect(model, tokenizer, data.texts, **settings, **options)
    key = digest([fingerprint(model), data.texts, tokenizer_fingerprint(tokenizer), settings])
    activations = _HELD.get(key)
    folder = cache and cache / key
    if activations is None and folder and folder.is_dir():
        activations = Activations.load(folder, model=model)
    if activations is None:
        activations = collect(model, tokenizer, data.texts, **settings, **options)
    if folder and not folder.is_dir():
        activations.save(folder)
    _HELD[key] = activations
    return activations
