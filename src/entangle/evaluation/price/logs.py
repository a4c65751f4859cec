"""A sweep as rows for evaluation tools: one row a number, and the logs of lm-evaluation-harness and Inspect."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from entangle.errors import EntangleError
from entangle.storage.files import write_text

Row = dict[str, Any]
# What a sweep measures on the prompts, and on clean text.
ON_PROMPTS = ("toxicity", "toxic_share", "max_toxicity", "ever_toxic", "degenerate", "distinct_2", "worse")
ON_TEXT = ("ce", "perplexity", "kl", "agreement")
KEYS = ("model", "edit", "alpha", "task", "metric", "score", "low", "high", "n")
FORMATS = ("jsonl", "lm-eval", "inspect")
NAMESPACE = uuid.UUID("5f1b0c1e-6a1c-4b54-9d55-0c7f1b6f5a10")


def rows_of(frame: pd.DataFrame, *, model: str, task: str, n_prompts: int, n_texts: int) -> list[Row]:
    """Every number of a sweep's table that has one, a row each.

    Args:
        frame: What `Tradeoff.to_frame` gives.
        model: What to call the model.
        task: What to call the prompts; clean text is the task `"language"`.
        n_prompts: How many prompts there were.
        n_texts: How many documents.

    Returns:
        Rows of `model`, `edit`, `alpha`, `task`, `metric`, `score`, `low`, `high` (None without an interval) and `n`.
    """
    rows: list[Row] = []
    for _, line in frame.iterrows():
        for name, metrics, n in ((task, ON_PROMPTS, n_prompts), ("language", ON_TEXT, n_texts)):
            for metric in metrics:
                value = line.get(metric)
                if value is None or not np.isfinite(value):
                    continue
                ends = [line.get(f"{metric}_{end}") for end in ("low", "high")]
                low, high = (None if end is None or not np.isfinite(end) else float(end) for end in ends)
                values = (model, str(line["method"]), float(line["alpha"]), name, metric, float(value), low, high, n)
                rows.append(dict(zip(KEYS, values, strict=True)))
    return rows


def write_rows(rows: Sequence[Mapping[str, Any]], path: str | Path, format: str = "jsonl") -> Path:
    """Write rows for an evaluation tool.

    Args:
        rows: As `Tradeoff.to_rows` or `Study.to_rows` give them.
        path: A file for `"jsonl"`, a folder for the others, made if need be.
        format: `"jsonl"`, a row a line; `"lm-eval"`, one results file of lm-evaluation-harness for each edit and
            strength, whose intervals are metrics of their own, since they are no standard errors; `"inspect"`, one log
            of Inspect for each edit, strength and task (`inspect_ai.log.read_eval_log`), without samples.

    Returns:
        The path.

    Raises:
        EntangleError: No rows, no such format, or it cannot be written.

    Example:
        >>> row = {"model": "tiny", "edit": "ITI", "alpha": 4.0, "task": "posts", "metric": "toxicity", "score": 0.2}
        >>> print(write_rows([row], "rows.jsonl").read_text())
        {"model": "tiny", "edit": "ITI", "alpha": 4.0, "task": "posts", "metric": "toxicity", "score": 0.2}
        <BLANKLINE>
    """
    if format not in FORMATS:
        raise EntangleError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    if not rows:
        raise EntangleError("there are no rows to write: give a study or a sweep in which something was measured")
    target = Path(path)
    if format == "jsonl":
        return write_text(target, "".join(json.dumps(row) + "\n" for row in rows))
    if target.exists() and not target.is_dir():
        raise EntangleError(f"{target} is a file, but {format} logs are several: give a folder")
    target.mkdir(parents=True, exist_ok=True)
    by = ("model", "edit", "alpha") if format == "lm-eval" else ("model", "edit", "alpha", "task")
    for key, group in groupby(sorted(rows, key=lambda row: _key(row, by)), key=lambda row: _key(row, by)):
        name = "_".join("".join(c if c.isalnum() or c in ".-" else "-" for c in part) for part in key)
        log = (_lm_eval if format == "lm-eval" else _inspect)(list(group))
        write_text(target / f"{'results_' if format == 'lm-eval' else ''}{name}.json", json.dumps(log, indent=1))
    return target


def _key(row: Mapping[str, Any], by: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in by)


def _lm_eval(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    """A results file as lm-evaluation-harness writes it."""
    first = rows[0]
    results: dict[str, dict[str, Any]] = {}
    for row in rows:
        task = results.setdefault(str(row["task"]), {"alias": str(row["task"])})
        task |= {f"{row['metric']},none": row["score"], f"{row['metric']}_stderr,none": "N/A"}
        task |= {f"{row['metric']}_{end},none": row[end] for end in ("low", "high") if row.get(end) is not None}
    sizes = {str(row["task"]): row.get("n") for row in rows}
    return {
        "results": results,
        "versions": dict.fromkeys(results, "entangle"),
        "n-shot": dict.fromkeys(results, 0),
        "n-samples": {task: {"original": n, "effective": n} for task, n in sizes.items()},
        "config": {
            "model": "entangle",
            "model_args": {"pretrained": first["model"], "edit": first["edit"], "alpha": first["alpha"]},
        },
        "model_name": first["model"],
        "model_source": "entangle",
    }


def _inspect(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    """A log of Inspect, version 2 of its format, with results and no samples."""
    first, now = rows[0], datetime.now(UTC).isoformat(timespec="seconds")
    edit = {"edit": first["edit"], "alpha": first["alpha"]}
    name = str(uuid.uuid5(NAMESPACE, json.dumps([first["model"], edit, first["task"], now])))
    n = int(first.get("n") or 0)
    scores = [
        {
            "name": row["metric"],
            "scorer": row["metric"],
            "params": {},
            "metrics": {
                metric: {"name": metric, "value": row[key], "params": {}}
                for metric, key in (("mean", "score"), ("low", "low"), ("high", "high"))
                if row.get(key) is not None
            },
        }
        for row in rows
    ]
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": name,
            "run_id": name,
            "task_id": name,
            "created": now,
            "task": str(first["task"]),
            "task_version": 0,
            "task_args": edit,
            "task_attribs": {},
            "dataset": {"name": str(first["task"]), "samples": n},
            "model": str(first["model"]),
            "model_args": edit,
            "config": {},
            "packages": {},
        },
        "plan": {"name": "plan", "steps": [{"solver": "entangle/steer", "params": edit}], "config": {}},
        "results": {"total_samples": n, "completed_samples": n, "scores": scores},
        "stats": {"started_at": now, "completed_at": now, "model_usage": {}},
    }
