"""Activations on disk: a manifest, the examples, and shards of whole examples that are written once or not at all.

A shard counts when its receipt (size and SHA-256) is there, and the receipt is written last; so a killed run leaves
nothing that could be taken for whole, a later run does what is missing, and several processes can write side by side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from entangle.errors import EntangleError
from entangle.models.fingerprint import check_same
from entangle.storage.digest import digest
from entangle.storage.files import replacing

FORMAT, VERSION = "entangle-activations", 1
MANIFEST, EXAMPLES = "manifest.json", "examples.safetensors"


@dataclass(frozen=True)
class Store:
    """A directory of shards, and what its manifest says.

    Attributes:
        directory: where it is.
        manifest: `key` (a hash of model, texts and settings), `bounds` (the examples of each shard, `[start, end)`),
            `layers`, `fingerprint`, `meta`.
    """

    directory: Path
    manifest: dict[str, Any]

    @classmethod
    def create(
        cls,
        directory: str | Path,
        *,
        input_ids: Sequence[Sequence[int]],
        rows: Tensor,
        bounds: Sequence[tuple[int, int]],
        layers: Mapping[str, Sequence[int]],
        fingerprint: Mapping[str, Any],
        meta: Mapping[str, Any],
    ) -> Store:
        """Begin a store, or go on with one that was begun with the same model, texts and settings.

        Raises:
            EntangleError: the directory holds something else, or cannot be written.
        """
        target = Path(directory)
        content = {"bounds": [list(b) for b in bounds], "layers": dict(layers), "fingerprint": dict(fingerprint)}
        key = digest([content, json.dumps(dict(meta), sort_keys=True), [list(row) for row in input_ids], rows])
        if (target / MANIFEST).is_file():
            store = cls.open(target)
            if store.manifest["key"] != key:
                now = {**content, "meta": dict(meta)}
                raise EntangleError(
                    f"{target} holds activations of another model, other texts or settings "
                    f"({_difference(store.manifest, now)}): choose another directory, or delete it"
                )
            return store
        if target.exists() and not (target.is_dir() and {p.name for p in target.iterdir()} <= _begun(target)):
            raise EntangleError(f"{target} exists and holds no activations: choose another directory")
        manifest = {"format": FORMAT, "version": VERSION, "key": key, **content, "meta": dict(meta)}
        lengths = torch.tensor([len(row) for row in input_ids])
        flat = torch.tensor([token for row in input_ids for token in row], dtype=torch.long)
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
            with replacing(target / EXAMPLES) as path:
                save_file({"rows": rows.contiguous(), "lengths": lengths, "tokens": flat}, path)
            with replacing(target / MANIFEST) as path:
                path.write_text(json.dumps(manifest, indent=1))
        return cls(target, manifest)

    @classmethod
    def open(cls, directory: str | Path) -> Store:
        """Read the manifest of a store, complete or not.

        Raises:
            EntangleError: there is none, it is damaged, or from another version.
        """
        source = Path(directory)
        try:
            manifest = json.loads((source / MANIFEST).read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise EntangleError(f"{source} holds no activations ({MANIFEST}): collect and save them first") from error
        except (OSError, ValueError) as error:
            raise EntangleError(f"the activations in {source} are damaged: collect them again ({error})") from error
        found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
        if found != (FORMAT, VERSION):
            raise EntangleError(f"{source} holds {found}, but {FORMAT} version {VERSION} is needed: collect them again")
        return cls(source, manifest)

    @property
    def n_shards(self) -> int:
        """Number of shards, written or not."""
        return len(self.manifest["bounds"])

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.directory / f"shard-{shard:05d}.safetensors"

    def missing(self) -> list[int]:
        """The shards that were not written to their end."""
        return [shard for shard in range(self.n_shards) if not self._receipt(shard)]

    def whole(self, shard: int) -> bool:
        """Whether a shard was written to its end and is still what was written; reads it."""
        receipt = self._receipt(shard)
        return receipt is not None and _sha256(self.path(shard)) == receipt["sha256"]

    def write(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard whole, or not at all.

        Raises:
            EntangleError: the disk is full, or the directory cannot be written.
        """
        with writing(self.directory):
            with replacing(self.path(shard)) as path:
                save_file({name: x.contiguous() for name, x in tensors.items()}, path)
                receipt = {"size": path.stat().st_size, "sha256": _sha256(path)}
            with replacing(self.path(shard).with_suffix(".json")) as path:
                path.write_text(json.dumps(receipt))

    def check(self) -> None:
        """Read every shard and compare it with its receipt.

        Raises:
            EntangleError: a shard is missing or damaged.
        """
        missing = self.missing()
        if missing:
            raise EntangleError(
                f"the activations in {self.directory} are not complete: {len(missing)} of {self.n_shards} shards are "
                "missing; run the same collect again to finish them"
            )
        for shard in range(self.n_shards):
            if not self.whole(shard):
                raise EntangleError(f"{self.path(shard)} is damaged: run the same collect again to mend it")

    def tidy(self) -> None:
        """Remove the temporary files of killed runs; only when nobody is writing any more."""
        for path in self.directory.glob(".*"):
            path.unlink(missing_ok=True)

    def examples(self) -> dict[str, Tensor]:
        """`rows` `[row, 2]`, and the `tokens` of all examples with their `lengths`."""
        try:
            with safe_open(self.directory / EXAMPLES, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError) as error:
            raise EntangleError(f"the activations in {self.directory} are damaged: collect them again") from error

    def _receipt(self, shard: int) -> dict[str, Any] | None:
        try:
            receipt: dict[str, Any] = json.loads(self.path(shard).with_suffix(".json").read_text())
            return receipt if self.path(shard).stat().st_size == receipt["size"] else None
        except FileNotFoundError:
            return None


