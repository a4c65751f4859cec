"""A fitted probe elsewhere gives the scores that it gives here."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import entangle as en
from entangle.probes import FittedProbe

TEXTS = [
    f"{a} {b} {'fox ' * (i % 5)}" for i in range(5) for a in ("the cat", "a dog") for b in ("sat", "looked", "jumps")
]


@pytest.fixture(scope="module")
def acts(tiny_model, tiny_tokenizer):
    return en.collect(tiny_model("llama"), tiny_tokenizer, TEXTS, sites="z", progress=False)


def labels(n_classes):
    return np.array(["calm", "rude", "odd"])[np.arange(len(TEXTS)) % n_classes]


@pytest.fixture(scope="module", params=[2, 3])
def grid(acts, request):
    return en.fit_probes(acts["z"], labels(request.param), n_permutations=0, layers=acts.layers("z"))


def scores(grid, cell, x):
    """By the definition."""
    weight = grid.coef_[cell].reshape(-1, grid.coef_.shape[-1]).double()
    return x.double() @ weight.T + grid.intercept_[cell].reshape(-1).double()


def test_an_estimator_scores_and_decides_as_the_cell_does(grid, acts):
    cell = (1, 2)
    x = acts["z"][:, cell[0], cell[1]]
    probe = grid.estimator(cell)
    expected = scores(grid, cell, x).numpy()
    np.testing.assert_allclose(probe.transform(x.numpy()), expected, rtol=1e-5, atol=1e-5)
    report = grid.split.report
    accuracy = (probe.predict(x[report].numpy()) == grid.classes_[grid.labels[report]]).mean()
    assert accuracy == pytest.approx(float(grid.accuracy[cell]))
    assert probe.score(x[report].numpy(), grid.classes_[grid.labels[report]]) == pytest.approx(accuracy)
    assert not np.allclose(grid.estimator((0, 1)).transform(x.numpy()), expected)  # the control: another cell
    assert np.array_equal(grid.estimator().coef_.squeeze(), grid.coef_[grid.top(1)[0]].numpy())


def test_an_estimator_clones_stands_in_pipelines_and_names_its_output(grid, acts):
    x = acts["z"][:, 1, 2].numpy()
    probe = grid.estimator((1, 2))
    copy = clone(probe)
    assert copy is not probe
    np.testing.assert_array_equal(copy.predict(x), probe.predict(x))
    assert set(probe.get_params()) == {"coef", "intercept", "classes"}
    before = make_pipeline(FunctionTransformer(), probe).fit(x, labels(len(grid.classes_)))
    np.testing.assert_array_equal(before.predict(x), probe.predict(x))
    after = make_pipeline(probe, LogisticRegression()).fit(x, labels(2))
    assert after.predict(x).shape == (len(x),)
    named = clone(probe).set_output(transform="pandas").transform(x)
    assert isinstance(named, pd.DataFrame)
    assert len(named.columns) == (1 if len(grid.classes_) == 2 else 3)
    assert all(str(column).startswith("score_") for column in named.columns)
    with pytest.raises(en.EntangleError, match="numbers an example"):
        probe.predict(x[:, :3])


def test_files_say_how_to_apply_them_and_give_the_scores(grid, acts, tmp_path):
    cell = (2, 1)
    x = acts["z"][:, 2, 1]
    folder = grid.export(tmp_path / "probe", cell, site="z")
    about, tensors = json.loads((folder / "probe.json").read_text()), load_file(folder / "probe.safetensors")
    torch.testing.assert_close(x @ tensors["weight"].T + tensors["bias"], scores(grid, cell, x).float())
    assert (about["layer"], about["head"], about["transformer_lens"]) == (2, 1, "blocks.2.attn.hook_z")
    assert about["accuracy"] == pytest.approx(float(grid.accuracy[cell]))
    assert about["accuracy_interval"][0] <= about["accuracy"] <= about["accuracy_interval"][1]
    assert about["classes"] == [str(label) for label in grid.classes_]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "probe.json").write_text('{"note": "keep"}')
    with pytest.raises(en.EntangleError, match="not replaced"):
        grid.export(tmp_path / "mine", cell)
    with pytest.raises(en.EntangleError, match="'safetensors', 'onnx'"):
        grid.export(tmp_path / "other", cell, format="pickle")
    with pytest.raises(en.EntangleError, match="has no cell"):
        grid.export(tmp_path / "other", (9, 9))


def test_onnx_gives_the_scores(grid, acts, tmp_path):
    pytest.importorskip("onnx", reason="needs onnx")
    from onnx.reference import ReferenceEvaluator

    x = acts["z"][:, 2, 1]
    folder = grid.export(tmp_path / "probe", (2, 1), format="onnx", site="z")
    (found,) = ReferenceEvaluator(str(folder / "probe.onnx")).run(None, {"activation": x.numpy()})
    np.testing.assert_allclose(found, scores(grid, (2, 1), x).numpy(), rtol=1e-4, atol=1e-4)


def test_a_snippet_runs_in_transformer_lens(grid, acts, tiny_model, tiny_tokenizer, tmp_path):
    bridges = pytest.importorskip("transformer_lens.model_bridge", reason="needs transformer-lens")
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    grid.export(tmp_path / "probe", (1, 2), site="z")
    ids = torch.tensor([acts.input_ids[3]])
    names = {
        "bridge": bridges.TransformerBridge.boot_transformers(str(tmp_path / "model"), device="cpu"),
        "input_ids": ids,
    }
    exec(grid.snippet((1, 2), folder=tmp_path / "probe"), names)  # the code that a user is given
    torch.testing.assert_close(
        names["score"].detach()[0], scores(grid, (1, 2), acts["z"][3, 1, 2]).float(), rtol=1e-3, atol=1e-3
    )


def test_a_snippet_that_cannot_be_is_one_line(acts, tiny_model):
    bare = en.fit_probes(acts["z"], labels(2), n_permutations=0)
    with pytest.raises(en.EntangleError, match="layer of this grid is not known"):
        bare.snippet((1, 2))
    grid = en.fit_probes(acts["z"], labels(2), n_permutations=0, layers=acts.layers("z"))
    with pytest.raises(en.EntangleError, match="needs model="):
        grid.snippet((1, 2), tool="nnsight")
    assert "self_attn.o_proj" in grid.snippet((1, 2), tool="nnsight", model=tiny_model("llama"))
    with pytest.raises(en.EntangleError, match="'transformer_lens' or 'nnsight'"):
        grid.snippet((1, 2), tool="pyvene")
    assert FittedProbe(np.ones((1, 2)), np.zeros(1), np.array([0, 1])).n_features_in_ == 2
