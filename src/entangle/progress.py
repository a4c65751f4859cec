"""Progress: a bar that redraws itself on a terminal and in a notebook, and a line now and then in a log.

Whoever counts something asks `progress_bar` for a bar. Where the output is no terminal, all bars together write one
line every 30 seconds (or as many as the environment variable ENTANGLE_LOG_EVERY says), so that a log stays readable.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from typing import Any, ClassVar

import tqdm.auto
from tqdm.std import tqdm as plain_bar

LOG_EVERY = 30.0  # seconds


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """A bar that counts.

    Args:
        iterable: What is gone through; else call `update`.
        options: Of tqdm: `total`, `desc`, `unit`, `disable`, `leave` and so on.

    Returns:
        A tqdm bar, of the kind that the output shows best.

    Example:
        >>> from entangle.progress import progress_bar
        >>> sum(progress_bar(range(10), desc="adding", disable=True))
        45
    """
    if is_live(options.get("file") or sys.stderr):
        return tqdm.auto.tqdm(iterable, **options)
    return LogLines(iterable, **options)


def is_live(stream: Any) -> bool:
    """Whether what is written can be drawn over: on a terminal, or in a notebook.

    Args:
        stream: Where it is written.

    Example:
        >>> import io
        >>> from entangle.progress import is_live
        >>> is_live(io.StringIO())
        False
    """
    notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.auto.tqdm.__mro__)
    return notebook or bool(getattr(stream, "isatty", bool)())


def hush() -> None:
    """Turn off the bars of other libraries, which would write a line per tick into a log.

    Example:
        >>> from entangle.progress import hush
        >>> hush()
    """
    import huggingface_hub.utils
    from transformers.utils import logging

    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when that library is loaded
    huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]
    logging.disable_progress_bar()


class LogLines(plain_bar):  # type: ignore[type-arg]
    """A bar for what cannot be drawn over: a line of its own when the last line of any bar is long enough ago.

    Example:
        >>> import io
        >>> from entangle.progress import LogLines
        >>> list(LogLines([1, 2], file=io.StringIO()))
        [1, 2]
    """

    _written: ClassVar[float | None] = None

    def __init__(self, iterable: Iterable[Any] | None = None, **options: Any) -> None:
        if LogLines._written is None:
            LogLines._written = time.monotonic()
        super().__init__(iterable, **{"mininterval": 0.5, **options, "dynamic_ncols": False, "ncols": 0})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line, if it is time for one."""
        now = time.monotonic()
        if self._written is not None and now - self._written < _log_every():
            return
        LogLines._written = now
        state = self.format_dict
        of = f" of {state['total']:,}" if state["total"] else ""
        rate, left = state["rate"] or state["n"] / max(state["elapsed"], 1e-9), ""
        if state["total"] and rate:
            left = f", {self.format_interval((state['total'] - state['n']) / rate)} to go"
        note = f", {self.postfix}" if self.postfix else ""
        unit = f" {self.unit}" if self.unit != "it" else ""
        what = self.desc.rstrip(": ") or "progress"
        spent = self.format_interval(state["elapsed"])
        print(f"{what}: {state['n']:,}{of}{unit}, {spent} so far{left}{note}", file=self.fp, flush=True)

    def clear(self, nolock: bool = False) -> None:
        """There is nothing to draw over."""

    def close(self) -> None:
        """Be done, without a word."""
        self.disable = True


def _log_every() -> float:
    try:
        return float(os.environ.get("ENTANGLE_LOG_EVERY", LOG_EVERY))
    except ValueError:
        return LOG_EVERY
