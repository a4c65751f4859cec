"""Several processes train the model that one trains, and one of them writes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes_harness import RECIPE, STREAMS, TRAINING, everything, sign, train
from safetensors.torch import load_file
from test_metadata import ARCHITECTURE, TOKENIZER

from entangle.composition import new_model, run, run_apart
from entangle.composition.training.pretrain import pretrain
from entangle.composition.training.processes import Processes, launch
from entangle.errors import EntangleError
from entangle.report import compose


def weights(path: Path) -> torch.Tensor:
    return load_file(path)["weights"]


def losses(path: Path) -> tuple[list[float], int]:
    found, made = json.loads(path.read_text())
    return found, made


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    launch(2, everything, str(two))
    for name in STREAMS:
        train(name, one)
        assert losses(one / f"{name}-0.json")[0] == pytest.approx(losses(two / f"{name}-0.json")[0], abs=1e-4)
        assert torch.allclose(weights(one / f"{name}-0.safetensors"), weights(two / f"{name}-0.safetensors"), atol=1e-4)
        train(name, one, seed=1)  # the control: another order of the same sequences
        other = weights(one / f"{name}-1.safetensors") - weights(two / f"{name}-0.safetensors")
        assert other.abs().max() > 1e-2
    # Stopped after 13 steps, of which the last checkpoint has 10: the same processes end with the same bits.
    again, made = losses(two / "stopped" / "conditioned-0.json")
    whole, all_steps = losses(two / "conditioned-0.json")
    assert (made, again) == (all_steps - 10, whole)
    assert torch.equal(
        weights(two / "stopped" / "conditioned-0.safetensors"), weights(two / "conditioned-0.safetensors")
    )
    assert {path.name for path in (two / "stopped").iterdir()} == {"conditioned-0.safetensors", "conditioned-0.json"}
    # A whole recipe: the same files, the same numbers, and nothing left to do for one process.
    compose(RECIPE, one / "run", device="cpu", progress=False)
    names = {path.relative_to(one) for path in (one / "run").rglob("*") if "sweep" not in str(path)}
    assert names == {path.relative_to(two) for path in (two / "run").rglob("*") if "sweep" not in str(path)}
    for a, b in zip(run(RECIPE, one / "run").models, run(RECIPE, two / "run").models, strict=True):
        assert a.metrics["losses"] == pytest.approx(b.metrics["losses"], abs=1e-5)
        assert a.metrics["held_out_ce"] == pytest.approx(b.metrics["held_out_ce"], abs=1e-5)
        assert a.measured is not None


@pytest.mark.slow
def test_models_trained_side_by_side_are_those_of_one_process(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))  # what each of two has
    try:
        one = run(RECIPE, tmp_path / "one", progress=False)
    finally:
        torch.set_num_threads(threads)
    run(replace(RECIPE, shares=(0.0,), variants=(), measure=None), tmp_path / "two", progress=False)  # finished before
    finished = tmp_path / "two" / "share-0-seed-0" / "model.safetensors"
    before = finished.stat().st_mtime_ns
    run_apart(RECIPE, tmp_path / "two", 2, device="cpu", progress=False, then=sign)
    signed = {path.stem for path in tmp_path.glob("*.signed")}
    assert signed == {cell.name for cell in RECIPE.cells}  # each once, those that were finished before too
    assert all(
        path.stat().st_mtime_ns == before for path in (tmp_path / "two" / "share-0-seed-0").glob("*.safetensors")
    )
    names = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*")}
    assert names == {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*")}
    for a, b in zip(one.models[1:], run(RECIPE, tmp_path / "two", progress=False).models[1:], strict=True):
        assert a.metrics["losses"] == b.metrics["losses"]
        assert (a.path / "model.safetensors").read_bytes() == (b.path / "model.safetensors").read_bytes()
        assert a.measured == b.measured


@pytest.mark.slow
def test_what_cannot_be_trained_side_by_side_is_refused_before(tmp_path: Path) -> None:
    run_apart(RECIPE, tmp_path, 2, device="cpu", progress=False)
    with pytest.raises(EntangleError, match="holds the models of another recipe"):
        run_apart(replace(RECIPE, vocab_size=RECIPE.vocab_size + 1), tmp_path, 2, device="cpu", progress=False)
    with pytest.raises(EntangleError, match="at least 1, not 0"):
        run_apart(RECIPE, tmp_path, 0, device="cpu")


def refuse() -> None:
    raise EntangleError(f"process {Processes.here('cpu').index} refuses")


@pytest.mark.slow
def test_what_a_process_refuses_is_said_once() -> None:
    with pytest.raises(EntangleError, match=r"^process \d refuses$"):
        launch(2, refuse)


def test_each_takes_its_part_and_all_together_everything() -> None:
    rows = torch.arange(7)
    parts = [Processes(3, index).part(rows) for index in range(3)]
    assert torch.cat(parts).sort().values.equal(rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert Processes.here("cpu") == Processes()


def test_processes_that_cannot_be() -> None:
    with pytest.raises(EntangleError, match="at least 1, not 0"):
        launch(0, refuse)
    with pytest.raises(EntangleError, match="6 processes cannot share a batch of 5"):
        pretrain(new_model(ARCHITECTURE, TOKENIZER), STREAMS["plain"], TRAINING, processes=Processes(6))
