"""What is trained on pairs does to them what its method says, as a plain loop would do it, and nothing else."""

import copy
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_experiment import MEASURE, TINY, tiny
from torch.nn import functional as F

from entangle.composition import Pairs, Plan, PostTraining, new_model, posttrain, run, train_tokenizer
from entangle.composition.comparing.comparison import Comparison
from entangle.composition.comparing.displacement import changes, displacement, foreseen, likelihoods
from entangle.data import corpus, load_pairs
from entangle.errors import EntangleError
from entangle.models.rows import encode, pad, pad_id
from entangle.report import compose

PAIRS = corpus.pairs(48, seed=0)
SWAPPED = [(rude, polite) for polite, rude in PAIRS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text for pair in PAIRS for text in pair], 400)


@pytest.fixture
def model(tokenizer):
    return new_model(TINY["architecture"], tokenizer, seed=0)


def settings(method: str, **changed: object) -> PostTraining:
    return PostTraining(method.upper(), method, **{**QUICK, **changed})


QUICK = {"steps": 12, "batch_size": 16, "learning_rate": 3e-3, "max_length": 90}


def trained(model, tokenizer, pairs, method, **changed):
    found = copy.deepcopy(model)
    losses = posttrain(found, tokenizer, pairs, settings(method, **changed), progress=False)
    return found, losses


def test_sft_makes_the_preferred_side_likelier_and_dpo_the_margin(model, tokenizer) -> None:
    before = likelihoods(model, tokenizer, PAIRS)
    tuned, losses = trained(model, tokenizer, PAIRS, "sft")
    assert losses[-1] < losses[0]
    assert sum(likelihoods(tuned, tokenizer, PAIRS)["chosen"]) > sum(before["chosen"])

    def margin(pairs) -> float:
        found = likelihoods(trained(model, tokenizer, pairs, "dpo")[0], tokenizer, PAIRS)
        change = {side: np.subtract(found[side], before[side]) for side in found}
        return float((change["chosen"] - change["rejected"]).mean())

    assert margin(PAIRS) > 0.1
    assert margin(SWAPPED) < -0.1  # the same budget the other way round


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_trl_takes_the_steps_of_a_plain_loop(model, tokenizer, method) -> None:
    """One batch holds all pairs, so their order does not matter; AdamW and a falling rate are torch's own."""
    steps, rate, beta = 3, 3e-3, 0.4
    tuned, losses = trained(model, tokenizer, PAIRS, method, steps=steps, batch_size=len(PAIRS), beta=beta)
    plain, reference = copy.deepcopy(model).train(), copy.deepcopy(model)
    optimiser = torch.optim.AdamW(plain.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        sums, counts = logp(plain, tokenizer, PAIRS)
        if method == "sft":
            loss = -sums[: len(PAIRS)].sum() / counts[: len(PAIRS)].sum()
        else:
            with torch.no_grad():
                moved = sums - logp(reference, tokenizer, PAIRS)[0]
            moved = sums - (sums - moved).detach()
            loss = -F.logsigmoid(beta * (moved[: len(PAIRS)] - moved[len(PAIRS) :])).mean()
        assert losses[step] == pytest.approx(loss.item(), abs=2e-4)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimiser.param_groups[0]["lr"] = rate * (steps - step) / steps
        optimiser.step()
    moved = [(p - q).norm() for p, q in zip(tuned.parameters(), plain.parameters(), strict=True)]
    whole = [(p - q).norm() for p, q in zip(tuned.parameters(), model.parameters(), strict=True)]
    assert sum(moved) < 0.02 * sum(whole)


def logp(model, tokenizer, pairs):
    """Summed log-likelihood of preferred texts, then of the others, and how many tokens they have."""
    texts = [side + tokenizer.eos_token for sides in zip(*pairs, strict=True) for side in sides]
    batch = pad(encode(tokenizer, texts, prepend_bos=True), pad_id(tokenizer))
    targets, real = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:]
    found = model(**batch).logits[:, :-1].log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    return (found * real).sum(1), real.sum(1)


