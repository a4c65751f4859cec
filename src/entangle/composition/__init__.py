"""Pretraining on mixtures of clean and other text: the paper's main experiment."""

from entangle.composition import pretrain
from entangle.composition.experiment import Composition, TrainedModel, run
from entangle.composition.pretrain import Training, new_model
from entangle.composition.recipe import Recipe, Source, demo_recipe
from entangle.composition.tokenizer import train_tokenizer

__all__ = [
    "Composition",
    "Recipe",
    "Source",
    "TrainedModel",
    "Training",
    "demo_recipe",
    "new_model",
    "pretrain",
    "run",
    "train_tokenizer",
]
