"""Capability by lm-evaluation-harness: its tasks on the plain model and on the changed one, question by question.

Needs the package `lm_eval`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from entangle.errors import EntangleError
from entangle.evaluation.language.subject import Method, Subject, applied
from entangle.interventions import Edit
from entangle.metrics.intervals.rates import paired_rate_interval
from entangle.metrics.statistics import Estimate, bootstrap_mean, paired_permutation_test, wilson_interval
from entangle.models import own_tokenizer, underlying


def task_scores(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    edit: Method | Edit | Sequence[Edit],
    *,
    alpha: float = 1.0,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    include_path: str | Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Run harness tasks on the plain model and on the changed one, and compare them on the same questions.

    Args:
        model: The plain causal language model.
        tokenizer: Its tokenizer.
        tasks: Names of the harness's tasks or groups of them, such as "mmlu" or "hellaswag".
        edit: An edit, several, or a method that changes the model alone or puts a checkpoint in its place. A prompt or
            another decoding is no change of the model, and the harness would not see it.
        alpha: Its strength.
        num_fewshot: Examples before each question; by default each task's own number.
        limit: Questions of each task, its first ones; all by default.
        batch_size: Questions in one batch.
        include_path: A directory with further task definitions.
        seed: Of the few-shot examples and of the intervals.

    Returns:
        One row for each task and per-question metric: `task`, `metric`, `n`, `plain` and `changed` (the means), each
        with `_low` and `_high` (Wilson's interval for right-or-wrong metrics, else BCa), `change` with its paired
        interval (Bonett & Price's for those), and `p` of the paired permutation test.

    Raises:
        EntangleError: lm_eval is not installed, no such task, no data for it, or a method the harness cannot see.

    Example:
        >>> try:
        ...     en.evaluation.task_scores(model, tokenizer, [], iti)  # with tasks, a row per task and metric
        ... except en.EntangleError as error:
        ...     print(error)
        no harness tasks given; `lm_eval ls tasks` lists them
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    options: dict[str, Any] = {"num_fewshot": num_fewshot, "limit": limit, "batch_size": batch_size, "seed": seed}
    options["manager"] = task_manager(tasks, include_path)
    before = question_scores(Subject(model, tokenizer), tasks, **options)
    with applied(edit, model, tokenizer, alpha) as subject:
        after = question_scores(subject, tasks, what=type(edit).__name__, **options)
    rows = [_row(task, metric, values, after[task, metric], seed) for (task, metric), values in before.items()]
    return pd.DataFrame(rows)


def question_scores(
    subject: Subject,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    manager: Any,
    seed: int = 0,
    what: str = "this method",
) -> dict[tuple[str, str], Float[np.ndarray, " question"]]:
    """(task, metric) -> the metric of each question, in the order of the questions.

    Arguments as in `task_scores`; `manager` is what `task_manager` gives for the tasks, and `what` names the method.
    """
    options = {"num_fewshot": num_fewshot, "limit": limit, "task_manager": manager}
    if subject.prefix or subject.decoding is not None:
        raise EntangleError(
            f"the harness measures models, and {what} changes what is around one; give an edit or a checkpoint"
        )
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        results: Mapping[str, Any] = simple_evaluate(
            # A copy, since the harness gives it a padding token.
            model=HFLM(pretrained=subject.model, tokenizer=copy.deepcopy(subject.tokenizer), batch_size=batch_size),
            tasks=list(tasks),
            **options,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except OSError as error:  # no file, or no hub
        reason = str(error).splitlines()[0]
        raise EntangleError(f"the harness could not get the questions of {', '.join(tasks)}: {reason}") from error
    values: dict[tuple[str, str], Float[np.ndarray, " question"]] = {}
    for task, questions in results["samples"].items():
        ordered = sorted(questions, key=lambda question: question["doc_id"])
        for metric in ordered[0]["metrics"]:
            scores = [question[metric] for question in ordered]
            if all(isinstance(score, (int, float, np.number)) for score in scores):
                values[task, metric] = np.array(scores, dtype=np.float64)
    return values


def task_manager(tasks: Sequence[str], include_path: str | Path | None = None) -> Any:
    """The harness's own reader of its definitions, once these tasks are known to be among them."""
    if not tasks:
        raise EntangleError("no harness tasks given; `lm_eval ls tasks` lists them")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise EntangleError("harness tasks need lm-evaluation-harness; pip install lm_eval") from error

    if include_path is not None:
        # Reading the harness's own thousands of definitions takes longer than a small task.
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if all(task in own.all_tasks for task in tasks):
            return own
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for task in tasks:
        if task not in manager.all_tasks:
            raise EntangleError(
                f"no task {task!r} in lm-evaluation-harness; `lm_eval ls tasks` lists them, include_path adds your own"
            )
    return manager


def _row(
    task: str, metric: str, plain: Float[np.ndarray, " question"], changed: Float[np.ndarray, " question"], seed: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"task": task, "metric": metric, "n": len(plain)}
    row |= _mean(plain, seed).columns("plain") | _mean(changed, seed).columns("changed")
    row |= _change(changed - plain, seed).columns("change")
    row["p"] = paired_permutation_test(changed, plain, seed=seed)
    return row


def _change(difference: Float[np.ndarray, " question"], seed: int) -> Estimate:
    if np.isin(difference, [-1, 0, 1]).all():
        return paired_rate_interval(difference)
    return bootstrap_mean(difference, seed=seed)


def _mean(values: Float[np.ndarray, " question"], seed: int) -> Estimate:
    if np.isin(values, [0, 1]).all():
        return wilson_interval(int(values.sum()), len(values))
    return bootstrap_mean(values, seed=seed)
