"""One concept in one model, or in the models of a recipe, measured end to end and written as a page."""

from entangle.report.composition.page import compose
from entangle.report.study.demo import demo
from entangle.report.study.page import render
from entangle.report.write import write
from entangle.study.measure import measure
from entangle.study.settings import Settings

__all__ = ["Settings", "compose", "demo", "measure", "render", "write"]