class ShardedData(Mapping[str, Tensor]):
    """The sites of a store: `data[site]` reads a whole tensor, `data.read(site, start, end)` only those rows."""

    def __init__(self, store: Store, starts: Sequence[int]) -> None:
        self.store = store
        self.starts = list(starts)  # the first row of each shard, and the number of rows

    @cached_property
    def _files(self) -> list[Any]:
        return [safe_open(self.store.path(shard), framework="pt") for shard in range(self.store.n_shards)]

    def __getitem__(self, site: str) -> Tensor:
        return self.read(site, 0, self.starts[-1])

    def __iter__(self) -> Iterator[str]:
        return iter(self.store.manifest["layers"])

    def __len__(self) -> int:
        return len(self.store.manifest["layers"])

    def read(self, site: str, start: int, end: int) -> Tensor:
        """Rows `start` to `end` of a site, read from the memory-mapped shards that hold them."""
        if site not in self.store.manifest["layers"]:
            raise KeyError(site)
        parts = []
        for shard, (first, last) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            if first < end and start < last:
                rows = slice(max(start - first, 0), min(end, last) - first)
                parts.append(self._files[shard].get_slice(site)[rows])  # mapped, not yet read
        if not parts:
            parts = [self._files[0].get_slice(site)[0:0]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What makes a store another than the one asked for, in a few words."""
    try:
        check_same(saved["fingerprint"], now["fingerprint"], what="they")
    except EntangleError as error:
        return str(error).partition(":")[0]
    settings = [name for name, value in now["meta"].items() if saved["meta"].get(name) != value]
    names = settings + [name for name in ("layers", "bounds") if saved[name] != now[name]]
    return f"the {', '.join(names)} differ" if names else "the texts or the tokens selected of them differ"


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn what goes wrong with a disk into one clear line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise EntangleError(
            f"activations could not be written to {directory}: {error}; free space or choose another directory (shards "
            "that are complete stay, and the same call goes on from them)"
        ) from error


def _begun(directory: Path) -> set[str]:
    """What a run that was killed before its manifest, or another that is about to write one, leaves in a directory."""
    temporary = (".*.safetensors.*", ".*.json.*", ".tmp*")  # ours, and those that safetensors itself writes to
    return {EXAMPLES, *(path.name for pattern in temporary for path in directory.glob(pattern))}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
