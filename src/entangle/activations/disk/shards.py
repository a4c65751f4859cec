"""Filling a store shard by shard, alone or together with other processes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, distributed

from entangle.activations.disk.store import Store
from entangle.activations.inputs.tokens import Selection
from entangle.errors import EntangleError
from entangle.progress import progress_bar

PATIENCE = 600.0  # seconds without any new shard after which the other processes are taken for dead


class Run(Protocol):
    """Captures a range of examples; the rest of `capture`'s arguments are bound."""

    def __call__(self, *, only: range, progress: bool) -> dict[str, Tensor]:
        """The sites' tensors."""
        ...


def shard_bounds(selection: Selection, row_bytes: int, shard_bytes: int) -> list[tuple[int, int]]:
    """Examples of each shard, `[start, end)`: as many whole examples as fit in `shard_bytes`, and at least one."""
    if shard_bytes < 1:
        raise EntangleError(f"shard_bytes must be at least 1, but is {shard_bytes}")
    bounds: list[tuple[int, int]] = []
    start = 0
    n_examples = len(selection.starts) - 1
    for end in range(1, n_examples + 1):
        next_end = min(end + 1, n_examples)
        full = (selection.starts[next_end] - selection.starts[start]) * row_bytes > shard_bytes
        if full or end == n_examples:
            bounds.append((start, end))
            start = end
    return bounds


def fill(store: Store, run: Run, *, progress: bool = True, patience: float = PATIENCE) -> None:
    """Write this process's share of the missing shards, then wait for the others' shares.

    Shards of an earlier run are compared with their checksums; a damaged one is written again.

    Raises:
        EntangleError: Another process has not finished its shards.
    """
    rank, world = processes()
    bounds: Sequence[Sequence[int]] = store.manifest["bounds"]
    mine = [shard for shard in range(rank, store.n_shards, world) if not store.whole(shard)]
    one = len(mine) == 1
    for shard in progress_bar(mine, desc="shards", unit="shard", delay=2, disable=one or not progress or rank > 0):
        start, end = bounds[shard]
        store.write(shard, run(only=range(start, end), progress=progress and one))
    left, since = len(store.missing()), time.monotonic()
    while left and world > 1 and time.monotonic() - since < patience:
        time.sleep(0.1)
        if len(store.missing()) < left:
            left, since = len(store.missing()), time.monotonic()
    if left:
        raise EntangleError(f"{left} shards of {store.directory} are missing: a process has ended early; run it again")
    if rank == 0:
        store.tidy()


def processes() -> tuple[int, int]:
    """This process's number and how many there are, under `torchrun` or `accelerate launch`; else 0 of 1.

    Raises:
        EntangleError: The environment says neither a number nor nothing.
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    rank, world = (os.environ.get(name) or default for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise EntangleError(
            f"RANK and WORLD_SIZE must number the processes; the environment has {rank!r} and {world!r}: unset both, "
            "or start with torchrun"
        )
    return int(rank), int(world)
