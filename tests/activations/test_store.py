"""What is stored is what was captured, however often the run is broken off, and whoever shares the work."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from entangle.activations import Activations, collect, store, tokens
from entangle.activations.disk.shards import shard_bounds
from entangle.activations.inputs.tokens import Selection
from entangle.errors import EntangleError

WHO = ["the quick brown fox", "a cat", "the lazy dog", "the moon", "the mat and the cat"]
TEXTS = [f"{who} {does}" for who in WHO for does in ("jumps", "sat on the mat", "looked at a brown dog", "and a fox")]
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


def test_second_call_computes_nothing(run, tmp_path, monkeypatch):
    first = run(save_to=tmp_path / "acts", shard_bytes=2000)
    monkeypatch.setattr(
        sys.modules["entangle.activations.collect"], "capture", lambda *_, **__: pytest.fail("computed again")
    )
    again = run(save_to=tmp_path / "acts", shard_bytes=2000)
    assert torch.equal(first["z"], again["z"])


def test_other_settings_are_refused(run, tmp_path):
    run(save_to=tmp_path / "acts")
    with pytest.raises(EntangleError, match="another model, other texts or settings"):
        run(save_to=tmp_path / "acts", layers=1)
    with pytest.raises(EntangleError, match="another model, other texts or settings"):
        run(TEXTS[1:], save_to=tmp_path / "acts")


def test_unwritable_directory(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EntangleError, match=r"could not be written|holds no activations"):
        run(save_to=tmp_path / "file" / "acts")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").write_text("mine")
    with pytest.raises(EntangleError, match="exists and holds no activations"):
        run(save_to=tmp_path / "else")


def test_full_disk(run, tmp_path, monkeypatch):
    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_file", full)
        with pytest.raises(EntangleError, match=r"No space left on device.*free space"):
            run(save_to=tmp_path / "acts")
    assert not list((tmp_path / "acts").iterdir())
    whole = run(save_to=tmp_path / "whole", shard_bytes=9000)
    manifest, shard = (tmp_path / "whole" / name for name in ("manifest.json", "shard-00000.safetensors"))
    assert manifest.stat().st_size < shard.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # the system's own refusal, in the middle of a shard
        resource.setrlimit(resource.RLIMIT_FSIZE, (shard.stat().st_size - 100, limits[1]))
        with pytest.raises(EntangleError, match=r"could not be written.*the same call goes on"):
            run(save_to=tmp_path / "acts", shard_bytes=9000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "acts").glob(".*"))
    assert torch.equal(run(save_to=tmp_path / "acts", shard_bytes=9000)["z"], whole["z"])


@pytest.mark.parametrize("left", [".entangle-0a1b2c3d", ".examples.safetensors.0a1b2c3d", "examples.safetensors"])
def test_killed_before_the_manifest(left, run, tmp_path):
    """What this version and earlier ones leave of their own where they are killed is taken over, and cleared."""
    other = run(save_to=tmp_path / "other")
    (tmp_path / "acts").mkdir()
    if left.startswith(".entangle"):
        (tmp_path / "acts" / left).mkdir()
        owner = {"pid": 1, "host": "elsewhere", "since": "2026-01-01 00:00:00 UTC"}
        (tmp_path / "acts" / left / "owner.json").write_text(json.dumps(owner))
    elif left.startswith("."):
        (tmp_path / "acts" / left).write_bytes(b"half")
    else:
        shutil.copy(tmp_path / "other" / left, tmp_path / "acts" / left)
    assert torch.equal(run(save_to=tmp_path / "acts")["z"], other["z"])
    assert not list((tmp_path / "acts").glob(".*"))


def test_files_of_others_stay_in_a_store(run, tmp_path):
    target = tmp_path / "acts"
    run(save_to=target)
    theirs = {".gitignore": "*", ".entangle-notes": "mine", ".tmpxzFYbF": "half", "notes.txt": "years of work"}
    for name, text in theirs.items():
        (target / name).write_text(text)
    (target / ".ipynb_checkpoints").mkdir()
    (target / ".ipynb_checkpoints" / "a.ipynb").write_text("{}")
    run(save_to=target)
    run().save(target)
    assert {name: (target / name).read_text() for name in theirs} == theirs
    assert (target / ".ipynb_checkpoints" / "a.ipynb").read_text() == "{}"


class Injector:
    """Counts the calls of a function, and raises at one of them."""

    def __init__(self, function, at=None, error=RuntimeError):
        self.function, self.at, self.error, self.n_calls = function, at, error, 0

    def __call__(self, *args, **kwargs):
        self.n_calls += 1
        if self.n_calls - 1 == self.at:
            raise self.error("injected")
        return self.function(*args, **kwargs)


def receipts(directory):
    """The checksum of each shard that counts."""
    return {path.stem: json.loads(path.read_text())["sha256"] for path in directory.glob("shard-*.json")}


@pytest.mark.parametrize("n", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_injected_exceptions(n, run, tiny_model, tmp_path, monkeypatch):
    """In the model, in the hook and in the writer: no hook stays, and nothing half is taken for whole."""
    model, rng = tiny_model("llama"), random.Random(0)
    settings = {"shard_bytes": 2000, "batch_tokens": 40}
    spots = [
        (torch.nn.functional, "silu"),  # the activation of every MLP
        (tokens.Selection, "pick"),
        (store, "save_file"),
        (store, "_sha256"),
        (Path, "write_text"),
        (os, "fsync"),
        (os, "replace"),
    ]
    run()  # the model's atlas is built once, by a forward that is not to be counted
    before, n_calls = n_hooks(model), {}
    for spot, (owner, name) in enumerate(spots):
        with monkeypatch.context() as patch:
            counter = Injector(getattr(owner, name))
            patch.setattr(owner, name, lambda *a, f=counter, **k: f(*a, **k))
            whole = run(save_to=tmp_path / f"undisturbed-{spot}", **settings)
            n_calls[spot] = counter.n_calls
    undisturbed = receipts(tmp_path / "undisturbed-0")
    assert len(set(undisturbed.values())) > 2
    begun = 0
    for i in range(n):
        spot = i % len(spots)
        owner, name = spots[spot]
        target, error = tmp_path / str(i), rng.choice([RuntimeError, KeyboardInterrupt, MemoryError])
        with monkeypatch.context() as patch:
            failing = Injector(getattr(owner, name), rng.randrange(n_calls[spot]), error)
            patch.setattr(owner, name, lambda *a, f=failing, **k: f(*a, **k))
            with pytest.raises(error, match="injected"):
                run(save_to=target, **settings)
        assert n_hooks(model) == before
        assert not list(target.glob(".*"))
        done = receipts(target)
        begun += 0 < len(done) < len(undisturbed)
        for shard, sha256 in done.items():
            file = (target / shard).with_suffix(".safetensors")
            assert sha256 == undisturbed[shard] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert torch.equal(run(save_to=target, **settings)["z"], whole["z"])
        assert receipts(target) == undisturbed
        shutil.rmtree(target)
    assert begun  # some were broken off with a part done


@pytest.mark.parametrize("n", [1, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_moments(n, tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(HARNESS), str(n), str(tmp_path), "0"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=7200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(rf"{n} runs, \d+ kills, .*: 0 corrupt, 0 missing, 0 duplicate", done.stdout)


@pytest.mark.parametrize("where", [0, 100, -1])
def test_a_flipped_bit_is_noticed_and_mended(where, run, tmp_path):
    whole = run(save_to=tmp_path / "acts", shard_bytes=2000)["z"].clone()
    shard = sorted((tmp_path / "acts").glob("shard-*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[where] ^= 1
    shard.write_bytes(content)
    with pytest.raises(EntangleError, match=r"shard-00001\.safetensors is damaged: run the same collect again"):
        Activations.load(tmp_path / "acts")
    assert torch.equal(run(save_to=tmp_path / "acts", shard_bytes=2000)["z"], whole)
    assert torch.equal(Activations.load(tmp_path / "acts")["z"], whole)


def test_a_store_is_mapped_and_not_read(tmp_path):
    """Opening takes next to no memory, and reading some rows only what they hold; touching all is the control."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("needs /proc to measure memory")

    def resident():
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024  # MiB

    n, shards, d = 128, 4, 32_768  # 64 MiB in 4 shards
    new = store.Store.create(
        tmp_path / "acts",
        input_ids=[[1]] * n,
        rows=torch.tensor([(i, 0) for i in range(n)]),
        bounds=[(i * n // shards, (i + 1) * n // shards) for i in range(shards)],
        layers={"z": [0, 1, 2, 3]},
        fingerprint={},
        meta={},
    )
    for shard in range(shards):
        new.write(shard, {"z": torch.full((n // shards, 4, d), float(shard))})
    before = resident()
    acts = Activations.load(tmp_path / "acts")
    rows = acts.read("z", 30, 34)
    assert rows[:, 0, 0].tolist() == [0, 0, 1, 1]
    assert resident() - before < 12
    assert sum(float(batch.sum()) for batch in acts.batches("z", 8)) == 6 * n // shards * 4 * d
    assert resident() - before > 50


def test_bounds_cover_every_example_once():
    starts = [0, 3, 4, 9, 10, 30, 31]
    selection = Selection(torch.zeros(31, 2, dtype=torch.long), starts)
    for shard_bytes in (1, 40, 100, 10_000):
        bounds = shard_bounds(selection, 10, shard_bytes)
        assert [i for start, end in bounds for i in range(start, end)] == list(range(6))
        assert all((starts[end] - starts[start]) * 10 <= shard_bytes or end - start == 1 for start, end in bounds)
    with pytest.raises(EntangleError, match="shard_bytes"):
        shard_bounds(selection, 10, 0)
