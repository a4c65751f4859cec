"""One concept in one model, end to end, as one typed result."""

from entangle.study.asking import measure, study
from entangle.study.foretelling import to_foretell
from entangle.study.measure import run
from entangle.study.numbers import plain
from entangle.study.page import (
    Drawing,
    Panel,
    Spot,
    Table,
    draw,
    forecast_table,
    limit_panel,
    render,
    spots_by_layer,
    template,
)
from entangle.study.question import METHODS, Question, check_seed
from entangle.study.result import SideBySide, Study
from entangle.study.settings import Settings, default_of, flag_of, read_config
from entangle.study.steps import StudiedModel, scorer_of
from entangle.study.texts import StudyTexts, split_of
from entangle.study.wording import interval, number, percent, spread

__all__ = [
    "METHODS",
    "Drawing",
    "Panel",
    "Question",
    "Settings",
    "SideBySide",
    "Spot",
    "StudiedModel",
    "Study",
    "StudyTexts",
    "Table",
    "check_seed",
    "default_of",
    "draw",
    "flag_of",
    "forecast_table",
    "interval",
    "limit_panel",
    "measure",
    "number",
    "percent",
    "plain",
    "read_config",
    "render",
    "run",
    "scorer_of",
    "split_of",
    "spots_by_layer",
    "spread",
    "study",
    "template",
    "to_foretell",
]
