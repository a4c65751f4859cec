"""Activations on disk: a manifest, the examples, and shards of whole examples that are written once or not at all.

A shard counts when its receipt (size and SHA-256) is there, and the receipt is written last; so a killed run leaves
nothing that could be taken for whole, a later run does what is missing, and several processes can write side by side.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from entangle.errors import EntangleError
from entangle.models.fingerprint import check_same
from entangle.storage import folder
from entangle.storage.digest import digest
from entangle.storage.files import OURS, replacing, tidy
from entangle.storage.folder import Kind
from entangle.storage.owner import LOCK, owned
from entangle.storage.sealed import decoding, read_sealed, write_sealed

MANIFEST, EXAMPLES = "manifest.json", "examples.safetensors"
KIND = Kind(
    "activations",
    MANIFEST,
    "entangle-activations",
    name_key="format",
    remedy="collect them again, into another directory",
    before=(EXAMPLES,),
    receipted=r"shard-\d{5}\.(safetensors|json)",
)
LEFT = re.compile(r"\.(shard-\d{5}|manifest|examples)\.(safetensors|json)\.[0-9a-f]{8}")
"""Temporary files that versions before 0.2 left of their own where they were killed."""
OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
"""What safetensors left there: not in the way, but not known to be ours, so it stays."""
PATIENCE = 600.0  # seconds that one process waits for others to write their shards


@dataclass(frozen=True)
class Store:
    """A directory of shards, and what its manifest says.

    Attributes:
        directory: Where it is.
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
            EntangleError: The directory holds something else, or cannot be written.
        """
        target = Path(directory)
        content = cls.describe(
            input_ids=input_ids, rows=rows, bounds=bounds, layers=layers, fingerprint=fingerprint, meta=meta
        )
        if not os.path.lexists(target / MANIFEST):
            refuse_others(target)
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
            with owned(target, patience=PATIENCE):
                if not (target / MANIFEST).exists():
                    folder.write(
                        target, KIND, content, lambda new: write_examples(new, input_ids, rows), over=[EXAMPLES]
                    )
                store = cls(target, folder.read(target, KIND, files=False))
                if store.manifest.get("key") != content["key"]:
                    raise EntangleError(
                        f"{target} holds activations of another model, other texts or settings "
                        f"({_difference(store.manifest, content)}): choose another directory, or delete it"
                    )
                store.check_manifest()
                if not store.has_examples():
                    folder.mend(target, KIND, lambda new: write_examples(new, input_ids, rows))
        return store

    @staticmethod
    def describe(
        *,
        input_ids: Sequence[Sequence[int]],
        rows: Tensor,
        bounds: Sequence[tuple[int, int]],
        layers: Mapping[str, Sequence[int]],
        fingerprint: Mapping[str, Any],
        meta: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What the manifest of a store says; the arguments are those of `create`."""
        content = {"bounds": [list(b) for b in bounds], "layers": dict(layers), "fingerprint": dict(fingerprint)}
        key = digest([content, json.dumps(dict(meta), sort_keys=True), [list(row) for row in input_ids], rows])
        return {"key": key, **content, "meta": dict(meta)}

    @classmethod
    def open(cls, directory: str | Path) -> Store:
        """Read the manifest of a store, complete or not.

        Raises:
            EntangleError: There is none, it is damaged, or from another version.
        """
        store = cls(Path(directory), folder.read(directory, KIND))
        store.check_manifest()
        return store

    def check_manifest(self) -> None:
        """Refuse a manifest that lacks what a store needs: one that was changed by hand, or of an older version.

        Raises:
            EntangleError: It does.
        """
        manifest = self.manifest
        with decoding(self.directory / MANIFEST, "the manifest of activations", remedy=KIND.remedy):
            bounds = [(int(start), int(end)) for start, end in manifest["bounds"]]
            starts, ends = [start for start, _ in bounds], [end for _, end in bounds]
            is_partition = bounds and starts == [0, *ends[:-1]] and all(start <= end for start, end in bounds)
            kept = isinstance(manifest["layers"], dict) and manifest["layers"]
            if not (
                is_partition and kept and all(isinstance(manifest[name], dict) for name in ("fingerprint", "meta"))
            ):
                raise ValueError("bounds, layers, fingerprint or meta are not what they should be")
            str(manifest["key"])

    def has_examples(self) -> bool:
        """Whether the tokens and rows are there as they were written; reads them."""
        try:
            folder.read(self.directory, KIND)
        except EntangleError:
            return False
        return True

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
            EntangleError: The disk is full, or the directory cannot be written.
        """
        with writing(self.directory), owned(self.directory, patience=PATIENCE):
            self.write_shard(self.directory, shard, tensors)

    def write_shard(self, into: Path, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard and then its receipt into a directory: the store, or one that becomes it."""
        file = into / self.path(shard).name
        with replacing(file) as path:
            save_file({name: x.contiguous() for name, x in tensors.items()}, path)
            receipt = {
                "shard": shard,
                "key": self.manifest["key"],
                "size": path.stat().st_size,
                "sha256": _sha256(path),
            }
        write_sealed(file.with_suffix(".json"), receipt, indent=None)

    def check(self) -> None:
        """Read every shard and compare it with its receipt.

        Raises:
            EntangleError: A shard is missing or damaged.
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
        """Remove what killed runs left of their own; only when nobody is writing any more."""
        tidy(self.directory)
        for path in self.directory.iterdir():
            if LEFT.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)

    def examples(self) -> dict[str, Tensor]:
        """`rows` `[row, 2]`, and the `tokens` of all examples with their `lengths`."""
        with decoding(self.directory, "activations", remedy=KIND.remedy):
            examples = load_file(self.directory / EXAMPLES)
            rows, lengths, tokens = (examples[name] for name in ("rows", "lengths", "tokens"))
            if rows.shape[1:] != (2,) or len(lengths) != self.manifest["bounds"][-1][1] or lengths.sum() != len(tokens):
                raise ValueError("its tokens and rows do not fit its manifest")
        return {"rows": rows, "lengths": lengths, "tokens": tokens}

    def _receipt(self, shard: int) -> dict[str, Any] | None:
        """The receipt of a shard; None where there is none, it is another's, or the shard is not of its size."""
        path = self.path(shard)
        try:
            receipt = read_sealed(path.with_suffix(".json"), "a shard", remedy=KIND.remedy)
            size, _ = int(receipt["size"]), str(receipt["sha256"])
            # Older versions wrote neither its number nor whose it is.
            mine = (receipt.get("shard", shard), receipt.get("key", self.manifest["key"]))
            is_ours = mine == (shard, self.manifest["key"]) and path.stat().st_size == size
        except (EntangleError, OSError, KeyError, TypeError, ValueError):
            return None
        return receipt if is_ours else None


