"""Every kind of folder with every damage: one clear line, and never other numbers than were written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from entangle.activations import Activations, collect
from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.evaluation.scoring.linear import _N_FEATURES, LinearToxicityScorer
from entangle.interventions import AddDirection, Edit, load_baked
from entangle.probes import ProbeGrid, fit_probes
from entangle.report.demo import QUICK, _write_data
from entangle.report.write import check_pages, write_pages
from entangle.verify import Check, VerifyReport

TEXTS = [
    f"the {adjective} {noun}" for adjective in ("quick", "brown", "lazy") for noun in ("fox", "dog", "cat", "moon")
]
V = torch.randn(32, generator=torch.Generator().manual_seed(0))
X, Y = torch.randn(60, 2, 4, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 2


def a_grid():
    return fit_probes(X, Y, n_permutations=2, n_resamples=5, progress=False)


def a_scorer():
    return LinearToxicityScorer(np.random.default_rng(0).normal(size=2 * _N_FEATURES).astype(np.float32), 0.5)


LOADS = {
    "activations": Activations.load,
    "edit": Edit.from_pretrained,
    "grid": ProbeGrid.load,
    "directions": Directions.load,
    "scorer": LinearToxicityScorer.load,
    "carried": load_baked,
    "baked": load_baked,
}


@pytest.fixture(scope="module")
def saves(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    acts = collect(model, tiny_tokenizer, TEXTS, sites="z", progress=False)
    return {
        "activations": acts.save,
        "edit": AddDirection(V, "resid_post", 1).save_pretrained,
        "grid": a_grid().save,
        "directions": Directions(torch.eye(4)[:2], ("a", "b"), "resid_post", 1).save,
        "scorer": a_scorer().save,
        "carried": AddDirection(V, "resid_pre", 0).bake(model, 2).save_pretrained,
        "baked": AddDirection(V, "mlp_out", 1).bake(model, 2).save_pretrained,
    }


@pytest.fixture(scope="module")
def good(saves, tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    for kind, save in saves.items():
        save(root / kind)
    return root


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".md")


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 0x10
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit near the end": lambda path: flip(path, -9),
    "a flipped bit in the middle": lambda path: flip(path, path.stat().st_size // 2),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a folder in its place": lambda path: (path.unlink(), path.mkdir()),
    "something else": lambda path: path.write_text('{"kind": "thesis"}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", LOADS)
def test_damage_to_any_file_is_one_clear_line(kind, damage, good, tmp_path):
    LOADS[kind](good / kind)  # the control
    assert len(files(good / kind)) > 1
    for number, name in enumerate(files(good / kind)):
        folder = tmp_path / str(number)
        shutil.copytree(good / kind, folder)
        DAMAGES[damage](folder / name)
        if kind == "baked" and name == "baked.json" and damage == "missing":
            LOADS[kind](folder)  # a stock model, as versions before wrote it
            continue
        with pytest.raises(EntangleError) as error:
            LOADS[kind](folder)
        assert "\n" not in str(error.value)
        assert str(folder) in str(error.value)


@pytest.mark.parametrize("kind", LOADS)
def test_files_of_others_in_a_folder_that_is_saved_again_stay(kind, saves, good, tmp_path):
    folder = tmp_path / "d"
    shutil.copytree(good / kind, folder)
    theirs = {".gitignore": "*", "notes.txt": "years of work", "README.md": "mine", "data/a.csv": "1"}
    for name, text in theirs.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    before = files(folder)
    saves[kind](folder)
    LOADS[kind](folder)
    assert {name: (folder / name).read_text() for name in theirs} == theirs
    assert files(folder) == before


@pytest.mark.parametrize("kind", [kind for kind in LOADS if kind != "activations"])
def test_a_file_of_our_name_that_is_not_ours_is_not_replaced(kind, saves, good, tmp_path):
    for name in files(good / kind):
        folder = tmp_path / name.replace("/", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("years of work")
        with pytest.raises(EntangleError, match="move it away"):
            saves[kind](folder)
        assert files(folder) == [name]
        assert (folder / name).read_text() == "years of work"


@pytest.mark.parametrize("kind", ["edit", "grid", "directions", "scorer", "carried", "activations"])
def test_folders_of_versions_without_checksums_are_read(kind, good, tmp_path):
    folder = tmp_path / "d"
    shutil.copytree(good / kind, folder)
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        old = {key: value for key, value in content.items() if key not in ("checksum", "files", "shard")}
        path.write_text(json.dumps(old if "model" not in path.parts else content))
    LOADS[kind](folder)


def test_page_and_numbers_are_of_one_run_and_somebodys_page_stays(tmp_path):
    write_pages(tmp_path / "out", {"report.html": "old", "report.json": '{"studies": []}'})
    write_pages(tmp_path / "out", {"report.html": "new", "report.json": '{"studies": [1]}'})
    assert (tmp_path / "out" / "report.html").read_text() == "new"
    assert json.loads((tmp_path / "out" / "report.json").read_text())["studies"] == [1]
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(EntangleError, match="move it away"):
        write_pages(tmp_path, {"report.html": "new", "report.json": '{"studies": []}'})
    assert (tmp_path / "report.html").read_text() == "mine"


def test_what_is_in_the_way_of_a_report_is_seen_before_the_work(tmp_path):
    names = ("report.html", "report.json")
    check_pages(tmp_path / "not there yet", *names)
    write_pages(tmp_path / "ours", {"report.html": "old", "report.json": '{"studies": []}'})
    check_pages(tmp_path / "ours", *names)
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(EntangleError, match="move it away"):
        check_pages(tmp_path, *names)
    (tmp_path / "report.json").write_text('{"studies": []}')  # as reports were before they named their files
    check_pages(tmp_path, *names)


def test_checks_of_a_model_replace_checks_and_nothing_else(tmp_path):
    report = VerifyReport((Check("it holds", True),))
    path = report.save(tmp_path / "out")
    assert report.save(tmp_path / "out") == path
    assert [check["name"] for check in json.loads(path.read_text())] == ["it holds"]
    for text in ("mine", "{}", "[1]", '[{"name": "somebody"}]'):
        path.write_text(text)
        with pytest.raises(EntangleError, match="would be lost"):
            report.save(path.parent)
        assert path.read_text() == text


def test_the_data_of_a_demo_leave_a_file_of_that_name_alone(tmp_path):
    (tmp_path / "rudeness.jsonl").write_text("mine")
    with pytest.raises(EntangleError, match="move it away"):
        _write_data(tmp_path, QUICK, 0)
    assert [path.read_text() for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["mine"]
    paths = _write_data(tmp_path / "new", QUICK, 0)
    assert all(path.is_file() for path in paths.values())
    assert _write_data(tmp_path / "new", QUICK, 0) == paths
