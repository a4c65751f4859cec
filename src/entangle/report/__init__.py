"""One concept in one model, measured end to end and written as a page."""

from .demo import demo
from .page import render
from .settings import Settings
from .study import measure
from .write import write

__all__ = ["Settings", "demo", "measure", "render", "write"]
