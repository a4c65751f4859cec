"""What the demo's page says holds: the same sentences from every seed, precision and number of threads.

`pytest -m slow tests/report/test_demo.py` takes some two minutes of a core for each of its runs.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from entangle.report import demo
from entangle.study.answer import own_row, plain_row, steered_row

APART, TOGETHER = 0, 1
RUNS = [
    *((seed, "fp32", 1) for seed in range(10)),
    *((seed, "bf16", 1) for seed in range(10)),
    *((seed, "fp32", 2) for seed in range(10)),
]


def verdicts(answer: list[str]) -> list[str]:
    """The sentences without what may differ: numbers, the chosen layer and method, the nearest of concepts that are not
    near, and whether what is no more entangled than by chance is even less."""
    nearest, chosen = r"nearest to \w+", r"by [\w ]+ at alpha"
    plain = [re.sub(chosen, "by one at alpha", re.sub(nearest, "nearest to one", sentence)) for sentence in answer]
    plain = [sentence.replace("less ent", "no more ent") for sentence in plain]
    return [re.sub(r"-?\d[\d.,]*", "#", sentence) for sentence in plain]


def check(found: dict[str, Any]) -> None:
    """Whatever README and the page promise of a demo."""
    apart, together = found["studies"]
    for study in (apart, together):
        best, words = study["probes"]["resid_post"]["best"], study["baselines"]["bag_of_words"]
        assert best["accuracy"] >= 0.9
        assert best["accuracy"] >= words["accuracy"] - 0.005  # as good as: it may miss one text more
        plain, row = plain_row(study), steered_row(study)
        assert row is not None
        assert row["removed_low"] >= 0.5 * plain["toxicity"]
        assert row["kl"] <= 0.3
        assert not study["missing"]
        told = " ".join(study["answer"])
        for said in ("can be read", "no better than from the words alone", "Steering lowers it: by", "a nat removes"):
            assert said in told
    assert own_row(together)["partner"] == "tense"
    assert own_row(together)["covariance_percentile"] >= 0.95 > own_row(apart)["covariance_percentile"]
    assert "more than by chance in model B" in found["answer"][0]
    assert "no more than by chance in model A" in found["answer"][0]
    assert len(found["answer"]) == 2
    assert found["answer"][1].startswith("It is not shown to be dearer by a quarter to steer out in one")


def run(out: Path, seed: int, precision: str, threads: int, **more: Any) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        page, numbers = demo(out, seed=seed, precision=precision, progress=False, **more)
    finally:
        torch.set_num_threads(before)
    assert page.stat().st_size < 5e6
    return json.loads(numbers.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "precision", "threads"), RUNS)
def test_the_demo_tells_the_same_story(seed: int, precision: str, threads: int, tmp_path: Path) -> None:
    check(run(tmp_path, seed, precision, threads))


@pytest.mark.slow
def test_seeds_agree_sentence_by_sentence(tmp_path: Path) -> None:
    told = [run(tmp_path / str(seed), seed, "fp32", 1) for seed in (0, 1)]
    assert len({tuple(verdicts(found["answer"][:1])) for found in told}) == 1
    for model in (APART, TOGETHER):
        assert len({tuple(verdicts(found["studies"][model]["answer"])) for found in told}) == 1


@pytest.mark.slow
def test_two_processes_write_what_one_writes_and_nothing_is_done_twice(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", 0, "fp32", 1, quick=True)
    begun = (tmp_path / "alone" / "models" / "share-1-seed-0" / "metrics.json").stat().st_mtime_ns
    aside = run(tmp_path / "aside", 0, "fp32", 1, quick=True, processes=2)
    assert alone["answer"] == aside["answer"]
    assert run(tmp_path / "alone", 0, "fp32", 1, quick=True)["answer"] == alone["answer"]
    assert (tmp_path / "alone" / "models" / "share-1-seed-0" / "metrics.json").stat().st_mtime_ns == begun
