"""Where things live inside a model, and how to read and write them."""

from entangle.models.atlas import Atlas
from entangle.models.fingerprint import check_fingerprint, fingerprint
from entangle.models.hooks import attach, hooked, refuse_compiled
from entangle.models.loading import load, load_tokenizer
from entangle.models.place import AtlasError, Place

__all__ = [
    "Atlas",
    "AtlasError",
    "Place",
    "attach",
    "check_fingerprint",
    "fingerprint",
    "hooked",
    "load",
    "load_tokenizer",
    "refuse_compiled",
]
