"""How well a small instructed model judges texts: agreement with labels, calibration, order, wording, batch.

    python tests/benchmarks/judge.py MODEL --data ../shared/data --keep judge.json [--rows 100] [--minutes 14]

What the model says is kept in a file as it comes, so that the measurement may be stopped and taken up again; the tables
are of what is there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import entangle as en
from entangle.metrics import auroc_interval
from entangle.models import load

SETS = {
    "truth_statements": {
        "where": lambda row: row["dataset"] in ("cities", "sp_en_trans", "facts"),
        "questions": ("Is the following statement true?", "Does this text say something that is correct?"),
    },
    "probe_toxigen": {
        "where": lambda row: not 2.5 <= row["score"] <= 3.5,
        "questions": (
            "Is the following text hateful or demeaning toward a group of people?",
            "Would members of a group feel insulted by this text?",
        ),
    },
}
MOST = 160  # rows of a set that are drawn, in one order, so that more of them are added to fewer
CHUNK, OTHER = 10, 0.5  # rows at once; share of the rows that the second wording is asked about
BATCHED = 10  # rows that are asked about one by one as well


def read(folder: Path, name: str, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Rows of a data set, as many of either class, in the order of chance."""
    with gzip.open(folder / f"{name}.jsonl.gz", "rt") as lines:
        rows = [row for row in map(json.loads, lines) if SETS[name]["where"](row)]
    rng = np.random.default_rng(seed)
    classes = [[row["text"] for row in rows if row["label"] == label] for label in (0, 1)]
    drawn = [rng.choice(len(texts), MOST // 2, replace=False) for texts in classes]
    return [classes[k][drawn[k][i]] for i in range(MOST // 2) for k in (0, 1)], np.tile([0, 1], MOST // 2)


def chunks(n: int) -> list[tuple[str, int, int]]:
    """Set, wording and first row of what is asked, so that whatever is done is even."""
    steps = [(name, 0, start) for start in range(0, n, CHUNK) for name in SETS]
    return steps + [(name, 1, start) for start in range(0, int(n * OTHER), CHUNK) for name in SETS]


def ask(judges: Any, texts: Any, n: int, file: Path, deadline: float) -> dict[str, Any]:
    """What the judges say of every row, until the time is over."""
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name, wording, start in chunks(n):
        said = kept.setdefault(f"{name} {wording}", {"p": [], "mass": []})
        if len(said["p"]) > start or time.monotonic() > deadline:
            continue
        p, mass = judges[name, wording].ask(texts[name][start : start + CHUNK])
        said["p"] += p.tolist()
        said["mass"] += mass.tolist()
        file.write_text(json.dumps(kept))
    for name in SETS:
        if f"{name} alone" not in kept and time.monotonic() < deadline:
            judge = judges[name, 0]
            judge.batch_tokens, wide = 1, judge.batch_tokens
            kept[f"{name} alone"] = {"p": judge.ask(texts[name][:BATCHED])[0].tolist()}
            judge.batch_tokens = wide
            file.write_text(json.dumps(kept))
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--keep", type=Path, default=Path("judge.json"))
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    model, tokenizer = load(options.model, dtype=getattr(torch, options.dtype))
    texts, labels = {}, {}
    for name in SETS:
        texts[name], labels[name] = read(options.data, name)
    judges = {
        (name, wording): en.JudgeScorer(model, tokenizer, question)
        for name, of_set in SETS.items()
        for wording, question in enumerate(of_set["questions"])
    }
    kept = ask(judges, texts, options.rows, options.keep, deadline)
    for name in SETS:
        report(name, texts[name], labels[name], judges, kept)


def report(name: str, texts: list[str], labels: np.ndarray, judges: Any, kept: dict[str, Any]) -> None:
    """Print the tables of one data set."""
    for wording in (0, 1):
        said = kept.get(f"{name} {wording}", {"p": []})
        p = np.array(said["p"]).reshape(-1, 2)
        n = len(p)
        if n < 20:
            continue
        y, judge = labels[:n], judges[name, wording]
        judge.ask = lambda *_, p=p, said=said: (p, np.array(said["mass"]))
        print(f"\n{name}, {n} rows: {judge.question}")
        for order, values in (("yes first", p[:, 0]), ("no first", p[:, 1]), ("mean", p.mean(1))):
            area = auroc_interval(values, y)
            print(f"  {order:9} AUROC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}] mean {values.mean():.3f}")
        for kind in ("platt", "isotonic"):
            judged = judge.fit(texts[:n], y, calibration=kind, least=0).report
            numbers = ("auroc", "auroc_low", "auroc_high", "brier_raw", "brier", "ece_raw", "ece")
            print(f"  {kind:9} {judged['n_held_out']} held out:", *(f"{key} {judged[key]:.3f}" for key in numbers))
        print(
            f"  order_gap {judged['order_gap']:.3f} order_flips {judged['order_flips']:.3f} mass {judged['mass']:.3f}"
        )
    one, other = (np.array(kept.get(f"{name} {w}", {"p": []})["p"]).reshape(-1, 2).mean(1) for w in (0, 1))
    if n := min(len(one), len(other)):
        moved = np.abs(one[:n] - other[:n])
        print(f"  wording, {n} rows: r {np.corrcoef(one[:n], other[:n])[0, 1]:.3f}, mean |change| {moved.mean():.3f}")
    if f"{name} alone" in kept:
        alone = np.array(kept[f"{name} alone"]["p"])
        beside = np.array(kept[f"{name} 0"]["p"])[: len(alone)]
        print(f"  batch, {len(alone)} rows: largest change {np.abs(alone - beside).max():.2g}")


if __name__ == "__main__":
    main()
