"""Two processes share one store; what a killed one left is done by the next run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from entangle.activations import Activations
from entangle.activations.disk.shards import processes
from entangle.errors import EntangleError

SCRIPT = """
import sys, torch
from transformers import LlamaConfig, LlamaModel
from entangle.activations import collect
if sys.argv[2] == "gloo":
    torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=96)
model = LlamaModel(LlamaConfig(**sizes)).eval()
ids = torch.randint(3, 96, (30, 9))
to = None if sys.argv[1] == "memory" else sys.argv[1]
acts = collect(model, None, {"input_ids": ids}, save_to=to, shard_bytes=2000, progress=False)
torch.save(acts["z"], sys.argv[3])
"""


def start(tmp_path, where, group, rank=0, world=1):
    port = str(29_600 + os.getpid() % 300)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": str(world)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    out = tmp_path / f"{group}-{rank}-{world}.pt"
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(where), group, str(out)], env=env), out


@pytest.mark.slow
def test_two_gloo_processes(tmp_path):
    alone, expected = start(tmp_path, "memory", "none")
    assert alone.wait(1500) == 0
    together = [start(tmp_path, tmp_path / "acts", "gloo", rank, 2) for rank in range(2)]
    assert [process.wait(1500) for process, _ in together] == [0, 0]
    for _, out in together:
        assert torch.allclose(torch.load(out), torch.load(expected), atol=1e-5)
    assert len(list((tmp_path / "acts").glob("shard-*.safetensors"))) > 4

    for path in sorted((tmp_path / "acts").glob("shard-*.json"))[1::2]:  # as if the second had been killed
        path.unlink()
    again, out = start(tmp_path, tmp_path / "acts", "none")
    assert again.wait(1500) == 0
    assert torch.allclose(torch.load(out), torch.load(expected), atol=1e-5)
    assert torch.equal(Activations.load(tmp_path / "acts")["z"], torch.load(out))


@pytest.mark.parametrize(
    ("rank", "world"), [("0", "abc"), ("0", "0"), ("x", "2"), ("2", "2"), ("-1", "2"), ("0", "1.5")]
)
def test_an_environment_that_numbers_no_processes_is_refused(rank, world, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(EntangleError, match="RANK and WORLD_SIZE"):
        processes()


@pytest.mark.parametrize(("rank", "world", "place"), [("", "", (0, 1)), ("1", "4", (1, 4))])
def test_an_environment_that_says_nothing_is_one_process(rank, world, place, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    assert processes() == place
