"""Inspect: it reads the logs that entangle wrote, and finds the numbers in them."""

import sys
from importlib.metadata import version
from json import dumps
from pathlib import Path

from inspect_ai.log import read_eval_log

folder = Path(sys.argv[1])
found = []
for path in sorted((folder / "logs").iterdir()):
    log = read_eval_log(str(path))
    for score in log.results.scores:
        metrics = {name: metric.value for name, metric in score.metrics.items()}
        found.append([log.eval.model, log.eval.model_args["alpha"], log.eval.task, score.name, metrics, log.status])
(folder / "found.json").write_text(dumps(found))
(folder / "versions.json").write_text(dumps({"inspect_ai": version("inspect_ai")}))
