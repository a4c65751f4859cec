"""One concept in one model, or in the models of a recipe, measured end to end and written as a page."""

from entangle.report.composition.page import compose
from entangle.report.demo import demo
from entangle.report.forecast import forecast
from entangle.report.write import check_pages, write
from entangle.study import Settings, measure, render

__all__ = ["Settings", "check_pages", "compose", "demo", "forecast", "measure", "render", "write"]
