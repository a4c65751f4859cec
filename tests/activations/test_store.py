"""What is stored is what was captured, however often the run is broken off, and whoever shares the work."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from entangle.activations import collect, store, tokens
from entangle.activations.shards import shard_bounds
from entangle.activations.tokens import Selection
from entangle.errors import EntangleError

TEXTS = ["the quick brown fox", "a cat sat on the mat and looked at the moon", "the lazy dog", "jumps", "the moon"] * 4
HARNESS = Path(__file__).parent / "kill_harness.py"


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def run(tiny_model, tiny_tokenizer):
    return lambda texts=TEXTS, **kw: collect(tiny_model("llama"), tiny_tokenizer, texts, progress=False, **kw)


@pytest.mark.parametrize("selection", ["last", "all", "mean"])
def test_streamed_equals_in_memory(run, selection, tmp_path):
    memory = run(sites=["z", "resid_post"], tokens=selection)
    streamed = run(sites=["z", "resid_post"], tokens=selection, save_to=tmp_path / "acts", shard_bytes=5000)
    assert len(list((tmp_path / "acts").glob("shard-*.safetensors"))) > 2
    for site in memory.sites:
        assert streamed[site].shape == memory[site].shape
        assert torch.allclose(streamed[site], memory[site], atol=1e-5)
        assert torch.equal(torch.cat(list(streamed.batches(site, 3))), streamed[site])
        assert torch.equal(streamed.read(site, 2, 7), streamed[site][2:7])
        assert streamed.read(site, 5, 5).shape[0] == 0
    assert torch.equal(streamed.rows, memory.rows)
    assert streamed.input_ids == memory.input_ids


def test_second_call_computes_nothing(run, tmp_path, tiny_model):
    first = run(save_to=tmp_path / "acts", shard_bytes=2000)
    ran = []
    handle = tiny_model("llama").model.layers[0].register_forward_hook(lambda *_: ran.append(1))
    again = run(save_to=tmp_path / "acts", shard_bytes=2000)
    handle.remove()
    assert not ran
    assert torch.equal(first["z"], again["z"])


def test_other_settings_are_refused(run, tmp_path):
    run(save_to=tmp_path / "acts")
    with pytest.raises(EntangleError, match="another model, other texts or settings"):
        run(save_to=tmp_path / "acts", layers=1)
    with pytest.raises(EntangleError, match="another model, other texts or settings"):
        run(TEXTS[1:], save_to=tmp_path / "acts")


def test_unwritable_directory_and_full_disk(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(EntangleError, match=r"could not be written|holds no activations"):
        run(save_to=tmp_path / "file" / "acts")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").write_text("mine")
    with pytest.raises(EntangleError, match="exists and holds no activations"):
        run(save_to=tmp_path / "else")

    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(EntangleError, match=r"No space left on device.*free space"):
        run(save_to=tmp_path / "acts")
    assert not list((tmp_path / "acts").iterdir())


class Injector:
    """Counts the calls of a function, and raises at one of them."""

    def __init__(self, function, at=None):
        self.function, self.at, self.n_calls = function, at, 0

    def __call__(self, *args, **kwargs):
        self.n_calls += 1
        if self.n_calls - 1 == self.at:
            raise RuntimeError("injected")
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("n", [6, pytest.param(1000, marks=pytest.mark.slow)])
def test_injected_exceptions(n, run, tiny_model, tmp_path, monkeypatch):
    """In the model, in the hook and in the writer: no hook stays, and nothing half is taken for whole."""
    model, rng = tiny_model("llama"), random.Random(0)
    settings = {"shard_bytes": 4000, "batch_tokens": 40}
    spots = {
        "model": (model.model.layers[1].mlp.act_fn, "forward"),
        "hook": (tokens.Selection, "pick"),
        "writer": (os, "fsync"),
    }
    whole, before = run(), n_hooks(model)
    for i in range(n):
        owner, name = spots[rng.choice(list(spots))]
        original = getattr(owner, name)
        target = tmp_path / str(i)
        with monkeypatch.context() as patch:
            counter = Injector(original)
            patch.setattr(owner, name, lambda *a, f=counter: f(*a))
            run(save_to=tmp_path / "undisturbed", **settings)
            failing = Injector(original, at=rng.randrange(counter.n_calls))
            patch.setattr(owner, name, lambda *a, f=failing: f(*a))
            with pytest.raises(RuntimeError, match="injected"):
                run(save_to=target, **settings)
        assert n_hooks(model) == before
        assert not list(target.glob(".*"))
        assert torch.allclose(run(save_to=target, **settings)["z"], whole["z"], atol=1e-5)
        shutil.rmtree(target)
        shutil.rmtree(tmp_path / "undisturbed")


@pytest.mark.parametrize("n", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_moments(n, tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(HARNESS), str(n), str(tmp_path), "0"],
        env=env,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(rf"{n} runs, \d+ kills, .*: 0 corrupt, 0 missing, 0 duplicate", done.stdout)


def test_bounds_cover_every_example_once():
    starts = [0, 3, 4, 9, 10, 30, 31]
    selection = Selection(torch.zeros(31, 2, dtype=torch.long), starts)
    for shard_bytes in (1, 40, 100, 10_000):
        bounds = shard_bounds(selection, 10, shard_bytes)
        assert [i for start, end in bounds for i in range(start, end)] == list(range(6))
        assert all((starts[end] - starts[start]) * 10 <= shard_bytes or end - start == 1 for start, end in bounds)
    with pytest.raises(EntangleError, match="shard_bytes"):
        shard_bounds(selection, 10, 0)
