"""What steering will cost, before anyone steers: the metric of shifts, contrasts, and what shifts can buy at most."""

from entangle.forecast.contrast import Contrast
from entangle.forecast.foretold import FEWEST_TEXTS, Forecast, foretell
from entangle.forecast.limit import Limit, limit_of, limits
from entangle.forecast.metric import FEWEST_CLEAN, ShiftMetric
from entangle.forecast.price import Price
from entangle.forecast.shift import NaturalShift

__all__ = [
    "FEWEST_CLEAN",
    "FEWEST_TEXTS",
    "Contrast",
    "Forecast",
    "Limit",
    "NaturalShift",
    "Price",
    "ShiftMetric",
    "foretell",
    "limit_of",
    "limits",
]
