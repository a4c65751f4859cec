"""A directory written whole, with kind, version and whose it is."""

from entangle.storage import folder
from entangle.storage.digest import digest, folder_digest, weights_hash
from entangle.storage.files import OURS, DiskError, on_disk, replacing, tidy, write_text
from entangle.storage.folder import Kind, check_files
from entangle.storage.modules import parts_of, settings_of, unwrapped
from entangle.storage.names import check_distinct, check_name
from entangle.storage.out import check_out
from entangle.storage.owner import LOCK, owned
from entangle.storage.record import read, taken_apart, write
from entangle.storage.sealed import decoding, read_object, read_sealed, unseal, write_sealed
from entangle.storage.tables import as_json, build

__all__ = [
    "LOCK",
    "OURS",
    "DiskError",
    "Kind",
    "as_json",
    "build",
    "check_distinct",
    "check_files",
    "check_name",
    "check_out",
    "decoding",
    "digest",
    "folder",
    "folder_digest",
    "on_disk",
    "owned",
    "parts_of",
    "read",
    "read_object",
    "read_sealed",
    "replacing",
    "settings_of",
    "taken_apart",
    "tidy",
    "unseal",
    "unwrapped",
    "weights_hash",
    "write",
    "write_sealed",
    "write_text",
]
