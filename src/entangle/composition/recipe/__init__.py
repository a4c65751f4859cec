"""What a recipe says: data only."""

from entangle.composition.recipe.measurement import Measurement
from entangle.composition.recipe.pairs import Pairs, PreferencePairs
from entangle.composition.recipe.recipe import Cell, Recipe, Variant, demo_recipe
from entangle.composition.recipe.sources import Labelled, Source
from entangle.composition.recipe.training import Training

__all__ = [
    "Cell",
    "Labelled",
    "Measurement",
    "Pairs",
    "PreferencePairs",
    "Recipe",
    "Source",
    "Training",
    "Variant",
    "demo_recipe",
]
