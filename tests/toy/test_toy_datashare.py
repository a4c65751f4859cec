"""The data-share study: its bookkeeping, its nulls, and that it sees an effect where there is one."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from entangle.errors import EntangleError
from entangle.toy import LITERAL, MOTIVATED, DataShareStudy, MarkovMixture, data_share_study
from entangle.toy.chains.study import _exact, _noisy

SMALL = {"n_layers": 2, "compile": False, "progress": False}


@pytest.fixture(scope="module")
def study():
    return data_share_study(
        shares=(0.0, 0.05, 1.0), seeds=range(50, 54), selection_seeds=(60, 61), steps=160, budgets=(0, 60), **SMALL
    )


def test_a_row_for_every_model_and_definition(study):
    frame = study.to_frame()
    wanted = {"share", "seed", "role", "step", "feature", "direction", "scope", "site", "partners"}
    assert wanted | {"minority", "control", "minority_loss", "control_loss"} == set(frame.columns)
    # 3 shares x 6 seeds, 3 budgets, 2 sites, 5 directions, 10 combinations of feature, scope and partners
    assert len(frame) == 18 * 3 * 2 * 5 * 10
    assert not frame.duplicated(["share", "seed", "step", "feature", "direction", "scope", "site", "partners"]).any()
    assert set(frame["step"]) == {0, 60, 160}
    assert set(frame.loc[frame["role"] == "select", "seed"]) == {60, 61}
    assert frame[["minority", "control"]].stack().between(0, 1 + 1e-6).all()


def test_models_of_a_seed_start_alike_and_part_as_they_train(study):
    before, after = (
        study.of(MOTIVATED, step=step).pivot(index="seed", columns="share", values="minority") for step in (0, 160)
    )
    assert before.nunique(axis=1).eq(1).all()
    assert after.nunique(axis=1).eq(3).all()


def test_what_is_rare_is_learned_later(study):
    losses = study.of(MOTIVATED).groupby("share")[["minority_loss", "control_loss"]].mean()
    assert losses.loc[0.0, "minority_loss"] > losses.loc[0.05, "minority_loss"] > losses.loc[1.0, "minority_loss"]
    assert losses.loc[0.0, "minority_loss"] > 3 * losses.loc[0.0, "control_loss"]


def test_the_table_has_every_definition_and_its_baselines(study):
    table = study.table(n_permutations=200)
    assert len(table) == 3 * 2 * 4 * 10
    assert set(table["share"]) == {0.05}
    assert (table["low"] <= table["difference"] + 1e-9).all()
    assert (table["difference"] <= table["high"] + 1e-9).all()
    assert np.allclose(table["difference"], table["minority"] - table["control"])
    assert (table["p_family"] >= table["p_difference"] - 1e-9).all()
    assert table["p_difference"].between(1 / 201, 1).all()
    pair = table[(table["feature"] == "chain, token") & (table["partners"] == "all")]
    assert pair["random"].between(0.8, 0.88).all()
    untrained = table[table["step"] == 0]
    assert np.allclose(untrained["untrained"], untrained["difference"])
    assert (untrained["trend"] == 0).all()


def planted_study(effect: float) -> DataShareStudy:
    """A study whose minority is more entangled by `effect` where it is rare."""
    rng = np.random.default_rng(0)
    rows = []
    for direction in ("mean_difference", "random"):
        for step in (0, 10):
            for share in (0.01, 0.1, 1.0):
                for seed in range(12):
                    level = 0.8 + 0.02 * rng.standard_normal()
                    extra = effect * (1 - share) if direction != "random" and step else 0.0
                    values = {"minority": level + extra + 0.01 * rng.standard_normal(), "control": level}
                    rows.append(
                        {"share": share, "seed": seed, "role": "report", "step": step, "direction": direction} | values
                    )
    frame = pd.DataFrame(rows).assign(
        feature="chain, token",
        scope="joint",
        partners="all",
        site="blocks.0.hook_resid_post",
        minority_loss=1.0,
        control_loss=1.0,
    )
    frame["minority_loss"] = 1 - frame["share"]
    settings = {"shares": [0.01, 0.1, 1.0], "steps": 10, "architecture": {"n_layers": 1}, "selection_seeds": []}
    return DataShareStudy(frame, settings)


def test_the_table_finds_a_planted_effect_and_no_other():
    there = planted_study(0.1).table().set_index("step").loc[10]
    assert there["difference"] == pytest.approx(0.099, abs=0.01)
    assert there["low"] < 0.099 < there["high"]
    assert there["p_difference"] < 0.005
    assert there["trend"] < -0.9
    assert there["p_trend"] < 0.005
    assert there["p_family"] < 0.01
    absent = planted_study(0.0).table().set_index("step").loc[10]
    assert absent["low"] < 0 < absent["high"]
    assert absent["p_difference"] > 0.05
    assert absent["p_trend"] > 0.05


def test_the_selected_definition_is_reported_on_other_seeds(study):
    chosen = study.selected()
    on_selection = study.table(role="select", n_permutations=10)
    trained = on_selection[on_selection["step"] > 0]
    key = ["feature", "direction", "scope", "site", "partners", "step"]
    assert (trained.sort_values("difference").iloc[-1][key] == chosen[key]).all()
    rows = study.of(dict(chosen[key[:5]]), step=chosen["step"])
    rare = rows[rows["share"] == 0.05]
    assert set(rare["seed"]) == set(range(50, 54))
    assert chosen["difference"] == pytest.approx((rare["minority"] - rare["control"]).mean())


def test_headline_definitions_are_in_the_study_and_unknown_ones_are_refused(study):
    assert len(study.of(LITERAL)) == len(study.of(MOTIVATED)) == 12
    with pytest.raises(EntangleError, match="nothing was measured"):
        study.of(LITERAL | {"direction": "svm"})


def test_it_writes_figures_and_json(study, tmp_path):
    study.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"data_share.json", "data_share.csv.gz", "data_share.png", "budgets.png"}
    record = json.loads((tmp_path / "data_share.json").read_text())
    assert record["settings"]["seeds"] == list(range(50, 54))
    assert len(record["table"]) == 240
    assert len(pd.read_csv(tmp_path / "data_share.csv.gz")) == len(study.frame)
    (tmp_path / "notes.txt").write_text("mine")
    study.save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["data_share.json", "budgets.png", "data_share.csv.gz"])
def test_files_of_others_are_not_replaced_and_are_seen_before_any_training(study, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(EntangleError, match="would be lost"):
        study.save(tmp_path)
    with pytest.raises(EntangleError, match="would be lost"):
        data_share_study(shares=[0.5], seeds=2, steps=10**9, out=tmp_path, progress=False)
    assert (tmp_path / name).read_text() == "mine"


def test_batches_without_noise_draw_each_chain_as_often_as_its_share_says():
    mixtures = [MarkovMixture(seed=1), MarkovMixture(seed=1)]
    p = torch.stack([mixture.chain_probabilities(share) for mixture, share in zip(mixtures, (0.0, 0.5), strict=True)])
    batches = _exact(mixtures, p, np.array([64, 80]), 64, [0])
    weights = torch.stack([batches(step)[1] for step in range(500)])
    per_chain = weights.view(500, 2, 3, 4).sum(-1).mean(0)
    minority = mixtures[0].minority
    others = [chain for chain in range(3) if chain != minority]
    # The clean chains' data are the same with and without the minority's, which comes on top.
    assert torch.allclose(per_chain[:, others], torch.full((2, 2), 0.5), atol=0.02)
    assert per_chain[:, minority].tolist() == [0.0, pytest.approx(0.25, abs=0.02)]


def test_noisy_batches_are_fresh_and_weighted_alike():
    mixtures = [MarkovMixture(noise=0.2, seed=1)] * 2
    p = torch.stack([mixtures[0].chain_probabilities(share) for share in (0.0, 1.0)])
    batches = _noisy(mixtures, p, np.array([64, 96]), 64, torch.Generator().manual_seed(0))
    (tokens, weights), (again, _) = batches(0), batches(1)
    assert tokens.shape == (2, 96, 16)
    assert not torch.equal(tokens, again)
    assert weights.sum(1).tolist() == [1.0, 1.5]


def test_noise_positions_and_a_constant_total_run_end_to_end():
    found = data_share_study(
        shares=(0.1, 1.0),
        seeds=2,
        steps=3,
        budgets=(),
        noise=0.1,
        positions=True,
        hold="total",
        n_chains=2,
        n_states=3,
        length=6,
        d_model=6,
        n_heads=3,
        **SMALL,
    )
    assert len(found.of(MOTIVATED)) == 4
    assert found.to_frame()["minority_loss"].notna().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": [1, 2], "selection_seeds": [2]}, "must be different"),
        ({"seeds": 1}, "at least 2 to report"),
        ({"shares": ()}, "needs shares"),
        ({"shares": (-0.5,)}, "share must be a finite number"),
        ({"length": 15}, "multiple of n_states"),
        ({"n_heads": 3}, "3 does not divide 4"),
    ],
)
def test_impossible_studies_are_refused(arguments, message):
    with pytest.raises(EntangleError, match=message):
        data_share_study(**{"steps": 1, "progress": False} | arguments)