class ShardedData(Mapping[str, Tensor]):
    """The sites of a store: `data[site]` reads a whole tensor, `data.read(site, start, end)` only those rows."""

    def __init__(self, store: Store, starts: Sequence[int]) -> None:
        self.store = store
        self.starts = list(starts)  # the first row of each shard, and the number of rows

    @cached_property
    def _files(self) -> list[Any]:
        with decoding(self.store.directory, "activations", remedy="run the same collect again to mend them"):
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
        with decoding(self.store.directory, "activations", remedy="run the same collect again to mend them"):
            for shard, (first, last) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
                if first < end and start < last:
                    rows = slice(max(start - first, 0), min(end, last) - first)
                    parts.append(self._files[shard].get_slice(site)[rows])  # mapped, not yet read
            if not parts:
                parts = [self._files[0].get_slice(site)[0:0]]
            if sum(map(len, parts)) != max(0, min(end, self.starts[-1]) - start):
                raise ValueError("its shards have another number of rows than its manifest says")
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


def write_examples(into: Path, input_ids: Sequence[Sequence[int]], rows: Tensor) -> None:
    """Write the tokens of all examples, how many each has, and the `[row, 2]` rows into a directory."""
    lengths = torch.tensor([len(row) for row in input_ids])
    flat = torch.tensor([token for row in input_ids for token in row], dtype=torch.long)
    save_file({"rows": rows.contiguous(), "lengths": lengths, "tokens": flat}, into / EXAMPLES)


def refuse_others(directory: Path) -> None:
    """Refuse a directory without a manifest in which there is anything but what a killed run left.

    Raises:
        EntangleError: There is, or it is a file.
    """
    if not os.path.lexists(directory):
        return
    others = [path for path in directory.iterdir() if not _left(path)] if directory.is_dir() else [directory]
    if others:
        raise EntangleError(
            f"{directory} exists and holds no activations, but {others[0].name}: choose another directory"
        )


def _left(path: Path) -> bool:
    """Whether a file is one that a run of ours leaves where it is killed before there is a manifest."""
    if path.name == EXAMPLES:
        try:
            return {"rows", "lengths", "tokens"} == load_file(path).keys()
        except (OSError, SafetensorError):
            return False
    return path.name == LOCK or any(pattern.fullmatch(path.name) for pattern in (OURS, LEFT, OF_SAFETENSORS))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