def test_only_the_weights_change(model, tokenizer) -> None:
    config, forward = copy.deepcopy(model.config.to_dict()), model.forward.__func__
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    weights = copy.deepcopy(model.state_dict())
    posttrain(model, tokenizer, PAIRS, settings("dpo"), progress=False)
    assert model.config.to_dict() == config
    assert model.forward.__func__ is forward
    assert not model.training
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert any(not torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_the_seed_decides_everything(model, tokenizer) -> None:
    first, again, other = (copy.deepcopy(model) for _ in range(3))
    for each, seed in ((first, 0), (again, 0), (other, 1)):
        torch.manual_seed(random.randrange(10**6))  # what the process drew before does not matter
        posttrain(each, tokenizer, PAIRS, settings("sft", steps=3), seed=seed, progress=False)
    weights = [torch.cat([p.flatten() for p in each.parameters()]) for each in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_rank_correlation_is_told_from_chance() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(80)
    assert foreseen(scores, -scores) == (pytest.approx(-1), pytest.approx(1 / 2001))
    assert foreseen(scores, scores)[1] == 1
    assert foreseen(scores, rng.standard_normal(80))[1] > 0.05
    assert np.isnan(foreseen(scores, np.zeros(80))[0])
    numbers = {"ches": scores, **{f"{side}_{when}": np.zeros(80) for side in ("chosen", "rejected") for when in (
        "before", "after")}}  # fmt: skip
    numbers["chosen_after"] = -np.abs(scores)
    found = changes(numbers)
    assert found["fell"] == 1
    assert found["chosen"] == found["margin"] == pytest.approx(-np.abs(scores).mean())


def test_built_in_pairs_differ_in_rudeness_alone() -> None:
    assert PAIRS == corpus.pairs(48, seed=0) != corpus.pairs(48, seed=1)
    for polite, rude in PAIRS:
        assert polite != rude
        assert polite.split(",")[0] == rude.split(",")[0]
    loaded = Pairs(number=48, held_out=8).load()
    assert len(loaded.held_out) == 8
    assert sorted([*loaded.trained, *loaded.held_out]) == sorted(PAIRS)
    assert not set(loaded.texts()) & {text for pair in loaded.held_out for text in pair}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_text_is_on_one_side_of_the_split_alone(tmp_path: Path) -> None:
    rows = [{"good": f"nice {i // 2}", "bad": f"nasty {i}"} for i in range(40)]  # every good text twice
    file = write(tmp_path / "pairs.jsonl", rows)
    loaded = Pairs(str(file), "good", "bad", held_out=10).load()
    assert len(loaded.held_out) == 10
    assert not {good for good, _ in loaded.trained} & {good for good, _ in loaded.held_out}
    assert len(loaded.trained) < 30
    write(tmp_path / "known.jsonl", [{"text": "NASTY 3!"}])
    fewer = Pairs(str(file), "good", "bad", held_out=10, without=(str(tmp_path / "known.jsonl"),)).load()
    assert ("nice 1", "nasty 3") not in [*fewer.trained, *fewer.held_out]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"good": "a"}, r"line 2 has no 'bad': its columns are 'good'"),
        ({"good": "", "bad": "b"}, r"line 2: 'good' is empty"),
        ({"good": "a", "bad": None}, r"'bad' must be text, not NoneType"),
        ({"good": "a", "bad": "a"}, "nothing to prefer"),
    ],
)
def test_a_pair_without_two_sides_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    file = write(tmp_path / "pairs.jsonl", [{"good": "x", "bad": "y"}, row])
    with pytest.raises(EntangleError, match=message):
        load_pairs(file, chosen="good", rejected="bad")


