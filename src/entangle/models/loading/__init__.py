"""Models and tokenizers from directories, hub ids and GGUF files."""

from entangle.models.loading.checkpoint import (
    LOADING_ERRORS,
    MANIFEST,
    check_device,
    load,
    load_tokenizer,
    pretrained,
    refuse_code,
)

__all__ = ["LOADING_ERRORS", "MANIFEST", "check_device", "load", "load_tokenizer", "pretrained", "refuse_code"]
