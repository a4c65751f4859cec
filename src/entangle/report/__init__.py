"""One concept in one model, or in the models of a recipe, measured end to end and written as a page."""

from entangle.report.composition import compose
from entangle.report.demo import demo
from entangle.report.page import render
from entangle.report.settings import Settings
from entangle.report.study import measure
from entangle.report.write import write

__all__ = ["Settings", "compose", "demo", "measure", "render", "write"]