SFT = {"name": "SFT", "method": "sft", **QUICK, "steps": 2}
DPO = {"name": "DPO", "method": "dpo", **QUICK, "steps": 3}
GIVEN = {"number": 40, "held_out": 8}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pairs": GIVEN, "posttraining": [{**DPO, "method": "ppo"}]}, "is 'sft' or 'dpo', not 'ppo'"),
        ({"pairs": GIVEN, "posttraining": [{**DPO, "beta": -0.1}]}, "beta of posttraining 'DPO' must be positive"),
        ({"pairs": GIVEN, "posttraining": [{**DPO, "steps": 0}]}, "steps of posttraining 'DPO' must be positive"),
        ({"pairs": GIVEN, "posttraining": [{**DPO, "name": "a/b"}]}, "but 'a/b' is a path"),
        ({"pairs": GIVEN, "posttraining": [{**DPO, "shares": [0.5]}]}, "none of which has share 0.5"),
        ({"pairs": GIVEN, "posttraining": [{**DPO, "seeds": [7]}]}, "none of which has seed 7"),
        ({"pairs": GIVEN, "posttraining": [DPO, DPO]}, "names of a recipe must differ"),
        ({"posttraining": [DPO]}, r"needs \[pairs\]"),
        ({"pairs": {}, "posttraining": [DPO]}, "pairs need a file"),
        ({"pairs": {"number": 8, "held_out": 7}, "posttraining": [DPO]}, "1 pairs to train on and 7 held out are too"),
        ({"pairs": {"number": 8, "held_out": 1}, "posttraining": [DPO]}, "held_out of pairs"),
        ({"pairs": {"number": 8, "chosen": "x", "rejected": "x"}}, "two columns"),
        ({"pairs": GIVEN, "posttraining": [{**DPO, "max_length": 95}]}, "has room for 94"),
        ({"pairs": GIVEN, "posttraining": [{**DPO, "max_length": 5}]}, "of no more than 5 tokens a side"),
    ],
)
def test_refused_before_any_training(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(EntangleError, match=message):
        run(tiny(**changed), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_pairs_that_are_evaluated_on_are_refused(tmp_path: Path) -> None:
    prompts = write(
        tmp_path / "prompts.jsonl", [{"text": "Something else."}, {"text": Pairs(**GIVEN).load().texts()[3]}]
    )
    recipe = tiny(pairs=GIVEN, posttraining=[DPO], measure={**MEASURE, "prompts": {"mine": {"files": [str(prompts)]}}})
    with pytest.raises(EntangleError, match=r"1 of 2 mine prompt texts are also trained on.*`without` of pairs"):
        Plan.of(recipe)


def test_without_trl_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(EntangleError, match=r"pip install 'entangle\[posttrain\]'"):
        Plan.of(tiny(pairs=GIVEN, posttraining=[DPO]))


def times(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}


def test_models_are_trained_on_pairs_measured_and_compared(tmp_path: Path) -> None:
    recipe = tiny(measure=MEASURE, pairs=GIVEN, posttraining=[SFT, {**DPO, "shares": [0.2]}])
    compose(recipe, tmp_path, progress=False)
    names = ["SFT-share-0-seed-0", "SFT-share-0.2-seed-0", "DPO-share-0.2-seed-0"]
    assert [cell.name for cell in recipe.cells] == ["share-0-seed-0", "share-0.2-seed-0", *names]
    finished = run(recipe, tmp_path, progress=False)
    frame = finished.to_frame()
    assert frame["variant"].tolist() == ["", "", "SFT", "SFT", "DPO"]
    assert frame["n_pairs"].tolist()[2:] == [32, 32, 32]
    found = Comparison.of(finished)
    assert not found.variants
    table = found.steering.set_index(["share", "method"])
    assert ("DPO" in table.loc[0.0].index, "DPO" in table.loc[0.2].index) == (False, True)
    sft, base = finished.model(0.2, variant="SFT").measured, finished.model(0.2).measured
    assert [each["method"] for each in sft["conditions"]] == [""]
    paid = sum(sft["conditions"][0]["nats"]) - sum(base["conditions"][0]["nats"])
    assert table.loc[(0.2, "SFT"), "paid"] == pytest.approx(paid / sum(base["tokens"]), rel=1e-4)
    change = np.mean(sft["conditions"][0]["scores"]) - np.mean(
        finished.model(0.0, variant="SFT").measured["conditions"][0]["scores"]
    )
    assert table.loc[(0.2, "SFT"), "against_first"] == pytest.approx(change)
    moved = displacement(finished.models)
    assert moved["pairs"].tolist() == ["trained on", "held out"] * 3
    assert moved["n"].tolist() == [8] * 6
    page = (tmp_path / "report.html").read_text()
    assert "Trained on pairs" in page
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["posttraining"]) == 6

    # Other settings train that model again, and no other.
    before = times(tmp_path)
    other = tiny(measure=MEASURE, pairs=GIVEN, posttraining=[SFT, {**DPO, "shares": [0.2], "beta": 0.5}])
    run(other, tmp_path, progress=False)
    after = times(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {"DPO-share-0.2-seed-0"}


def test_a_posttraining_that_fails_leaves_nothing_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(shares=[0.0], pairs=GIVEN, posttraining=[SFT])

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("entangle.composition.measuring.pairs.posttrain", killed)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json", "share-0-seed-0"}
    base = times(tmp_path)
    run(recipe, tmp_path, progress=False)
    assert times(tmp_path).keys() == {"share-0-seed-0", "SFT-share-0-seed-0"}
    assert times(tmp_path)["share-0-seed-0"] == base["share-0-seed-0"]
