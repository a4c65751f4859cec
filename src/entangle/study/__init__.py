"""One concept in one model, end to end, as one typed result."""

from entangle.study.measure import measure, study
from entangle.study.page import render
from entangle.study.question import Question
from entangle.study.result import SideBySide, Study
from entangle.study.settings import Settings
from entangle.study.texts import StudyTexts

__all__ = ["Question", "Settings", "SideBySide", "Study", "StudyTexts", "measure", "render", "study"]
