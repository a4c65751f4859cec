"""The page of one or several studies, and what pages are made of."""

from entangle.study.page.drawing import Drawing, Panel, Spot, Table, draw, spots_by_layer, template
from entangle.study.page.foretold import forecast_table, limit_panel
from entangle.study.page.page import render, render_light

__all__ = [
    "Drawing",
    "Panel",
    "Spot",
    "Table",
    "draw",
    "forecast_table",
    "limit_panel",
    "render",
    "render_light",
    "spots_by_layer",
    "template",
]
