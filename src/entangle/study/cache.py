"""Captured activations kept between runs, found again by model, data and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entangle.activations import Activations, collect
from entangle.data import LabelledTexts
from entangle.models import fingerprint


def captured(
    model: Any,
    tokenizer: Any,
    data: LabelledTexts,
    sites: Sequence[str],
    *,
    cache: Path | None = None,
    max_length: int | None = None,
    prepend_bos: bool = False,
    **options: Any,
) -> Activations:
    """`collect` at the last token, or what an earlier run collected from the same model, texts and settings.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        data: The texts.
        sites: The sites.
        cache: The folder of earlier runs; without it nothing is kept.
        max_length: As for `collect`.
        prepend_bos: As for `collect`.
        options: Arguments of `collect` that do not change what is captured, such as `batch_tokens`.

    Returns:
        The activations of every layer.
    """
    settings: dict[str, Any] = {
        "sites": list(sites),
        "tokens": "last",
        "max_length": max_length,
        "prepend_bos": prepend_bos,
    }
    folder = cache and cache / _key(model=fingerprint(model), texts=data.texts, tokenizer=_state(tokenizer), **settings)
    if folder and folder.is_dir():
        return Activations.load(folder, model=model)
    activations = collect(model, tokenizer, data.texts, **settings, **options)
    if folder:
        activations.save(folder)
    return activations


def _key(**content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _state(tokenizer: Any) -> str:
    """What decides how the tokenizer cuts a text: all of a fast tokenizer, else the class and the vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return str(backend.to_str())
    return json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
