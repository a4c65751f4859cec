"""What steering will cost, as one page and one file of numbers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from entangle import plots
from entangle.errors import EntangleError
from entangle.forecast import Forecast, foretell
from entangle.models import load
from entangle.report.write import write_pages
from entangle.study import Settings
from entangle.study.numbers import plain
from entangle.study.page import Panel, Table, template
from entangle.study.wording import interval, number, percent

NAMES = ("forecast.html", "forecast.json")
DEVICE = "cpu"


def forecast(settings: Settings, out: Path | str, *, progress: bool = True) -> tuple[Forecast, list[Path]]:
    """Forecast the price of steering each concept out of a model, and write `forecast.html` and `forecast.json`.

    Args:
        settings: The model, its concepts and the clean text.
        out: The folder.
        progress: Whether to show bars.

    Returns:
        The forecast, and the paths of the page and of the numbers.

    Raises:
        EntangleError: No clean text, or anything that `foretell` refuses.
    """
    if settings.clean is None:
        raise EntangleError("a forecast is made on clean text; got none: add --clean FILE")
    settings.check()
    texts, _ = settings.read()
    model, tokenizer = load(
        settings.model, revision=settings.revision, dtype=settings.dtype, device=settings.device or DEVICE
    )
    labelled = {settings.concept: texts.labelled, **texts.concepts}
    told = foretell(
        model,
        tokenizer,
        {name: (data.texts, data.labels.tolist()) for name, data in labelled.items()},
        texts.clean,
        top_k=settings.top_k,
        max_length=settings.max_length or 128,
        seed=settings.seed,
        progress=progress,
    )
    numbers = {
        "model": Path(settings.model).name,
        "answer": told.answer(),
        "rows": plain(told.frame.to_dict("records")),
        "settings": {**plain(dict(told.settings)), **settings.to_dict()},
        "command": settings.command().replace("entangle report", "entangle forecast"),
        "versions": {name: version(name) for name in ("entangle", "torch", "transformers")},
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    contents = (page(told, numbers), json.dumps(numbers, indent=1, allow_nan=False))
    return told, write_pages(Path(out), dict(zip(NAMES, contents, strict=True)))


def page(told: Forecast, numbers: dict[str, Any]) -> str:
    """The page as HTML: the answer, the limit of each concept over the layers, and every row."""
    return template("forecast.html.j2", "report").render(
        **{name: numbers[name] for name in ("model", "answer", "command", "versions", "made")},
        unit=told.settings["unit"],
        drawings=[limit_panel(told).drawn("limit")],
        tables=[_table(told)],
    )


def limit_panel(told: Forecast) -> Panel:
    """The most that a shift buys of each concept, over the layers."""
    natural = told.frame[told.frame["method"] == "natural"]
    series = {
        str(name): tuple(rows[column].to_numpy() for column in ("limit", "limit_low", "limit_high"))
        for name, rows in natural.groupby("concept", sort=False)
    }
    layers = list(dict.fromkeys(int(layer) for layer in natural["layer"]))
    return Panel(
        plots.by_layer,
        (layers, series),
        {"ylabel": "most contrast per root nat"},
        (5.4, 3.1),
        "The most that a constant shift of the residual stream can buy of each concept, in nats per token of contrast "
        "per square root of twice its price; bars are 95 % intervals over all texts. Higher is cheaper.",
    )


def _table(told: Forecast) -> Table:
    rows = [
        [
            str(row["concept"]),
            str(row["method"]),
            str(row["site"]),
            "all" if row["layer"] < 0 else str(row["layer"]),
            number(float(row["price"]), 4),
            "–" if np.isnan(row["efficiency"]) else percent(float(row["efficiency"])),
            interval(float(row["limit"]), float(row["limit_low"]), float(row["limit_high"]), 2),
            number(float(row["reached"]), 2),
        ]
        for row in told.frame.to_dict("records")
    ]
    columns = ["concept", "method", "site", "layer", "price, nats", "of the limit", "limit [95 %]", "reached"]
    return Table(columns, rows, f"Price: nats per token of language for {told.settings['unit']:g} nats of contrast.")
