"""What every benchmark shares: `--busy` measures it beside one busy process, as machines are that others use too."""

from __future__ import annotations

import argparse
import atexit
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

# It ends with the benchmark, also with one that is killed: then its parent is another process.
SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


class Parser(argparse.ArgumentParser):
    """A parser of a benchmark's options, to which it adds `--busy`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_argument("--busy", action="store_true", help="measure beside one other busy process")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The options; where they say so, the other process is running when this returns."""
        options = super().parse_args(args, namespace)
        if options.busy:
            other = subprocess.Popen([sys.executable, "-c", SPIN])
            atexit.register(other.kill)
        return options
