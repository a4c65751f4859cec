"""What `test_several_processes` does in each of several processes, and in one alone to compare with."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_experiment import MEASURE, TINY, tiny
from test_metadata import ARCHITECTURE, MECO, TOKENIZER, conditioned_stream

from entangle.composition import Cell, Training, new_model
from entangle.composition.training import pretrain as pretraining
from entangle.composition.training.pretrain import pretrain
from entangle.composition.training.processes import Processes
from entangle.composition.training.stream import Stream
from entangle.report import compose

TRAINING = Training(batch_size=5, context=16, learning_rate=5e-3, precision="fp32", epochs=2)  # 5: not shared evenly
STREAMS = {"plain": Stream(conditioned_stream(0.3).tokens), "conditioned": conditioned_stream(0.3)}
# At the usual rate Adam makes a whole step of a gradient of rounding size, as a rare token's may be: even in one
# process losses part by .006 where the first weights are 1e-7 apart.
SLOWLY = {**TINY["training"], "learning_rate": 3e-4}
RECIPE = tiny(shares=[0.0, 0.2], variants=[MECO], measure=MEASURE, training=SLOWLY)


class Stopped(BaseException):
    """As a signal would stop it."""


def train(name: str, folder: Path, *, seed: int = 0, stop_after: int = 0) -> None:
    """Train, from a checkpoint after a stop if there is one; the main process writes weights and losses."""
    processes = Processes.here("cpu")
    model = new_model(ARCHITECTURE, TOKENIZER)
    path = folder / f"{name}.checkpoint"
    step, made = pretraining._step, 0

    def counted(*arguments: object) -> float:
        nonlocal made
        if stop_after and made == stop_after:
            raise Stopped
        made += 1
        return step(*arguments)

    pretraining._step = counted
    options = {"checkpoint": path, "checkpoint_steps": 5, "processes": processes, "progress": False}
    try:
        history = pretrain(model, STREAMS[name], TRAINING, seed=seed, **options)
    except Stopped:
        return
    finally:
        pretraining._step = step
        processes.wait()
    if processes.main:
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        save_file({"weights": weights}, folder / f"{name}-{seed}.safetensors")
        (folder / f"{name}-{seed}.json").write_text(json.dumps([history.losses, made]))


def sign(cell: Cell, model: Path) -> None:
    """Leave a name beside the folder of a recipe's models, of one that is whole."""
    assert (model / "model.safetensors").exists()
    (model.parent.parent / f"{cell.name}.signed").touch(exist_ok=False)


def everything(folder: str) -> None:
    """All of it, in each process."""
    torch.set_num_threads(1)
    for name in STREAMS:
        train(name, Path(folder))
    stopped = Path(folder) / "stopped"
    if Processes.here("cpu").main:
        stopped.mkdir()
    Processes.here("cpu").wait()
    train("conditioned", stopped, stop_after=13)
    train("conditioned", stopped)
    written = compose(RECIPE, Path(folder) / "run", device="cpu", progress=False)
    assert bool(written) == Processes.here("cpu").main
