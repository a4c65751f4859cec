"""Where things live inside a model, and how to read and write them."""

from entangle.models.atlas import Atlas
from entangle.models.fingerprint import check_fingerprint, check_same, fingerprint, tokenizer_fingerprint
from entangle.models.hooks import attach, hooked, refuse_compiled
from entangle.models.loading import check_device, load, load_tokenizer
from entangle.models.place import AtlasError, Place

__all__ = [
    "Atlas",
    "AtlasError",
    "Place",
    "attach",
    "check_device",
    "check_fingerprint",
    "check_same",
    "fingerprint",
    "hooked",
    "load",
    "load_tokenizer",
    "refuse_compiled",
    "tokenizer_fingerprint",
]
