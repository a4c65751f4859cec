"""What other tools wrote does here what it does there, and the other way round; run with -m bridges.

Each tool has a script in tests/bridges and, since they pin different versions of transformers, an environment of its
own: `$ENTANGLE_BRIDGES/NAME` (a virtual environment), or this one where the tool is installed here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import entangle as en
from entangle.interventions import Compose, read

pytestmark = pytest.mark.bridges

SCRIPTS = Path(__file__).parent / "bridges"
PLACES = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}
IDS = torch.tensor([[5, 9, 13, 7, 21, 40, 3]])


def python_of(tool: str) -> str:
    """The interpreter that has the tool."""
    environments = os.environ.get("ENTANGLE_BRIDGES")
    own = Path(environments or "nowhere") / tool.replace("_", "-") / "bin" / "python"
    if own.is_file():
        return str(own)
    if find_spec(tool) is None:
        pytest.skip(f"needs {tool}: install it here, or in a virtual environment $ENTANGLE_BRIDGES/{own.parts[-3]}")
    return sys.executable


def run(tool: str, folder: Path, python: str) -> dict[str, torch.Tensor]:
    """The logits that the tool's script leaves."""
    script = str(SCRIPTS / f"{tool}.py")
    kept = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", ""),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([python, "-P", script, str(folder)], capture_output=True, text=True, env=kept, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    print(tool, json.loads((folder / "versions.json").read_text()))
    return torch.load(folder / "logits.pt", weights_only=True)


@pytest.fixture
def model(tiny_model, tiny_tokenizer, tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    torch.save(IDS, tmp_path / "ids.pt")
    return model


def logits(model, edit=(), alpha=1.0):
    with torch.no_grad(), en.steer(model, edit, alpha=alpha):
        return model(IDS).logits


def vectors(site, *layers):
    generator = torch.Generator().manual_seed(len(site))
    return Compose([en.AddDirection(torch.randn(32, generator=generator), site, layer) for layer in layers])


def close(here, there, plain):
    torch.testing.assert_close(here, there, rtol=0, atol=1e-4)
    assert (here - plain).abs().max() > 1e-2  # the control: it does something


def test_steering_vectors(model, tmp_path):
    python = python_of("steering_vectors")
    ours = {kind: vectors(site, 0, 1) for kind, site in PLACES.items()}
    for kind, edit in ours.items():
        edit.export(tmp_path / f"ours_{kind}.pt", format="steering-vectors", model=model, alpha=1.5)
    theirs = run("steering_vectors", tmp_path, python)
    plain = logits(model)
    torch.testing.assert_close(plain, theirs["plain"], rtol=0, atol=1e-4)
    for kind, edit in ours.items():
        close(logits(model, read(tmp_path / f"theirs_{kind}.pt", model=model), 1.5), theirs[f"theirs_{kind}"], plain)
        close(logits(model, edit, 1.5), theirs[f"ours_{kind}"], plain)


def test_repeng(model, tmp_path):
    python, ours = python_of("repeng"), vectors("resid_post", 0, 2)
    ours.export(tmp_path / "ours.gguf", format="repeng", model=model, alpha=1.5)
    theirs = run("repeng", tmp_path, python)
    plain = logits(model)
    torch.testing.assert_close(plain, theirs["plain"], rtol=0, atol=1e-4)
    close(logits(model, read(tmp_path / "theirs.gguf", model=model), 1.5), theirs["theirs"], plain)
    close(logits(model, ours, 1.5), theirs["ours"], plain)


def test_lm_eval(model, tmp_path):
    python = python_of("lm_eval")
    ours = Compose([*vectors("resid_post", 0).edits, *vectors("z", 1).edits, *vectors("mlp_out", 2).edits])
    ours.export(tmp_path / "ours.pt", format="lm-eval", model=model, alpha=1.5)
    theirs = run("lm_eval", tmp_path, python)
    plain = logits(model)
    torch.testing.assert_close(plain, theirs["plain"], rtol=0, atol=1e-4)
    for name in ("blocks", "branches", "clamp"):
        close(logits(model, read(tmp_path / f"theirs_{name}.pt", model=model)), theirs[f"theirs_{name}"], plain)
    close(logits(model, ours, 1.5), theirs["ours"], plain)


def test_sae_lens(model, tmp_path):
    theirs = run("sae_lens", tmp_path, python_of("sae_lens"))
    numbers = torch.load(tmp_path / "numbers.pt", weights_only=True)
    plain = logits(model)
    torch.testing.assert_close(plain, theirs.pop("plain"), rtol=0, atol=1e-4)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(9))
    assert len(theirs) == 10
    for name, there in theirs.items():
        here = read(tmp_path / name, model=model)
        acts = here.encode(x)
        torch.testing.assert_close(
            acts, numbers[name]["encoded"], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n} {m}"
        )
        torch.testing.assert_close(here.decode(acts), numbers[name]["decoded"], rtol=1e-5, atol=1e-5)
        close(logits(model, here.feature(5, 3.0)), there, plain)


@pytest.mark.parametrize("tool", ["nnsight", "nnterp", "transformer_lens"])
def test_models_that_a_tool_holds(model, tmp_path, tool):
    """The script of these runs entangle itself, in the tool's environment."""
    script, python = str(SCRIPTS / f"{tool}.py"), python_of(tool)
    kept = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(en.__file__).parents[1])}
    done = subprocess.run([python, "-P", script, str(tmp_path)], capture_output=True, text=True, env=kept, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    compared = json.loads((tmp_path / "compared.json").read_text())
    print(tool, compared)
    assert compared["differences"]
    assert all(difference <= 1e-4 for difference in compared["differences"].values()), compared
    assert compared["moved"] > 1e-2


def test_inspect_reads_its_logs(tmp_path):
    from entangle.evaluation import write_rows

    python = python_of("inspect_ai")
    row = {"model": "tiny", "edit": "ITI", "task": "posts", "metric": "toxicity", "low": 0.1, "high": 0.4, "n": 8}
    rows = [{**row, "alpha": alpha, "score": score} for alpha, score in ((0.0, 0.3), (4.0, 0.2))]
    write_rows(rows, tmp_path / "logs", "inspect")
    script = str(SCRIPTS / "inspect_ai.py")
    done = subprocess.run([python, "-P", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == [
        ["tiny", each["alpha"], "posts", "toxicity", {"mean": each["score"], "low": 0.1, "high": 0.4}, "success"]
        for each in rows
    ]
