"""What steering will cost, as one page and one file of numbers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from entangle.errors import EntangleError
from entangle.forecast import Forecast, foretell
from entangle.models import load
from entangle.report.write import write_pages
from entangle.study import Settings
from entangle.study.numbers import plain
from entangle.study.page import forecast_table, limit_panel, template

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

    Example:
        >>> from entangle.report import forecast
        >>> from entangle.study import Settings
        >>> try:
        ...     forecast(Settings(model="tiny", data="rudeness.csv"), "out")
        ... except en.EntangleError as error:
        ...     print(error)
        a forecast is made on clean text; got none: add --clean FILE
    """
    if settings.clean is None:
        raise EntangleError("a forecast is made on clean text; got none: add --clean FILE")
    settings.check()
    texts, _ = settings.read()
    model, tokenizer = load(
        settings.model, revision=settings.revision, dtype=settings.dtype, device=settings.device or DEVICE
    )
    labelled = {settings.concept: texts.labelled, **texts.concepts}
    prediction = foretell(
        model,
        tokenizer,
        {name: (data.texts, data.labels.tolist()) for name, data in labelled.items()},
        texts.clean_texts(tokenizer),
        top_k=settings.top_k,
        max_length=settings.max_length or 128,
        seed=settings.seed,
        progress=progress,
    )
    numbers = {
        "model": Path(settings.model).name,
        "answer": prediction.answer(),
        "rows": plain(prediction.frame.to_dict("records")),
        "settings": {**plain(dict(prediction.settings)), **settings.to_dict()},
        "command": settings.command().replace("entangle report", "entangle forecast"),
        "versions": {name: version(name) for name in ("entangle", "torch", "transformers")},
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    contents = (page(prediction, numbers), json.dumps(numbers, indent=1, allow_nan=False))
    return prediction, write_pages(Path(out), dict(zip(NAMES, contents, strict=True)))


def page(prediction: Forecast, numbers: dict[str, Any]) -> str:
    """The page as HTML: the answer, the limit of each concept over the layers, and every row."""
    return template("forecast.html.j2", "report").render(
        **{name: numbers[name] for name in ("model", "answer", "command", "versions", "made")},
        unit=prediction.settings["unit"],
        drawings=[limit_panel(numbers["rows"]).drawn("limit")],
        tables=[forecast_table(numbers["rows"], prediction.settings["unit"])],
    )
