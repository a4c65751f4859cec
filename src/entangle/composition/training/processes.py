"""Several processes: together, each takes its part of every batch, and gradients are summed; or apart."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from typing import Any, Self

import torch
from torch import Tensor

from entangle.errors import EntangleError
from entangle.progress import hush

LAUNCHED = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # as accelerate looks for them
PATIENCE = timedelta(days=7)  # one process measures while the others wait, which may take longer than a collective may


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them.

    Attributes:
        count: How many they are.
        index: Which of them this is; 0 is the one that writes.
        device: Where this one trains.

    Example:
        >>> first = en.composition.Processes(count=2, index=0)
        >>> first.main, first.part([0, 1, 2, 3, 4])
        (True, [0, 2, 4])
    """

    count: int = 1
    index: int = 0
    device: str = "cpu"

    @classmethod
    def here(cls, device: str | None = None) -> Self:
        """Those that `accelerate launch`, `torchrun`, `mpirun` or `launch` started, through accelerate; else this one
        alone.

        Args:
            device: To train on; by default a GPU where there is one, and each process its own.

        Raises:
            EntangleError: Where there are several, and accelerate is not installed, there are fewer GPUs, or all are to
                take the same one.
        """
        cpu = device == "cpu" or not torch.cuda.is_available()
        if max(int(os.environ.get(name) or 1) for name in LAUNCHED) == 1:
            return cls(device=device or ("cpu" if cpu else "cuda"))
        try:
            from accelerate import PartialState
        except ImportError:
            raise EntangleError("several processes need accelerate: pip install accelerate") from None
        if device not in (None, "cpu", "cuda"):
            raise EntangleError(f"each process takes a GPU of its own, so the device is cuda or cpu, not {device!r}")
        if not cpu and int(os.environ.get("LOCAL_WORLD_SIZE") or 1) > torch.cuda.device_count():
            raise EntangleError(
                f"each process needs a GPU of its own, and there are {torch.cuda.device_count()}: start fewer"
            )
        state = PartialState(cpu=cpu, timeout=PATIENCE)
        return cls(state.num_processes, state.process_index, "cpu" if cpu else str(state.device))

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def part(self, rows: Sequence[Any] | Tensor) -> Any:
        """This process's part of a batch, or of anything that is shared out: every `count`-th."""
        return rows[self.index :: self.count]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in one exchange."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, summed in zip(tensors, torch.split(flat, sizes), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            torch.distributed.barrier()


ALONE = Processes()


def launch(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Do some work in so many processes of this machine, which find each other by `Processes.here`.

    Args:
        count: How many.
        work: A function that a new process can import.
        arguments: Of it.

    Raises:
        EntangleError: Where a process refused something, with what it said.

    Example:
        >>> try:
        ...     en.composition.launch(0, print)
        ... except en.EntangleError as error:
        ...     print(error)
        a number of processes is at least 1, not 0
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _spawn(count, _together, port, work, arguments)


def launch_apart(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Do some work in so many processes of this machine that know nothing of each other.

    Args:
        count: How many.
        work: A function that a new process can import, called with the process's number, `count` and the arguments.
        arguments: Of it.

    Raises:
        EntangleError: Where a process refused something, with what it said.

    Example:
        >>> try:
        ...     en.composition.launch_apart(0, print)
        ... except en.EntangleError as error:
        ...     print(error)
        a number of processes is at least 1, not 0
    """
    _spawn(count, work, *arguments)


def _together(index: int, count: int, port: int, work: Callable[..., None], arguments: Sequence[Any]) -> None:
    """One of the processes, known to the others by the variables that every launcher sets."""
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    try:
        work(*arguments)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _spawn(count: int, work: Callable[..., None], *arguments: Any) -> None:
    from torch.multiprocessing import get_context
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

    if count < 1:
        raise EntangleError(f"a number of processes is at least 1, not {count}")
    refused = get_context("spawn").SimpleQueue()
    try:
        spawn(_work, (count, refused, work, arguments), count)  # type: ignore[no-untyped-call]
    except (ProcessRaisedException, ProcessExitedException):
        if refused.empty():
            raise
        raise EntangleError(refused.get()) from None


def _work(
    index: int, count: int, refused: SimpleQueue[str], work: Callable[..., None], arguments: Sequence[Any]
) -> None:
    """One of the processes, with its part of the threads, and without the bars of other libraries."""
    hush()
    if "OMP_NUM_THREADS" not in os.environ:  # else each would take all cores
        threads = max(1, torch.get_num_threads() // count)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    try:
        work(index, count, *arguments)
    except EntangleError as error:
        refused.put(str(error))
        raise
