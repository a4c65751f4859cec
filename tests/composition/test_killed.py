"""A training whose process is killed, again and again at random moments, ends with the undisturbed one's weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

HARNESS = Path(__file__).with_name("kill_harness.py")
KILLS = 20


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    sys.path.insert(0, str(HARNESS.parent))
    from kill_harness import train

    whole = train(None)
    checkpoint, weights = tmp_path / "checkpoint", tmp_path / "weights"
    rng, killed, moments = Random(0), 0, []
    while not weights.exists():
        before = written(checkpoint)
        process = subprocess.Popen([sys.executable, HARNESS, checkpoint, weights], env={**os.environ})
        if killed < KILLS:
            # It has gone on from where it was killed last, and a little further: then at any moment.
            while written(checkpoint) == before and process.poll() is None:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.05)
            process.send_signal(signal.SIGKILL)
        code = process.wait()
        if code == -signal.SIGKILL:
            killed += 1
            moments.append(written(checkpoint))
        else:
            assert code == 0
    assert killed == KILLS, "the training ended before it was killed often enough"
    assert len(set(moments)) == KILLS
    assert torch.equal(load_file(weights)["weights"], whole)


def written(checkpoint: Path) -> int:
    """When the checkpoint was last put in place; 0 before."""
    try:
        return checkpoint.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
